"""HOME/environments: built environments by name, a cache of packed trees, and what an interrupted build left behind.

environments/
  NAME/root/ environment.toml    an environment; the file is written last
  .cache/KEY.tar.zst             packed trees by what they were made from
  .building-*  .removing-*       in work, locked by who works on it; swept when nobody does
  .lock                          held for moments, while the names above are changed
"""

import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.coordinator.envbuild import tree
from biruda.errors import UserError

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_CACHED: Final = 8
_FILE: Final = "environment.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One environment that was built in a home."""

    name: str
    directory: Path
    about: str  # what it was made from, for people
    made_s: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Shelf:
    """The environments of one home."""

    directory: Path

    def place(self, name: str) -> Path:
        """The directory of an environment; UserError where the name cannot be one."""
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be the name of an environment",
                hint="letters, digits, '_', '.' and '-' can, the first one a letter, a digit or '_'",
            )
        return self.directory / name

    def cached(self, key: str) -> Path:
        """Where the packed tree of a key is, or would be."""
        return self.directory / ".cache" / f"{key}.tar.zst"

    @contextmanager
    def working(self) -> Iterator[Path]:
        """A directory to build in, gone afterwards; first of all, what dead builds left is swept."""
        with self._locked():
            self._sweep()
            work = Path(tempfile.mkdtemp(prefix=f".building-{os.getpid()}-", dir=self.directory))
            lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            try:
                if work.exists():
                    tree.remove(work)
            finally:
                os.close(lock)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / ".lock", "a", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        for path in [*self.directory.glob(".building-*"), *self.directory.glob(".removing-*")]:
            with suppress(OSError, UserError):  # whoever cannot remove it need not: it is not in the way
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    tree.remove(path)
                finally:
                    os.close(lock)

    def keep(self, archive: Path, key: str) -> Path:
        """Move a packed tree into the cache; those unused for the longest time make room."""
        cached = self.cached(key)
        cached.parent.mkdir(exist_ok=True)
        os.replace(archive, cached)
        _sync(cached.parent)
        by_use = sorted(cached.parent.glob("*.tar.zst"), key=lambda path: path.stat().st_atime, reverse=True)
        for old in by_use[_CACHED:]:
            old.unlink(missing_ok=True)
        return cached

    @staticmethod
    def used(archive: Path) -> None:
        """Note that a packed tree was used now; its mtime stays the day it was made."""
        os.utime(archive, (time.time(), archive.stat().st_mtime))

    def install(self, made: Path, name: str, about: str, settings: Mapping[str, str], *, replace: bool) -> Path:
        """Give a directory its environment.toml with these keys, and its name; it then is on the disk."""
        os.sync()  # a tree whose files are empty after a power cut must not count
        _write(made / _FILE, _environment_file(about, settings))
        _sync(made)
        place = self.place(name)
        with self._locked():
            if os.path.lexists(place):
                if not replace:
                    raise exists(name)
                place.rename(made.with_name("replaced"))
            try:
                made.rename(place)
            except OSError:
                if replace:
                    made.with_name("replaced").rename(place)
                raise
            _sync(self.directory)
        return place

    def remove(self, name: str) -> None:
        """Remove an environment; it has no name any more before the first of its files goes."""
        place = self.place(name)
        if place.is_symlink():
            raise UserError(
                f"{place}: a symbolic link, which was not built here: nothing is removed", hint=f"rm {place}"
            )
        if not place.is_dir():
            raise UserError(f"there is no built environment {name!r} in {self.directory}")
        tree.check_nothing_mounted(place)
        with self._locked():
            grave = self.directory / f".removing-{os.getpid()}-{time.monotonic_ns()}"
            place.rename(grave)
            _sync(self.directory)
        tree.remove(grave)

    def listing(self) -> Iterator[Built]:
        """The environments by name."""
        with suppress(FileNotFoundError):
            for place in sorted(self.directory.iterdir()):
                file = place / _FILE
                if not place.name.startswith(".") and not place.is_symlink() and file.is_file():
                    first = file.read_text(errors="replace").partition("\n")[0]
                    about = first.removeprefix("# ") if first.startswith("# ") else ""
                    yield Built(name=place.name, directory=place, about=about, made_s=file.stat().st_mtime)


def exists(name: str) -> UserError:
    """The refusal to build over an environment."""
    return UserError(f"there is already an environment {name!r}", hint="remove it first, or build with --replace")


def _environment_file(about: str, settings: Mapping[str, str]) -> str:
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    return f"""# {about}
# Every key of an [[environment]] in biruda.conf may be added here.
{lines}"""


def _write(path: Path, text: str) -> None:
    """A file is whole, or is not there."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
