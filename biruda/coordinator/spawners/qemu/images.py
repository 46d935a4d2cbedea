"""The files that machines start from: the initial file system with the worker, and the empty disk for what is written.

Each is made once, under a name that says what is in it, and never changed.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from biruda.coordinator.envbuild.tools import run_tool
from biruda.coordinator.spawners.qemu import newc
from biruda.errors import EnvironmentFault
from biruda.injection import Executable

_FORMAT: Final = 1
_SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DIRECTORIES: Final = ("dev", "proc", "sys", "modules")


def initrd(directory: Path, worker: Executable, modules: Path | None, without: Collection[str] = ()) -> Path:
    """The initial file system with a worker as init and modules in the order of their names, but some. Blocking.

    Raises EnvironmentFault: a file cannot be read, or there is no room.
    """
    try:
        files = sorted(modules.glob("*.ko")) if modules is not None else []
        files = [path for path in files if path.stem.partition("-")[2] not in without]
        contents = [path.read_bytes() for path in files]
        digest = hashlib.sha256(f"{_FORMAT} {worker.sha256}".encode())
        for path, content in zip(files, contents, strict=True):
            digest.update(f" {path.name} ".encode() + hashlib.sha256(content).digest())
        wanted = directory / f"initrd-{digest.hexdigest()[:24]}"
        if not wanted.exists():
            entries = [newc.directory(name) for name in _DIRECTORIES]
            entries += [
                newc.character_device("dev/console", 5, 1),
                newc.file("init", worker.path.read_bytes(), executable=True),
                *(newc.file(f"modules/{path.name}", data) for path, data in zip(files, contents, strict=True)),
            ]
            with _new(wanted) as new:
                new.write_bytes(newc.archive(entries))
    except OSError as error:
        raise _fault(error) from None
    return wanted


def scratch(directory: Path, size_bytes: int) -> Path:
    """An empty ext4 file system in a sparse file. Blocking. Raises EnvironmentFault: no tool, no room."""
    wanted = directory / f"scratch-{_FORMAT}-{size_bytes}.ext4"
    said: list[str] = []
    try:
        if not wanted.exists():
            if shutil.which("mkfs.ext4", path=_SEARCH_PATH) is None:
                raise EnvironmentFault("mkfs.ext4 is not installed", hint="apt-get install e2fsprogs")
            with _new(wanted) as new:
                with new.open("wb") as file:
                    file.truncate(size_bytes)
                argv = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode,^metadata_csum"]
                argv += ["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", str(new)]
                if run_tool(argv, {"PATH": _SEARCH_PATH, "LANG": "C.UTF-8"}, said.append) != 0:
                    words = " ".join(" ".join(said).split())[-300:]
                    raise EnvironmentFault(f"mkfs.ext4 cannot make a disk of {size_bytes} bytes: {words}")
    except OSError as error:
        raise _fault(error) from None
    return wanted


@contextmanager
def _new(wanted: Path) -> Iterator[Path]:
    """A file to be made, which then has its name as a whole or is gone."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=".new-", dir=wanted.parent)
    os.close(fd)
    try:
        yield Path(name)
        os.replace(name, wanted)
    finally:
        Path(name).unlink(missing_ok=True)


def copy_sparse(source: Path, target: Path) -> None:
    """A copy with the holes of the original. Raises OSError."""
    with source.open("rb") as read, target.open("xb") as write:
        size_bytes = os.fstat(read.fileno()).st_size
        os.ftruncate(write.fileno(), size_bytes)
        at = 0
        while at < size_bytes:
            try:
                at = os.lseek(read.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole until the end
                    break
                raise
            end = os.lseek(read.fileno(), at, os.SEEK_HOLE)
            while at < end:
                copied = os.copy_file_range(read.fileno(), write.fileno(), end - at, at, at)
                if copied == 0:
                    return
                at += copied


def _fault(error: OSError) -> EnvironmentFault:
    where = f"{error.filename}: " if error.filename else ""
    hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return EnvironmentFault(f"{where}{os.strerror(error.errno or 0)}", hint=hint)
