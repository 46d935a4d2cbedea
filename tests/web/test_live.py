"""Pages that change by themselves, also over the death of the master."""

from typing import Any

from playwright.sync_api import Page, expect

from tests.system.farm import until
from tests.web.site import Site

MARK = "window.mark = 1"
"""Gone when a page was loaded anew."""

COLLECT = """async () => {
  const url = document.querySelector('script[src$="page.js"]').src.replace("page.js", "events.js");
  const { follow } = await import(url);
  window.seen = [];
  follow((event) => { if (event.id !== null) window.seen.push(event.id); });
}"""

PAINTED = """canvas => {
  const { width, height } = canvas;
  return canvas.getContext("2d").getImageData(0, 0, width, height).data.some((value) => value > 0);
}"""


def row(page: Page, where: str, job: int) -> Any:
    return page.locator(f'{where} [href="/jobs/{job}"]').first


def test_the_home_page_follows_a_job(apart: Site) -> None:
    with apart.open("/") as page:
        page.evaluate(MARK)
        expect(page.locator("#hosts tr")).to_have_attribute("data-key", "birch")
        job = apart.farm.submit("sleep 600", env="host", name="followed")
        expect(row(page, "#now", job)).to_contain_text("followed")
        expect(page.locator("#headline")).to_contain_text("1 running")
        more = [apart.farm.submit("sleep 600", env="host", name="waits") for _ in range(2)]
        expect(page.locator("#waits li")).to_contain_text("all 2 slots on birch are taken")
        apart.farm.post(f"/api/v1/jobs/{job}/cancel", {})
        expect(row(page, "#newest", job)).to_contain_text("followed")
        expect(row(page, "#timeline", job).locator("rect")).to_have_class("f-cancelled")
        expect(row(page, "#now", more[1])).to_be_visible()
        assert page.evaluate("window.mark") == 1


def test_charts_are_drawn_from_what_hosts_do(apart: Site) -> None:
    with apart.open("/") as page:
        expect(page.locator('[data-f="cpu"]')).to_contain_text("%")
        until("a chart is painted", lambda: page.locator('[data-chart="cpu"]').evaluate(PAINTED))
    with apart.open("/hosts/birch") as page:
        expect(page.locator("#charts canvas")).to_have_count(6)
        expect(page.locator("#charts figcaption .num").first).to_contain_text("%")
        until("a chart is painted", lambda: page.locator("#charts canvas").first.evaluate(PAINTED))


def test_tables_follow_too(apart: Site) -> None:
    with apart.open("/hosts/birch") as page:
        page.evaluate(MARK)
        job = apart.farm.submit("sleep 600", env="host", name="shown")
        expect(page.locator(f'#live tr[data-key="{job}"]')).to_contain_text("running")
        apart.farm.post(f"/api/v1/jobs/{job}/cancel", {})
        expect(page.locator(f'#live tr[data-key="{job}"]')).to_contain_text("cancelled")
        assert page.evaluate("window.mark") == 1


def test_a_killed_master_is_shown_and_nothing_is_missed(apart: Site) -> None:
    farm = apart.farm
    with apart.open("/") as page:
        page.evaluate(MARK)
        page.evaluate(COLLECT)
        before = farm.submit("true", env="host", name="before")
        expect(row(page, "#newest", before)).to_be_visible()
        goes_on = farm.submit("sleep 2", env="host", name="goes on")
        farm.started(goes_on)
        farm.daemons["master"].kill()
        expect(page.locator("#link")).to_contain_text("no connection to the master")
        farm.start("master")
        farm.finished(goes_on)
        after = farm.submit("true", env="host", name="after")
        farm.finished(after)
        expect(page.locator("#link")).to_contain_text("caught up")
        for job in (goes_on, after):
            expect(row(page, "#newest", job)).to_be_visible()
        assert page.evaluate("window.mark") == 1
        last = farm.get("/api/v1/farm")["id"]
        until("all events came", lambda: page.evaluate("window.seen").count(last) > 0)
        seen = page.evaluate("window.seen")
        assert seen == list(range(seen[0], last + 1)), "an event is missing, or came twice"


def test_a_lost_host_is_trouble_and_comes_back(apart: Site) -> None:
    with apart.open("/") as page:
        expect(page.locator("#headline")).to_contain_text("healthy")
        apart.farm.daemons["coordinator"].kill()
        expect(page.locator("#troubles")).to_contain_text("birch has no contact")
        expect(page.locator("#headline")).to_contain_text("needs a look")
        apart.farm.start("coordinator")
        expect(page.locator("#headline")).to_contain_text("healthy")
        expect(page.locator("#troubles")).to_be_hidden()
