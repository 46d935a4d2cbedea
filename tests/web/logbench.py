"""How quick logs are: `python -m tests.web.logbench [MIB]`. A real job prints 1 GiB; then it is read as people read.

Prints a table for docs/web.md. Budgets: first lines 300 ms, any jump 200 ms, the master grows by 16 MiB, and what a
process prints is on the screen within 200 ms (p95).
"""

import random
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.system.farm import until
from tests.web.conftest import CHROMIUM
from tests.web.site import Site, chromium_flags, site
from tests.web.test_log import memory_kib

CONFIG = '[coordinator]\nhost = "alder"\nslots = 2\n[[environment]]\nname = "host"\n'
LINE = "  CC      drivers/net/ethernet/vendor/module_with_a_long_name.o  # 0123456789abcdef"
JUMPS = 60
STAMPS = 200


def main() -> None:
    """Measure all of it in one run."""
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    rows: list[tuple[str, str]] = []
    with (
        tempfile.TemporaryDirectory(prefix="biruda-logbench-") as directory,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=chromium_flags()) as browser,
        site(Path(directory) / "h", browser, CONFIG, "master", "coordinator") as where,
    ):
        job = large_job(where, mib)
        began = time.perf_counter()
        kept = where.farm.home / "spool" / ".index" / f"{job}.1.lines"
        until("its index is kept", kept.exists)
        rows.append(("the index was there after the job's end", f"{time.perf_counter() - began:.1f} s"))
        where.farm.daemons["master"].kill()  # measured with a master that has not seen it
        where.farm.start("master")
        rows += from_the_api(where, job)
        rows += in_the_browser(where, job)
        rows += process_to_screen(where)
    for what, figure in rows:
        print(f"| {what} | {figure} |")


def large_job(where: Site, mib: int) -> int:
    """A job that has printed so much; its second half has an error to be found."""
    half = f"yes '{LINE}' | head -c {mib // 2}M; echo"
    job = where.farm.submit(half, f"{half}; echo error: the needle; exit 1", name="large", env="host")
    where.farm.finished(job, 600)
    return job


def from_the_api(where: Site, job: int) -> list[tuple[str, str]]:
    """Latencies at the master, and its memory."""
    pid = where.farm.daemons["master"].process.pid
    before = memory_kib(pid)
    farm = where.farm
    first_ms = timed(lambda: farm.get(f"/api/v1/jobs/{job}/log/lines?first=1&count=100"))
    lines = farm.get(f"/api/v1/jobs/{job}/log/index")["lines"]
    chosen = random.Random(5)
    jumps = [
        timed(lambda: farm.get(f"/api/v1/jobs/{job}/log/lines?first={chosen.randrange(1, lines)}&count=200"))
        for _ in range(JUMPS)
    ]
    error_ms = timed(lambda: farm.get(f"/api/v1/jobs/{job}/log/errors"))
    found = [
        search(where, job, "the needle"),
        search(where, job, "n[e]{2}dle$", regex="1"),
        search(where, job, "long_name"),
    ]
    grown = memory_kib(pid) - before
    return [
        ("log", f"{farm.job(job)['log']['bytes']:,} bytes, {lines:,} lines"),
        ("first 100 lines, a master that was just started", f"{first_ms:.0f} ms"),
        (
            f"any 200 lines, {JUMPS} jumps",
            f"p50 {middle(jumps):.0f} ms, p95 {p95(jumps):.0f} ms, most {max(jumps):.0f} ms",
        ),
        ("the first error of the step that failed", f"{error_ms:.0f} ms"),
        ("search for a text that is once in it, all of it", f"{found[0]:.0f} ms"),
        ("search by a pattern, all of it", f"{found[1]:.0f} ms"),
        ("search for a text that is in every line", f"{found[2]:.0f} ms"),
        ("the master's memory (PSS) grew by", f"{grown / 1024:.1f} MiB"),
    ]


def search(where: Site, job: int, text: str, **more: str) -> float:
    query = urllib.parse.urlencode({"q": text, **more})
    return timed(lambda: where.farm.request("GET", f"/api/v1/jobs/{job}/log/search?{query}"))


def in_the_browser(where: Site, job: int) -> list[tuple[str, str]]:
    """From the address to the line on the screen."""
    lines = where.farm.get(f"/api/v1/jobs/{job}/log/index")["lines"]
    chosen = random.Random(7)
    with where.open("/nothing") as page:
        opened = []
        for _ in range(5):
            began = time.perf_counter()
            page.goto(f"{where.url}/jobs/{job}", wait_until="commit")
            expect(page.locator(f"#L{lines}")).to_contain_text("error: the needle")
            opened.append((time.perf_counter() - began) * 1000)
        page.wait_for_selector("html[data-ready=job]", state="attached")
        jumps = [jump(page, chosen.randrange(1, lines)) for _ in range(JUMPS)]
    return [
        ("from the address to the first error on the screen", f"p50 {middle(opened):.0f} ms"),
        (
            f"from a line's number to its text on the screen, {JUMPS} jumps",
            f"p50 {middle(jumps):.0f} ms, p95 {p95(jumps):.0f} ms",
        ),
    ]


def jump(page: Page, line: int) -> float:
    """Milliseconds from the change of the address to the line's text, counted in the page."""
    taken: float = page.evaluate(
        """(line) => new Promise((done) => {
            const began = performance.now();
            history.replaceState(null, "", `?line=${line}#L${line}`);
            dispatchEvent(new PopStateEvent("popstate"));
            const look = () => {
                const text = document.querySelector(`#L${line} .tx`)?.textContent;
                if (text) done(performance.now() - began); else requestAnimationFrame(look);
            };
            look();
        })""",
        line,
    )
    return taken


def process_to_screen(where: Site) -> list[tuple[str, str]]:
    """A job prints what time it is; the page says when it saw that."""
    script = f"for i in $(seq {STAMPS}); do date +%s%N; sleep 0.05; done; sleep 2"
    job = where.farm.submit(script, name="stamps", env="host")
    where.farm.started(job)
    with where.open(f"/jobs/{job}") as page:
        taken: list[float] = page.evaluate(
            """(count) => new Promise((done) => {
                const seen = new Map();
                const look = () => {
                    const now = Date.now();
                    for (const row of document.querySelectorAll(".ln")) {
                        const text = row.querySelector(".tx").textContent;
                        if (text.length === 19 && !seen.has(text)) seen.set(text, now - Number(text.slice(0, 13)));
                    }
                    if (seen.size >= count) done([...seen.values()]); else requestAnimationFrame(look);
                };
                look();
            })""",
            STAMPS - 50,
        )
    live = taken[-(STAMPS - 80) :]  # not those that were there before the page was
    return [
        (
            "from a process's write to the screen",
            f"p50 {middle(live):.0f} ms, p95 {p95(live):.0f} ms, {len(live)} lines",
        )
    ]


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def p95(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


if __name__ == "__main__":
    main()
