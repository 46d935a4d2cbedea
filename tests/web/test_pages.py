"""Every page of a farm that has lived: with scripts and without, light and dark, wide and narrow, to each role."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.web.site import Site

PAGES = (
    "/",
    "/jobs",
    "/jobs/1",
    "/jobs/4",
    "/environments",
    "/environments/host",
    "/environments/gone",
    "/workers",
    "/workers/nightly",
    "/hosts",
    "/hosts/alder",
    "/statistics",
    "/start",
    "/nothing",
)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_can_be_used_by_all(lived: Site, path: str) -> None:
    """No serious finding of axe in either theme, and nothing wider than a phone but what scrolls in itself."""
    for scheme, width in (("light", 1280), ("dark", 390)):
        with lived.open(path, color_scheme=scheme, width=width, reduced_motion="reduce") as page:
            expect(page.locator("main")).not_to_be_empty()
            page.wait_for_load_state("load")
            found = Axe().run(page)
            serious = [
                f"{item['id']}: {item['help']}: {[node['html'][:160] for node in item['nodes']][:3]}"
                for item in found.response["violations"]
                if item["impact"] in ("serious", "critical")
            ]
            assert serious == [], scheme
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, f"{path} is {over} px too wide at {width}"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "gone on alder cannot be used"),
        ("/", "jobs? waits? for what nobody has: arch=riscv64"),
        ("/", "broken"),
        ("/environments", "gone"),
        ("/environments/host", "how it was found out"),
        ("/workers", "nightly"),
        ("/hosts", "alder"),
        ("/hosts/alder", "kinds of environments"),
        ("/statistics", "by worker"),
        ("/start", "biruda run --on"),
        ("/jobs", "hello"),
        ("/jobs/4", "broken"),
    ],
)
def test_a_page_says_it_without_scripts(lived: Site, path: str, text: str) -> None:
    with lived.open(path, java_script_enabled=False) as page:
        assert re.search(text, page.locator("body").inner_text()), page.locator("body").inner_text()


@pytest.mark.parametrize("path", ["/", "/jobs", "/environments/thread", "/hosts/alder", "/statistics"])
def test_a_hostile_name_is_only_a_name(lived: Site, path: str) -> None:
    with lived.open(path) as page:
        name = page.locator("main :is(li, td) bdi, main td a").filter(has_text="<script>").first
        expect(name).to_be_visible()
        assert "<script>document.title='taken'</script>[U+202E]gpj.exe" in (name.text_content() or "")
        assert "\u202e" not in page.locator("body").inner_text()
        assert "taken" not in page.title()


def test_a_viewer_is_shown_nothing_to_press(lived: Site) -> None:
    for path in ("/", "/workers", "/workers/nightly", "/environments/host"):
        with lived.open(path, "viewer") as page:
            expect(page.locator("main")).not_to_be_empty()
            assert page.locator("[data-act]").count() == 0
            assert page.get_by_role("link", name="start").count() == 0
    with lived.open("/start", "viewer") as page:
        expect(page.locator("h1")).to_have_text("Not allowed")


def test_nobody_is_led_to_the_login_and_then_where_they_wanted(lived: Site) -> None:
    with lived.open("/workers?x=1", "") as page:
        expect(page).to_have_url(re.compile("/login"))
        page.fill("[name=token]", "wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not known")
        page.fill("[name=token]", lived.token("viewer"))
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{lived.url}/workers?x=1")
        page.get_by_role("button", name="log out").click()
        expect(page).to_have_url(f"{lived.url}/login")
        page.goto(lived.url + "/")
        expect(page).to_have_url(re.compile("/login"))


def test_keys_lead_through_the_pages(lived: Site) -> None:
    with lived.open("/") as page:
        page.keyboard.press("?")
        expect(page.locator("#keys")).to_contain_text("next row")
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        page.keyboard.press("w")
        expect(page).to_have_url(f"{lived.url}/workers")
        page.keyboard.press("j")
        expect(page.locator("tr.chosen")).to_have_count(1)
        page.keyboard.press("j")
        expect(page.locator("tr.chosen")).to_have_attribute("data-key", re.compile("nightly .* thread|sleeper"))
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile("/workers/"))


def test_what_is_searched_for_is_found(lived: Site) -> None:
    for text, place in (
        ("alder", "/hosts/alder"),
        ("nightly", "/workers/nightly"),
        ("1", "/jobs/1"),
        ("hell", "/jobs?name=hell"),
    ):
        with lived.open("/") as page:
            page.keyboard.press("/")
            page.keyboard.type(text)
            page.keyboard.press("Enter")
            expect(page).to_have_url(lived.url + place)


def test_the_theme_is_kept(lived: Site) -> None:
    with lived.open("/", color_scheme="light") as page:
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.get_by_role("button", name="theme").click()
        dark = page.evaluate(ground)
        assert dark != light
        page.goto(lived.url + "/hosts")
        assert page.evaluate(ground) == dark


def test_an_empty_farm_says_what_to_do(empty: Site) -> None:
    for path, line in (
        ("/", "biruda up"),
        ("/environments", "biruda env build"),
        ("/workers", "biruda start"),
        ("/hosts", "biruda up"),
        ("/statistics", "biruda run"),
        ("/start", "biruda up"),
        ("/jobs", "biruda run"),
    ):
        with empty.open(path) as page:
            expect(page.locator("main .command").filter(has_text=line).first).to_be_visible()
