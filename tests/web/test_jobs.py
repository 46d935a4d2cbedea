"""The list of jobs in a real browser: filters, keyboard, acts on many, live, endless."""

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.site import Site, site

NOWHERE = {"env": "nowhere"}
CONFIG = '[coordinator]\nslots = 3\nhost = "alder"\n[[environment]]\nname = "host"\n'
RECIPE = {"steps": [{"name": "main", "argv": ["true"]}]}


@pytest.fixture(scope="module")
def where(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("web") / "h", browser, CONFIG) as running:
        yield running


@pytest.fixture
def page(where: Site) -> Iterator[Page]:
    with where.open("/nothing") as made:
        yield made


def wait(where: Site, count: int, name: str) -> list[int]:
    """So many jobs that wait for ever."""
    jobs = [{"recipe": RECIPE, "name": f"{name}-{n}", "requirements": NOWHERE, "queue": True} for n in range(count)]
    numbers: list[int] = where.farm.post("/api/v1/jobs", {"jobs": jobs})["jobs"]
    return numbers


def open_list(page: Page, where: Site, query: str = "") -> None:
    page.goto(f"{where.url}/jobs{query}")
    page.wait_for_selector("html[data-ready=jobs]", state="attached")


def listed(page: Page) -> list[int]:
    """The jobs whose rows are in the page."""
    keys: list[str] = page.locator("tbody tr[data-key]").evaluate_all("rows => rows.map((row) => row.dataset.key)")
    return [int(key) for key in keys if key.isdigit()]


def test_an_empty_farm_says_how_to_fill_it_and_fills_by_itself(page: Page, where: Site) -> None:
    open_list(page, where)
    expect(page.locator("main")).to_contain_text("biruda run -- make check")
    job = where.farm.submit("true", name="first", env="host")
    expect(page.locator(f"tr[data-key='{job}']")).to_contain_text("passed")


def test_filters_are_in_the_address(page: Page, where: Site) -> None:
    passed, failed = (
        where.farm.submit("true", name="good", env="host"),
        where.farm.submit("exit 1", name="bad", env="host"),
    )
    waiting = wait(where, 3, "waits")
    for job in (passed, failed):
        where.farm.finished(job)
    open_list(page, where)
    page.locator("select[name=outcome]").select_option("failed")
    page.wait_for_url(re.compile("outcome=failed$"))
    page.wait_for_selector("html[data-ready=jobs]", state="attached")
    assert listed(page) == [failed]
    page.locator("#filters [name=name]").fill("good")
    page.get_by_role("button", name="filter").click()
    expect(page.locator("#nothing")).to_contain_text("No job fits")
    page.go_back()
    expect(page.locator(f"tr[data-key='{failed}']")).to_contain_text("failed")
    open_list(page, where, "?state=unfinished")
    assert listed(page) == waiting[::-1]
    open_list(page, where, "?env=host&user=root&since=1h")
    expect(page.locator("#count")).to_have_text("3")
    page.goto(f"{where.url}/jobs?state=odd")
    expect(page.locator("main")).to_contain_text("there are waiting, running, finished, unfinished")


def test_the_keyboard_chooses_opens_and_ends(page: Page, where: Site) -> None:
    jobs = wait(where, 4, "keys")[::-1]
    open_list(page, where, "?name=keys")
    for key in ("j", "x", "j", "j", "x", "k"):
        page.keyboard.press(key)
    expect(page.locator("#chosen")).to_have_text("2 chosen")
    expect(page.locator("#same code")).to_have_text(f"biruda cancel {jobs[2]} {jobs[0]}")
    expect(page.locator("tr.chosen")).to_have_attribute("data-key", str(jobs[1]))
    page.locator("[data-act=cancel]").click()
    expect(page.locator("#done")).to_have_text("asked to end: 2")
    for job in (jobs[0], jobs[2]):
        expect(page.locator(f"tr[data-key='{job}']")).to_contain_text("cancelled")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("keys-2")


