"""One browser and one farm for the tests that only look; those that break something have a farm of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.system.farm import until
from tests.web.site import HOSTILE, Site, chromium_flags, site

CHROMIUM = Path("/usr/bin/chromium")

expect.set_options(timeout=20_000)  # what is expected comes at once, but the machine may be busy

CONFIG = """
git_files = true

[coordinator]
host = "alder"
slots = 6

[[environment]]
name = "host"
slots = 2

[[environment]]
name = "thread"
kind = "thread"

[[environment]]
name = "gone"
kind = "chroot"
root = "/nonexistent"
arch = "arm64"
platform = "debian13"

[[worker]]
name = "nightly"
environment = ["host", "thread"]
steps = ["echo hello"]

[[worker]]
name = "sleeper"
environment = "thread"
steps = ["sleep 600"]

[[worker]]
name = "two-faced"
environment = "host"
steps = ["true"]

[[worker]]
name = "two-faced"
environment = "gone"
steps = ["true"]
"""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. It has a loop of its own, beside which no test of another package could have one."""
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=chromium_flags())
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def lived(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A farm that has a past, something that runs, and something that waits."""
    with site(tmp_path_factory.mktemp("web") / "h", browser, CONFIG) as it:
        real = it.farm
        passed = [real.submit("echo hello", env="host", name="hello") for _ in range(3)]
        failed = real.submit("echo no; exit 3", env="host", name="broken")
        hostile = real.submit(f"printf '%s\\n' \"{HOSTILE.replace(chr(27), '')}\"", env="thread", name=HOSTILE)
        for job in (*passed, failed, hostile):
            real.finished(job)
        for job in (real.submit("sleep 600", env="host", name="long") for _ in range(2)):
            real.started(job)
        real.submit("true", env="host", name="next")
        real.submit("true", name="nowhere", requirements={"arch": "riscv64"}, queue=True)
        until("two jobs wait", lambda: real.get("/api/v1/status")["jobs"]["waiting"] == 2)
        yield it


@pytest.fixture
def empty(browser: Browser, tmp_path: Path) -> Iterator[Site]:
    """A master to which nobody has come yet."""
    with site(tmp_path / "h", browser, "", "master") as it:
        yield it


@pytest.fixture
def apart(browser: Browser, tmp_path: Path) -> Iterator[Site]:
    """Master and coordinator as two processes: one can be killed under the other."""
    config = '[coordinator]\nhost = "birch"\nslots = 2\n[[environment]]\nname = "host"\n'
    with site(tmp_path / "h", browser, config, "master", "coordinator") as it:
        yield it
