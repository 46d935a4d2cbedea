"""The pictures of docs/screenshots, of a real farm: `scripts/screenshots`."""

import asyncio
import struct
import sys
import tempfile
import zlib
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.system.farm import SOURCE, RealFarm, until
from tests.web import bench
from tests.web.conftest import CHROMIUM, CONFIG
from tests.web.site import chromium_flags, site

PLACE = SOURCE / "docs" / "screenshots"
MOST_BYTES = 150_000

CONFIGURE = "for name in cc make sed awk; do echo checking for $name... yes; sleep 0.0$name_s; done".replace(
    "$name_s", "2"
)
BUILD = "for n in 1 2 3 4 5 6; do printf '\\033[32m[%d/6]\\033[0m cc -O2 -c part%d.c\\n' $n $n; sleep 0.1; done"
CHECK = 'for n in $(seq 1 40); do echo "test $n: ok"; done'
FAILED_CHECK = (
    "echo 'test 7: ok'; echo 'test 8: FAILED: expected 3, got 4' >&2; echo 'make: *** [check] Error 1' >&2; exit 2"
)

LONG = 'for n in $(seq 1 600); do echo "CC part$n.o"; sleep 1; done'
FULL = {"farm-full": "/", "jobs-full": "/jobs", "hosts-full": "/hosts", "workers-full": "/workers"}


def fill(real: RealFarm) -> None:
    """A past with all sorts of ends, and a present."""
    done = []
    for name, check in (("hello", CHECK), ("zlib", CHECK), ("curl", CHECK), ("lua", CHECK), ("curl", FAILED_CHECK)) * 3:
        done.append(real.submit(CONFIGURE, BUILD, check, env="host", name=name))
    artifacts = {"artifacts": ["*.txt", "*.html"]}
    made = "echo one > report.txt; echo '<h1>Report</h1><p>all is well</p>' > report.html"
    done.append(real.submit(CONFIGURE, made, env="thread", name="report", recipe=artifacts))
    done.append(real.submit("sleep 20", env="thread", name="slow", recipe={"limits": {"total_s": 2}}))
    for job in done:
        real.finished(job)
    for name in ("linux", "llvm"):
        real.started(real.submit('for n in $(seq 1 600); do echo "CC part$n.o"; sleep 1; done', env="host", name=name))
    for _ in range(3):
        real.submit("true", env="host", name="gcc")
    real.submit("true", name="grub", requirements={"arch": "riscv64"}, queue=True)
    until("they wait", lambda: real.get("/api/v1/status")["jobs"]["waiting"] == 4)


def keep(name: str, picture: bytes) -> None:
    """One picture, packed tighter than a browser takes the time for."""
    path = PLACE / f"{name}.png"
    path.write_bytes(packed(picture))
    size = path.stat().st_size
    print(f"{path.relative_to(SOURCE)}  {size / 1024:.0f} KiB" + ("  TOO LARGE" if size > MOST_BYTES else ""))


def packed(picture: bytes) -> bytes:
    """The same PNG with fewer shades, unfiltered, as small as zlib makes it: eight bits RGB in, eight bits RGB out."""
    chunks, at = {}, 8
    while at < len(picture):
        (length,), kind = struct.unpack(">I", picture[at : at + 4]), picture[at + 4 : at + 8]
        chunks[kind] = chunks.get(kind, b"") + picture[at + 8 : at + 8 + length]
        at += 12 + length
    width, _, depth, colours = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colours) == (8, 2)
    data, stride, before, rows = zlib.decompress(chunks[b"IDAT"]), width * 3, bytes(width * 3), []
    for start in range(0, len(data), stride + 1):
        before = unfiltered(data[start], bytearray(data[start + 1 : start + 1 + stride]), before)
        rows.append(b"\0" + before.translate(SHADES))
    chunks[b"IDAT"] = zlib.compress(b"".join(rows), 9)
    return picture[:8] + b"".join(
        struct.pack(">I", len(chunks[kind])) + kind + chunks[kind] + struct.pack(">I", zlib.crc32(kind + chunks[kind]))
        for kind in (b"IHDR", b"IDAT", b"IEND")
    )


