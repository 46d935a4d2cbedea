"""The page of a job and its log, in a real browser, of a real farm."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.system.farm import until
from tests.web.site import Site, site

CONFIG = '[coordinator]\nslots = 3\nhost = "alder"\n[[environment]]\nname = "host"\n'
BUILD = (
    "echo configuring; echo error: a harmless one",
    'for i in $(seq 1 2500); do echo "  CC file$i.o"; done',
    "echo test 1 ok; printf '\\033[31mtest 2: FAILED\\033[0m 1 of 2\\n'; echo error: that was that; exit 2",
)


@pytest.fixture(scope="module")
def where(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("web") / "h", browser, CONFIG, "master", "coordinator") as running:
        yield running


@pytest.fixture
def page(where: Site) -> Iterator[Page]:
    with where.open("/nothing") as made:
        yield made


@pytest.fixture(scope="module")
def failed(where: Site) -> int:
    """A job that failed in its last step."""
    job = where.farm.submit(*BUILD, name="curl", env="host")
    where.farm.finished(job)
    return job


def open_job(page: Page, where: Site, job: int, more: str = "") -> None:
    page.goto(f"{where.url}/jobs/{job}{more}")
    page.wait_for_selector("html[data-ready=job]", state="attached")


def go_to(page: Page, line: int) -> None:
    """As the browser does when somebody goes back to an address with this line."""
    page.evaluate(
        "(line) => { history.replaceState(null, '', `#L${line}`); dispatchEvent(new Event('popstate')); }", line
    )


def memory_kib(pid: int) -> int:
    """What a process has of memory, its share of what it shares."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def shown_lines(page: Page) -> dict[int, str]:
    """The lines in the page, by number, without those that have not come yet."""
    found: dict[str, str] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".ln")].filter((row) => row.shows !== undefined)
            .map((row) => [row.dataset.line, row.querySelector(".tx").textContent]))"""
    )
    return {int(number): text for number, text in found.items()}


# What has ended.


def test_a_failed_job_says_whose_fault_and_opens_at_its_first_error(page: Page, where: Site, failed: int) -> None:
    open_job(page, where, failed)
    expect(page.locator("#state")).to_contain_text("failed")
    expect(page.locator("#sentence")).to_contain_text("in step 3 step 3: exit 2 after")
    expect(page.locator("#sentence")).to_contain_text("the sources' fault, not the farm's")
    expect(page.locator("#L2505 .tx")).to_have_text("error: that was that")
    expect(page.locator("#L2504 .tx")).to_be_in_viewport()
    expect(page.locator(".ln.error")).to_have_count(2)
    expect(page.get_by_role("button", name="errors 2")).to_be_visible()
    sha256 = where.farm.job(failed)["log"]["sha256"]
    size = f"{where.farm.job(failed)['log']['bytes']:,}"
    expect(page.locator("#logwords")).to_contain_text(f"2,505 lines · complete, {size} bytes, sha256 {sha256[:12]}")
    red = page.locator("#L2504 .tx span")
    expect(red).to_have_class("a-f1")
    expect(red).to_have_text("test 2: FAILED")
    expect(page.locator("#steps tbody tr")).to_have_count(3)
    expect(page.locator("#steps .blamed")).to_contain_text("exit 2")


def test_steps_fold_and_lead_to_their_lines(page: Page, where: Site, failed: int) -> None:
    open_job(page, where, failed, "?line=3#L3")
    expect(page.locator(".fold").first).to_contain_text("1 step 1")
    page.locator("[data-fold='1']").click()
    expect(page.locator("[data-fold='1']")).to_have_attribute("aria-expanded", "false")
    expect(page.locator("#L2503")).to_be_visible()
    expect(page.locator("#L3")).to_have_count(0)
    page.locator("#steps [data-step='1'] a").click()  # what is folded away unfolds
    expect(page.locator("#L3 .tx")).to_have_text("  CC file1.o")


def test_a_selection_is_in_the_address_and_back_works(page: Page, where: Site, failed: int) -> None:
    open_job(page, where, failed)
    page.locator("#L2500 .no").click()
    assert page.url.endswith("?line=2500#L2500")
    page.locator("#L2503 .no").click(modifiers=["Shift"])
    assert page.url.endswith("?line=2500#L2500-L2503")
    expect(page.locator(".ln.chosen")).to_have_count(4)
    page.reload()
    expect(page.locator(".ln.chosen")).to_have_count(4)
    expect(page.locator("#L2500")).to_be_in_viewport()
    page.locator("#L2502 .no").click()
    expect(page.locator(".ln.chosen")).to_have_count(1)
    page.go_back()
    expect(page.locator(".ln.chosen")).to_have_count(4)


def test_a_search_goes_through_the_whole_log_with_the_keyboard(page: Page, where: Site, failed: int) -> None:
    open_job(page, where, failed)
    page.keyboard.press("/")
    page.keyboard.type("file77")
    expect(page.locator("#found")).to_have_text("1 of 11 lines")  # 77, 770 to 779
    expect(page.locator(".ln.now .tx")).to_have_text("  CC file77.o")
    assert "q=file77" in page.url
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(page.locator(".ln.now .tx")).to_have_text("  CC file770.o")
    page.keyboard.press("N")
    page.keyboard.press("N")
    expect(page.locator("#found")).to_have_text("11 of 11 lines")
    painted = page.evaluate("""() => { const map = document.getElementById("minimap");
        return map.getContext("2d").getImageData(0, 0, map.width, map.height).data.some((value) => value > 0); }""")
    assert painted
    page.reload()
    expect(page.locator("#found")).to_have_text(re.compile("11 lines"))
    page.locator("#find [name=q]").fill("^error: .*that$")
    page.locator("[name=regex]").check()
    expect(page.locator("#found")).to_have_text("1 of 1 line")
    expect(page.locator(".ln.now .tx")).to_have_text("error: that was that")
    page.locator("#find [name=q]").fill("(")
    expect(page.locator("#found")).to_contain_text("no regular expression")


def test_times_and_wrapping_by_key(page: Page, where: Site, failed: int) -> None:
    job = where.farm.submit("echo first; sleep 1.1; echo second; seq -s' ' 1 900", name="timed", env="host")
    where.farm.finished(job)
    open_job(page, where, job)
    page.keyboard.press("t")
    expect(page.locator("#L1 .at")).to_be_visible()
    expect(page.locator("#L2 .at")).to_have_text(re.compile(r"^00:0[1-9]\.\d$"))
    before = page.locator("#L3").bounding_box()
    page.keyboard.press("w")
    expect(page.get_by_role("button", name="wrap")).to_have_attribute("aria-pressed", "true")
    after = page.locator("#L3").bounding_box()
    assert before is not None
    assert after is not None
    assert after["height"] > before["height"] * 3


def test_without_scripts_all_is_there_to_read(where: Site, failed: int) -> None:
    with where.open(f"/jobs/{failed}", java_script_enabled=False) as page:
        expect(page.locator("#sentence")).to_contain_text("exit 2")
        expect(page.locator("#L2504")).to_contain_text("test 2: FAILED 1 of 2")
        page.get_by_text("earlier lines").click()
        expect(page.locator("#L2400")).to_contain_text("CC file2398.o")
        page.goto(f"{where.url}/jobs?name=curl")
        page.locator(f"tr[data-key='{failed}'] a").click()
        expect(page.locator("h1")).to_contain_text("curl")


def test_an_earlier_attempt_is_shown_as_it_was(page: Page, where: Site, tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/once && echo error: only once && exit 1; echo fine"
    job = where.farm.submit(script, name="again", env="host")
    where.farm.finished(job)
    where.farm.post(f"/api/v1/jobs/{job}/retry", {})
    where.farm.finished(job)
    open_job(page, where, job)
    expect(page.locator("#state")).to_contain_text("passed")
    page.locator("a[href='?attempt=1']").click()
    expect(page.locator("#state")).to_contain_text("failed")
    expect(page.locator("#L1 .tx")).to_have_text("error: only once")
    expect(page.get_by_role("button", name="errors 1")).to_be_visible()


# What goes on.


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A job that reads it prints what a test writes to it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def printing(where: Site, fifo: Path) -> tuple[int, int]:
    """A job that runs and prints what is written to the descriptor until that is closed."""
    job = where.farm.submit(f"exec cat {fifo}", name="printing", env="host")
    return job, os.open(fifo, os.O_WRONLY)


def test_a_log_is_followed_as_it_grows_and_to_its_end(page: Page, where: Site, fifo: Path) -> None:
    job, fd = printing(where, fifo)
    open_job(page, where, job)
    for number in range(1, 4):
        os.write(fd, b"line %d\nhal" % number if number == 3 else b"line %d\n" % number)
        expect(page.locator(f"#L{number} .tx")).to_have_text(f"line {number}")
    expect(page.locator("#L4 .tx")).to_have_text("hal")
    os.write(fd, b"f\n" + b"more\n" * 500)
    expect(page.locator("#L504 .tx")).to_be_in_viewport()
    page.locator("#logview").hover()
    page.mouse.wheel(0, -4000)  # who scrolls away is left there
    expect(page.get_by_role("button", name="follow")).to_have_attribute("aria-pressed", "false")
    os.write(fd, b"unseen\n" * 100)
    expect(page.locator("#logwords")).to_contain_text("604 lines")
    expect(page.locator("#L604")).to_have_count(0)
    page.keyboard.press("f")
    expect(page.locator("#L604 .tx")).to_be_in_viewport()
    os.close(fd)
    expect(page.locator("#state")).to_contain_text("passed")
    expect(page.locator("#logwords")).to_contain_text("604 lines · complete")
    expect(page.locator("#steps tbody")).to_contain_text("exit 0")


def test_a_master_that_is_killed_and_started_again_misses_and_doubles_nothing(
    page: Page, where: Site, fifo: Path
) -> None:
    job, fd = printing(where, fifo)
    expected: list[str] = []

    def say(count: int) -> None:
        for _ in range(count):
            expected.append(f"line {len(expected) + 1}")
            os.write(fd, (expected[-1] + "\n").encode())

    say(50)
    open_job(page, where, job)
    expect(page.locator("#L50 .tx")).to_have_text("line 50")
    for _ in range(2):
        say(10)
        os.write(fd, b"li")  # in the middle of a line
        where.farm.daemons["master"].kill()
        expected.append(f"line {len(expected) + 1}")
        os.write(fd, (expected[-1][2:] + "\n").encode())
        say(40)
        where.farm.start("master")
        say(10)
        expect(page.locator(f"#L{len(expected)} .tx")).to_have_text(expected[-1])
    seen: dict[int, str] = {}
    for number in range(1, len(expected) + 1, 15):
        go_to(page, number)
        expect(page.locator(f"#L{number}")).to_be_in_viewport()
        seen |= shown_lines(page)
    assert seen == dict(enumerate(expected, 1))
    os.close(fd)
    expect(page.locator("#logwords")).to_contain_text(f"{len(expected)} lines · complete")
    expect(page.locator("#link")).to_be_hidden()


def test_a_job_that_waits_says_why_and_then_runs_on_the_same_page(page: Page, where: Site, fifo: Path) -> None:
    farm = where.farm
    holders = [farm.submit("sleep 600", name="holder", env="host") for _ in range(3)]
    for holder in holders:
        farm.started(holder)
    job = farm.submit(f"cat {fifo}", name="patient", env="host")
    open_job(page, where, job)
    expect(page.locator("#state")).to_contain_text("waiting")
    expect(page.locator("#why")).to_contain_text("all 3 slots of alder are held by jobs")
    farm.post(f"/api/v1/jobs/{holders[0]}/cancel", {})
    expect(page.locator("#state")).to_contain_text("running")
    with fifo.open("wb", 0) as writer:
        writer.write(b"at last\n")
        expect(page.locator("#L1 .tx")).to_have_text("at last")
        expect(page.locator("#why")).to_be_hidden()
    expect(page.locator("#state")).to_contain_text("passed")
    for holder in holders[1:]:
        farm.post(f"/api/v1/jobs/{holder}/cancel", {})
        farm.finished(holder)


def test_acts_cancel_retry_and_the_same_elsewhere(page: Page, where: Site) -> None:
    job = where.farm.submit("sleep 600", name="acts", env="host")
    where.farm.started(job)
    open_job(page, where, job)
    page.get_by_role("button", name="cancel").click()
    expect(page.locator("#state")).to_contain_text("cancelled")
    expect(page.locator("#sentence")).to_contain_text("somebody asked for its end")
    page.get_by_role("button", name="retry").click()
    expect(page.locator("main")).to_contain_text("attempt 2")
    page.get_by_role("button", name="run elsewhere…").click()
    page.locator("#elsewhere select").select_option(label="host on alder · amd64 debian12")
    page.get_by_role("button", name="run it there").click()
    page.wait_for_url(re.compile(rf"/jobs/(?!{job}\b)\d+$"))
    other = int(page.url.rpartition("/")[2])
    assert where.farm.job(other)["requirements"] == {"env": "host", "host": "alder"}
    for number in (job, other):
        where.farm.post(f"/api/v1/jobs/{number}/cancel", {})
        where.farm.finished(number)


def test_a_failure_is_compared_with_the_last_run_that_passed(page: Page, where: Site) -> None:
    same = "echo built in $$ ms; echo test 1 ok"
    passed = where.farm.submit(same, name="compared", env="host")
    where.farm.finished(passed)
    failed = where.farm.submit(f"{same}; echo test 2 went wrong; exit 1", name="compared", env="host")
    where.farm.finished(failed)
    open_job(page, where, failed)
    expect(page.locator("#compare")).to_contain_text(f"since {passed}, which passed")
    expect(page.locator("#compare .new-lines > div")).to_have_count(1)
    expect(page.locator("#compare .new-lines")).to_contain_text("3 test 2 went wrong")


# What is large, and what is hostile.


def test_a_log_of_64_megabytes_is_read_anywhere(page: Page, where: Site) -> None:
    script = (
        "i=1; yes 'all is well in this line of the log' | head -c 64M; echo; echo the needle; yes more | head -n 1000"
    )
    job = where.farm.submit(script, name="large", env="host")
    where.farm.started(job)
    open_job(page, where, job)  # it is followed while it comes, faster than anybody could read
    expect(page.locator("#state")).to_contain_text("passed", timeout=60_000)
    size = where.farm.job(job)["log"]["bytes"]
    lines = where.farm.get(f"/api/v1/jobs/{job}/log/index")["lines"]
    expect(page.locator("#logwords")).to_contain_text(f"{lines:,} lines · complete, {size:,} bytes")
    page.locator("#logview").focus()
    page.keyboard.press("End")
    expect(page.locator(f"#L{lines} .tx")).to_have_text("more")
    page.keyboard.press("Home")
    expect(page.locator("#L1 .tx")).to_have_text("all is well in this line of the log")
    middle = lines // 2
    page.goto(f"{where.url}/jobs/{job}?line={middle}#L{middle}")
    expect(page.locator(f"#L{middle} .tx")).to_have_text("all is well in this line of the log")
    page.locator("#logview").hover()
    page.mouse.wheel(0, 400)
    expect(page.locator(f"#L{middle + 30} .tx")).to_have_text("all is well in this line of the log")
    assert page.locator(".ln").count() < 120
    page.locator("#find [name=q]").fill("the needle")
    expect(page.locator("#found")).to_have_text("1 of 1 line")
    expect(page.locator(".ln.now .tx")).to_have_text("the needle")


@pytest.mark.slow
def test_a_log_of_a_gibibyte_costs_the_master_next_to_nothing(page: Page, where: Site) -> None:
    text = "  CC      drivers/net/ethernet/vendor/module_with_a_long_name.o  # 0123456789abcdef"
    pid = where.farm.daemons["master"].process.pid
    job = where.farm.submit(f"yes '{text}' | head -c 1G; echo; echo error: the needle; exit 1", name="huge", env="host")
    where.farm.finished(job, 100)
    before = memory_kib(pid)
    open_job(page, where, job)  # while its index is still being built
    lines = until("its index is built", lambda: where.farm.get(f"/api/v1/jobs/{job}/log/index")["lines"])
    expect(page.locator(f"#L{lines} .tx")).to_have_text("error: the needle")
    for part in (0.1, 0.7, 0.3):
        number = int(lines * part)
        go_to(page, number)
        expect(page.locator(f"#L{number} .tx")).to_have_text(text)
    page.locator("#find [name=q]").fill("the needle")
    expect(page.locator("#found")).to_have_text("1 of 1 line", timeout=60_000)
    assert memory_kib(pid) - before <= 16 * 1024


HOSTILE = "<script>alert(1)</script>\N{RIGHT-TO-LEFT OVERRIDE}\x1b[31m<img src=x onerror=alert(2)>"


def test_a_hostile_job_has_no_effect(page: Page, where: Site, tmp_path: Path) -> None:
    """Its name, log and artifacts are full of markup, control characters, and lines of ten megabytes."""
    log = tmp_path / "log"
    bell = b"\x1b]0;owned\x07\x1b]8;;javascript:alert(3)\x07link\x1b]8;;\x07\x1b[2J\x1b[10;10H\x9b31m\x00\r\n"
    log.write_bytes(
        HOSTILE.encode() + b"\n" + bell + b"A" * (10 << 20) + b"\nafter \xff\xfe\n" + b"\x1b[" * 2000 + b"\n"
    )
    name = f"{HOSTILE}.html"
    artifacts = {"recipe": {"artifacts": ["*"]}}
    scripts = (
        f"cat {log}",
        "printf '<script>parent.document.title=\"owned\"</script><b>hi</b>' > p.html; "
        f"printf 'x\\342\\200\\256y' > n.txt; cp {log} 'q<b>.txt'; exit 3",
    )
    job = where.farm.submit(*scripts, name=name, env="host", **artifacts)
    where.farm.finished(job)
    open_job(page, where, job, "#L1")
    expect(page.locator("#L1 .tx")).to_contain_text("<script>alert(1)</script>[U+202E]<img src=x onerror=alert(2)>")
    expect(page.locator("#L2 .tx")).to_contain_text("^[^[link^[^[^[")
    expect(page.locator("#L3 .cut")).to_contain_text("a line of 10.0 MiB, cut here")
    expect(page.locator("#L4 .tx")).to_contain_text("after")
    assert page.evaluate("() => document.querySelectorAll('main script, main img').length") == 0
    expect(page.locator("h1")).to_contain_text("<script>alert(1)</script>[U+202E]")
    assert "owned" not in page.title()
    page.locator("[data-preview='n.txt']").click()
    expect(page.locator("#preview pre")).to_have_text("x[U+202E]y")
    page.locator("[data-preview='q<b>.txt']").click()
    expect(page.locator("#preview")).to_contain_text("neither text nor a small image")  # it has a NUL
    page.goto(f"{where.url}/jobs")
    expect(page.locator(f"tr[data-key='{job}'] .name")).to_contain_text("<script>alert(1)</script>[U+202E]")
    assert page.evaluate("() => document.querySelectorAll('main script, main img').length") == 0
    page.wait_for_selector("html[data-ready=jobs]", state="attached")
    context = where.context("viewer")
    other = context.new_page()
    said: list[str] = []
    other.on("console", lambda message: said.append(message.text))
    other.goto(f"{where.url}/jobs/{job}")
    other.locator("[data-preview='p.html']").click()
    expect(other.frame_locator("#preview iframe").locator("b")).to_have_text("hi")
    assert "owned" not in other.title()
    assert any(text.startswith("Blocked script execution") for text in said)
    context.close()