def test_all_that_fit_are_ended_and_repeated(page: Page, where: Site) -> None:
    jobs = wait(where, 150, "many")  # more than a page of them
    open_list(page, where, "?name=many&state=waiting")
    page.locator(f"tr[data-key='{jobs[-1]}'] input").check()
    page.get_by_role("button", name="choose all that fit").click()
    expect(page.locator("#chosen")).to_have_text("all 150 that fit are chosen")
    page.locator("[data-act=cancel]").click()
    expect(page.locator("#done")).to_have_text("asked to end: 150")
    assert where.farm.get("/api/v1/jobs?name=many&outcome=cancelled&count=1&limit=1")["count"] == 150
    open_list(page, where, "?name=many")
    page.locator("tbody input").first.check()
    page.get_by_role("button", name="retry").click()
    expect(page.locator("#done")).to_contain_text("waiting again: 1")
    expect(page.locator(f"tr[data-key='{jobs[-1]}']")).to_contain_text("waiting")


def test_what_happens_is_seen_without_a_reload(page: Page, where: Site) -> None:
    open_list(page, where)
    page.evaluate("() => { document.body.dataset.same = 'yes'; }")
    job = where.farm.submit("sleep 600", name="live", env="host")
    row = page.locator(f"tr[data-key='{job}']")
    expect(row).to_contain_text("running")
    expect(row).to_contain_text("live")
    where.farm.post(f"/api/v1/jobs/{job}/cancel", {})
    expect(row).to_contain_text("cancelled")
    expect(page.locator("body")).to_have_attribute("data-same", "yes")


def test_a_list_of_thousands_is_gone_through_to_its_end(page: Page, where: Site) -> None:
    jobs = wait(where, 5000, "deep")
    open_list(page, where, "?name=deep")
    expect(page.locator("#count")).to_have_text("5,000")
    assert listed(page)[0] == jobs[-1]
    for part in (0.5, 0.25, 1):
        page.evaluate(
            f"() => {{ const list = document.getElementById('list'); list.scrollTop = {part} * list.scrollHeight; }}"
        )
        place = round((1 - part) * 5000)
        middle = jobs[min(4999, max(0, place))]
        expect(page.locator(f"tr[data-key='{middle}']")).to_be_attached()
        assert page.locator("tbody tr").count() < 80
    expect(page.locator(f"tr[data-key='{jobs[0]}']")).to_contain_text("deep-0")
    expect(page.locator(f"tr[data-key='{jobs[0]}']")).to_be_in_viewport()
    newest = wait(where, 1, "deep")[0]  # nothing jumps: it is only told of
    expect(page.locator("#newer")).to_have_text("1 new")
    expect(page.locator(f"tr[data-key='{jobs[0]}']")).to_be_in_viewport()
    page.locator("#newer").click()
    expect(page.locator(f"tr[data-key='{newest}']")).to_be_in_viewport()
    page.keyboard.press("j")
    expect(page.locator("tr.chosen")).to_have_attribute("data-key", str(newest))
    page.evaluate("() => { document.getElementById('list').scrollTop = 2000; }")
    expect(page.locator(f"tr[data-key='{jobs[-80]}']")).to_contain_text("deep-4920")


@pytest.mark.slow
def test_a_hundred_thousand_rows(page: Page, where: Site) -> None:
    jobs = wait(where, 100_000, "huge")
    open_list(page, where, "?name=huge")
    expect(page.locator("#count")).to_have_text("100,000")
    began = time.monotonic()
    page.evaluate("() => { const list = document.getElementById('list'); list.scrollTop = list.scrollHeight; }")
    expect(page.locator(f"tr[data-key='{jobs[0]}']")).to_contain_text("huge-0")
    print(f"to the end of 100,000 rows: {time.monotonic() - began:.2f} s")
    assert page.locator("tbody tr").count() < 80