SHADES = bytes(min(255, round(shade / 17) * 17) for shade in range(256))


def paeth(left: int, up: int, corner: int) -> int:
    """Which of the three is nearest to left + up - corner."""
    across, down, both = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    return left if across <= down and across <= both else up if down <= both else corner


def unfiltered(kind: int, row: bytearray, above: bytes) -> bytes:
    """One line of a PNG without its filter."""
    for index in range(len(row)) if kind else ():
        left, up, corner = (row[index - 3], above[index], above[index - 3]) if index > 2 else (0, above[index], 0)
        match kind:
            case 1:
                guess = left
            case 2:
                guess = up
            case 3:
                guess = (left + up) // 2
            case _:
                guess = paeth(left, up, corner)
        row[index] = (row[index] + guess) & 255
    return bytes(row)


def shoot(page: Page, name: str) -> None:
    """What is in the window."""
    keep(name, page.screenshot())


def of_a_lived_farm(browser: Browser, scratch: Path) -> None:
    with site(scratch / "lived", browser, CONFIG) as it:
        fill(it.farm)
        failed = max(job["job"] for job in it.farm.get("/api/v1/jobs?outcome=failed")["jobs"])
        running = max(job["job"] for job in it.farm.get("/api/v1/jobs?state=running")["jobs"])
        waiting = max(job["job"] for job in it.farm.get("/api/v1/jobs?state=waiting")["jobs"])
        pages = {
            "farm": "/",
            "jobs": "/jobs",
            "job-failed": f"/jobs/{failed}",
            "job-running": f"/jobs/{running}",
            "job-waiting": f"/jobs/{waiting}",
            "environments": "/environments",
            "environment": "/environments/host",
            "workers": "/workers",
            "worker": "/workers/two-faced",
            "hosts": "/hosts",
            "host": "/hosts/alder",
            "statistics": "/statistics?hours=1",
            "start": "/start",
        }
        for name, path in pages.items():
            for suffix, options in (
                ("", {"width": 1120}),
                ("-dark", {"width": 1120, "color_scheme": "dark"}),
                ("-narrow", {"width": 390}),
            ):
                if suffix and name not in ("farm", "jobs", "job-failed", "host", "start"):
                    continue
                with it.open(path, **options) as page:  # type: ignore[arg-type]
                    page.wait_for_timeout(6000 if name in ("farm", "host") else 1500)  # charts have something to show
                    if name == "worker":
                        page.get_by_role("button", name="start", exact=True).click()
                        page.locator("#said button").first.wait_for()
                    shoot(page, name + suffix)


def of_an_empty_farm(browser: Browser, scratch: Path) -> None:
    with site(scratch / "empty", browser, "", "master") as it:
        with it.open("/login", "") as page:
            shoot(page, "login")
        for name, path in (("farm-empty", "/"), ("jobs-empty", "/jobs"), ("environments-empty", "/environments")):
            with it.open(path) as page:
                page.wait_for_timeout(1000)
                shoot(page, name)


async def of_a_full_farm(scratch: Path) -> None:
    """With 1,000 workers and 10,000 jobs that wait, as the bench has them."""
    from playwright.async_api import async_playwright

    async with bench.served() as (url, _), async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*chromium_flags(), "--disable-lcd-text"]
        )
        page = await browser.new_page(viewport={"width": 1120, "height": 720})
        for name, path in (
            ("farm-full", "/"),
            ("jobs-full", "/jobs"),
            ("hosts-full", "/hosts"),
            ("workers-full", "/workers"),
        ):
            await page.goto(url + path)
            await page.wait_for_timeout(8000)
            keep(name, await page.screenshot())
        await browser.close()


def main() -> int:
    PLACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=CHROMIUM, args=[*chromium_flags(), "--disable-lcd-text"]
            )
            of_an_empty_farm(browser, Path(scratch))
            of_a_lived_farm(browser, Path(scratch))
            browser.close()
        asyncio.run(of_a_full_farm(Path(scratch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
