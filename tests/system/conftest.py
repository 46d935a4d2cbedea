"""Roots and farms that the system tests share."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.farm import RealFarm, farm
from tests.system.network import Network, star_of_hosts

BUSYBOX = Path("/bin/busybox")


def make_busybox_root(root: Path) -> None:
    """A root tree of one static program."""
    for name in ("bin", "etc", "tmp", "proc", "dev", "sys", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "os-release").write_text('ID=busybox\nVERSION_ID="1.35"\n')
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root tree of one static program, for every test of a session."""
    if os.getuid() != 0:
        pytest.skip("chroots with limits need root")
    if not BUSYBOX.exists():
        pytest.skip("no /bin/busybox: apt-get install busybox-static")
    root = tmp_path_factory.mktemp("roots") / "busybox"
    make_busybox_root(root)
    return root


CONFIG = """
[[environment]]
name = "host"

[[environment]]
name = "thread"
kind = "thread"

[[environment]]
name = "tiny"
kind = "chroot"
root = "{root}"
"""


@pytest.fixture
def up(tmp_path: Path, busybox_root: Path) -> Iterator[RealFarm]:
    """Master and coordinator in one process, with an environment of each kind."""
    with farm(tmp_path / "h", CONFIG.format(root=busybox_root)) as real:
        yield real


@pytest.fixture
def apart(tmp_path: Path, busybox_root: Path) -> Iterator[RealFarm]:
    """Master and coordinator as two processes of one home."""
    with farm(tmp_path / "h", CONFIG.format(root=busybox_root), "master", "coordinator") as real:
        yield real


@pytest.fixture
def network() -> Iterator[Network]:
    """A namespace for a master, and two for hosts beside it."""
    if os.getuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
        pytest.skip("network namespaces need root and iproute2")
    with star_of_hosts() as net:
        yield net
