"""What the tests of spawners need of the machine, and how they look at it."""

import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from biruda.coordinator.spawners.protocol import Place
from tests.worker.peer import Peer, is_dead

BUSYBOX = shutil.which("busybox") or "/bin/busybox"
SOURCE = Path(__file__).parents[3]
_counter = itertools.count(1)


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes cgroups and bridges here")


def new_instance() -> str:
    """An instance that no other test has, for what it leaves to be found by."""
    return f"test-{os.getpid()}-{next(_counter)}"


def busybox_root(directory: Path) -> Path:
    """A root tree with a static busybox and little else."""
    if not os.path.exists(BUSYBOX) or b"statically" not in _kind_of(BUSYBOX):
        pytest.skip("needs a static busybox: apt-get install busybox-static")
    for name in ("bin", "etc", "tmp", "proc"):
        (directory / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in set(applets) - {"busybox"}:
        (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nbuilder:x:1000:1000::/:/bin/sh\n")
    (directory / "etc/os-release").write_text("ID=tiny\nVERSION_ID=1\n")
    return directory


def _kind_of(path: str) -> bytes:
    """b"statically" for a program that asks for no interpreter."""
    return b"dynamically" if b"/ld-" in Path(path).read_bytes()[:4096] else b"statically"


def assert_nothing_left(place: Place) -> None:
    assert [path for path in place.cgroups if os.path.exists(path)] == []
    assert not place.pid or is_dead(place.pid)
    assert not place.veth or not os.path.exists(f"/sys/class/net/{place.veth}")


def wait_exit(pid: int, limit_s: float = 10.0) -> None:
    """A process, whoever's child, has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], limit_s)[0], f"process {pid} does not end"
    finally:
        os.close(fd)


def connect(place: Place) -> Peer:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{place.directory}/sock")
    return Peer(connection)


def python_for_everybody() -> str:
    """A Python that a user without rights can start."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if not os.path.exists(path) or not all(parent.stat().st_mode & 1 for parent in Path(path).parents):
            continue
        probe = subprocess.run(
            [path, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, check=False
        )
        if probe.stdout.strip() == b"True":
            return path
    pytest.skip("no Python 3.11 that other users can start")


def run_as_nobody(module: str, *arguments: str) -> str:
    """What a module of these tests prints when a user without rights runs it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    done = subprocess.run(
        [python_for_everybody(), "-B", "-m", module, *arguments],
        cwd=SOURCE,
        env={"PATH": os.defpath, "PYTHONPATH": str(SOURCE)},
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_hard(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


Until = Callable[[], object]
