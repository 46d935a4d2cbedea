"""What build-static.sh makes, as the sources are now: seconds, or minutes on a machine that never did it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.static.places import Maker

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD_LIMIT_S = 1800
QUICK = tuple(
    f"tests/static/test_{name}.py"
    for name in ("bare_host", "executable", "kernel", "lean", "limits", "packages", "places")
)
OWN_ARCH = {
    "x86_64": "amd64",
    "i686": "i386",
    "aarch64": "arm64",
    "armv7l": "armhf",
    "riscv64": "riscv64",
    "ppc64le": "ppc64el",
}.get(os.uname().machine, "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith("tests/static/"):
            item.add_marker(pytest.mark.system)
            if not item.nodeid.startswith(QUICK):
                item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(BUILD_LIMIT_S))  # the first of them builds


def build(*options: str) -> None:
    """Run build-static.sh; the test is skipped where its sources cannot be had."""
    words = [CHECKOUT / "build-static.sh", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=BUILD_LIMIT_S)
    if done.returncode != 0 and "cannot be fetched" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def dist() -> Path:
    """dist/, with this architecture's worker and the executable as the sources are now."""
    if not OWN_ARCH:
        pytest.skip(f"no worker is made for {os.uname().machine}")
    build("--arch", OWN_ARCH)
    return CHECKOUT / "dist"


@pytest.fixture(scope="session")
def worker(dist: Path) -> Path:
    return dist / "workers" / OWN_ARCH


@pytest.fixture(scope="session")
def executable(dist: Path) -> Path:
    return dist / "biruda"


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """Makes places to start something in."""
    if os.geteuid() != 0:
        pytest.skip("needs root: other roots are entered by chroot and mounts")
    return Maker(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> dict[str, str]:
    """The environment of an executable whose files shall not lie where a user's do."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "BIRUDA_CACHE": str(tmp_path / "cache")}
