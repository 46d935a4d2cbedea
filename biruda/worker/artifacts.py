"""Finds, opens and hashes the files that a recipe names. The tree is the job's: nothing in it is believed.

Patterns are relative to the work directory: `*`, `?` and `[…]` within one name, `**` for any depth. A name that begins
with a dot is matched only by a pattern that does. A link to a file is never an artifact; a link to a directory is
followed only where a pattern names it and it stays inside.
"""

import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from biruda.model import Artifact
from biruda.worker.digest import sha256

LIMIT = 10_000
_PIECE_BYTES = 1 << 20
_WILD = re.compile(r"[*?\[]")


@dataclass(slots=True)
class Collection:
    """What was found, and in `remarks` what a person should know of it."""

    artifacts: list[Artifact] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def collect(
    work: str, patterns: tuple[str, ...], reports: tuple[str, ...], collection: Collection, limit: int = LIMIT
) -> Iterator[None]:
    """Fill the collection, sorted by path; yields after every piece of work so that the caller can do other things."""
    found: dict[str, bool] = {}  # path -> is a report
    for is_report, group in ((False, patterns), (True, reports)):
        for pattern in group:
            matched = False
            for path in match(work, pattern):
                if path is not None:
                    matched = True
                    found[path] = found.get(path, False) or is_report
                yield
            if not matched:
                collection.remarks.append(_why_nothing(work, pattern))
    if len(found) > limit:
        collection.remarks.append(f"{len(found)} files match, {limit} are the limit: the first by name were taken")
    for path in sorted(found)[:limit]:
        yield from _add(work, path, found[path], collection)


def _why_nothing(work: str, pattern: str) -> str:
    if pattern.startswith("/") or ".." in pattern.split("/"):
        return f"{pattern!r} is outside the work directory"
    if os.path.isdir(os.path.join(work, pattern)):
        return f"{pattern!r} is a directory: {pattern.rstrip('/')}/** are the files in it"
    return f"no file matches {pattern!r}"


def _add(work: str, path: str, is_report: bool, collection: Collection) -> Iterator[None]:
    digest, size = sha256(), 0
    try:
        fd = open_inside(work, path)
        try:
            while piece := os.read(fd, _PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
                yield
        finally:
            os.close(fd)
    except OSError as error:
        collection.remarks.append(f"{path!r} cannot be read: {os.strerror(error.errno or 0)}")
        return
    collection.artifacts.append(Artifact(path=path, bytes=size, sha256=digest.hexdigest(), report=is_report))


def open_inside(work: str, path: str) -> int:
    """A descriptor of a regular file below work. Raises OSError: a link, a device, or a way out of the directory."""
    parent, name = os.path.split(path)
    real = os.path.realpath(os.path.join(work, parent))
    if name in ("", ".", "..") or not is_inside(real, work):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    # O_NONBLOCK: a pipe or a device put there must not make the open wait.
    fd = os.open(os.path.join(real, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return fd


def is_inside(real: str, directory: str) -> bool:
    """True when a resolved path is the directory or below it."""
    root = os.path.realpath(directory)
    return real == root or real.startswith(root.rstrip("/") + "/")


def match(work: str, pattern: str) -> Iterator[str | None]:
    """Paths of the regular files that match, unsorted and maybe repeated; None after each directory read."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts or pattern.startswith("/") or ".." in parts:
        return
    if parts[-1] == "**":
        parts.append("*")
    seen: set[tuple[str, int]] = set()
    waiting = [("", 0)]
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        directory, index = place
        part, is_last = parts[index], index == len(parts) - 1
        if part == "**":
            waiting.append((directory, index + 1))
            waiting += [(path, index) for path in _directories(work, directory)]
        elif is_last:
            yield from _files(work, directory, part)
        elif _WILD.search(part):
            waiting += [(path, index + 1) for path in _directories(work, directory, part)]
        else:
            path = os.path.join(directory, part)
            if is_inside(os.path.realpath(os.path.join(work, path)), work):
                waiting.append((path, index + 1))
        yield None


def _entries(work: str, directory: str, part: str) -> Iterator[os.DirEntry[str]]:
    fits = re.compile(fnmatch.translate(part)).match
    try:
        with os.scandir(os.path.join(work, directory)) as entries:
            for entry in entries:
                if fits(entry.name) and (part.startswith(".") or not entry.name.startswith(".")):
                    yield entry
    except OSError:  # no such directory, or not ours to read: nothing matches there
        return


def _files(work: str, directory: str, part: str) -> Iterator[str]:
    if not _WILD.search(part):
        path = os.path.join(directory, part)
        if _is_file(os.path.join(work, path)):
            yield path
        return
    for entry in _entries(work, directory, part):
        if entry.is_file(follow_symlinks=False):
            yield os.path.join(directory, entry.name)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _directories(work: str, directory: str, part: str = "*") -> Iterator[str]:
    for entry in _entries(work, directory, part):
        if entry.is_dir(follow_symlinks=False):
            yield os.path.join(directory, entry.name)
