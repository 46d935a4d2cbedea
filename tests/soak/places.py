"""What all farms of a soak share: the program that jobs run, roots, a Docker daemon, the files of virtual machines."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.dockerd import Dockerd, docker_daemon, need_worker
from tests.machines import MachineFiles, make_files
from tests.system.conftest import BUSYBOX, make_busybox_root

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1]
IMAGE = "biruda-soak/tiny"


class Unable(Exception):
    """The soak cannot run on this machine; the text says what it lacks."""


@dataclass
class Places:
    """Made once for a whole run."""

    directory: Path
    root: Path
    programs: Path  # the directory of `noise`
    dockerd: Dockerd | None = None
    machine: MachineFiles | None = None
    missing: list[str] = field(default_factory=list)  # what this machine cannot do, in words

    @property
    def machine_cache(self) -> Path:
        return self.directory / "machine-cache"


@contextmanager
def open_places(*, all_kinds: bool) -> Iterator[Places]:
    """Everything is gone when the block ends. Raises Unable. Without all_kinds: neither containers nor machines."""
    if os.geteuid() != 0:
        raise Unable("namespaces, chroots and small file systems need root")
    for program in ("gcc", "ip", "nsenter", "unshare", "mount"):
        if shutil.which(program) is None:
            raise Unable(f"there is no {program}: scripts/system-packages installs it")
    if not BUSYBOX.exists() or not Path("/dev/net/tun").exists():
        raise Unable("it needs /bin/busybox (apt-get install busybox-static) and /dev/net/tun")
    directory = Path(tempfile.mkdtemp(prefix="biruda-soak-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        places = Places(directory, directory / "root", directory / "bin")
        places.programs.mkdir()
        noise = places.programs / "noise"
        subprocess.run(["gcc", "-O2", "-static", "-o", noise, HERE / "noise.c"], check=True)
        make_busybox_root(places.root)
        shutil.copy(noise, places.root / "bin" / "noise")
        (places.root / "witness").mkdir()
        if all_kinds:
            _add_containers(places, stack)
            _add_machines(places)
        yield places


def _add_containers(places: Places, stack: ExitStack) -> None:
    try:
        need_worker()
        places.dockerd = stack.enter_context(docker_daemon())
        places.dockerd.import_tree(places.root, IMAGE, "ENV PATH=/bin")
    except (pytest.skip.Exception, OSError, AssertionError) as error:
        places.dockerd = None
        places.missing.append(f"containers: {error}")


def _add_machines(places: Places) -> None:
    try:
        places.machine = make_files(places.directory / "machine", places.root, platform="busybox1.35")
    except (pytest.skip.Exception, OSError, subprocess.CalledProcessError) as error:
        places.missing.append(f"machines: {error}")


@contextmanager
def tmpfs(directory: Path, size_bytes: int) -> Iterator[None]:
    """A small file system of its own."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "soak", directory], check=True)
    try:
        yield
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "-l", directory], check=True)
