"""Makes and removes an attempt's directory."""

import os
import stat
import time
from collections.abc import Iterator

from biruda.process import Account

_TICK_NS = 50_000_000
"""More than the grain of a file system's times: a change sooner after another one may bear the same time."""

_DEEP = 100
"""Directories below this depth are moved up before they are emptied: descriptors and path lengths are bounded."""


class WorkDirectory:
    """The directory of one attempt after the other. What nobody touched is neither looked through nor made anew."""

    def __init__(self, path: str, *, keep: bool) -> None:
        self._path = path
        self._keep = keep
        self._empty: tuple[int, int, int] | None = None  # its mark when it was last known to be empty and as if new
        self._settled = False  # what happens to it from here on changes its mark

    def make(self, account: Account | None) -> None:
        """An empty directory as if new. Raises OSError."""
        if account is not None or self._mark() != self._empty or self._empty is None:
            make_directory(self._path, account)
            self._empty = self._mark() if account is None else None
        self._settled = self._empty is not None and time.time_ns() - self._empty[2] > _TICK_NS

    def clear(self) -> list[str]:
        """Remove what the attempt left; what could not be removed is listed."""
        if self._settled and self._mark() == self._empty:
            return []
        problems: list[str] = []
        if not (self._keep and _is_as_new(self._path)):
            problems = remove_tree(self._path, keep=self._keep)
        self._empty = self._mark() if self._keep and not problems else None
        return problems

    def _mark(self) -> tuple[int, int, int] | None:
        """Which directory it is and when it was changed last: nothing can be done to it that leaves its ctime."""
        try:
            found = os.lstat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_ctime_ns


def make_directory(path: str, account: Account | None) -> None:
    """An empty directory as if new; what a killed worker left there is removed. Raises OSError."""
    if not _is_as_new(path):
        remove_tree(path)
        os.makedirs(path)
        os.chmod(path, 0o755)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def give_tree(path: str, account: Account) -> None:
    """The directory and everything below it belong to the account. Raises OSError."""
    os.chown(path, account.uid, account.gid)
    for directory, directories, files in os.walk(path):
        for name in (*directories, *files):
            os.chown(os.path.join(directory, name), account.uid, account.gid, follow_symlinks=False)


def _is_as_new(path: str) -> bool:
    """Whether the last attempt left an empty directory that nobody can tell from a new one."""
    try:
        found = os.lstat(path)
        return (
            stat.S_IMODE(found.st_mode) == 0o755
            and stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.geteuid()
            and not os.listdir(path)
            and not os.listxattr(path, follow_symlinks=False)
        )
    except (OSError, AttributeError):  # no extended attributes on this system: make a new one
        return False


def remove_tree(path: str, *, keep: bool = False) -> list[str]:
    """Remove a directory, whatever its modes and depth, following no link. What could not be removed is listed.

    keep: leave the directory itself, empty, for the next attempt.
    """
    problems: list[str] = []
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return problems
        os.chmod(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return problems
    except OSError as error:
        return [f"{path}: {os.strerror(error.errno or 0)}"]
    try:
        moved = True
        while moved:
            moved = _empty(fd, fd, 0, problems)
    finally:
        os.close(fd)
    try:
        if keep and not problems:
            os.chmod(path, 0o755)
            return problems
        os.rmdir(path)  # noqa: PTH106 - one way to write all of it
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path}: {os.strerror(error.errno or 0)}")
    return problems


def _empty(fd: int, top: int, depth: int, problems: list[str]) -> bool:
    """Remove what is in a directory; True when something deep was moved to the top and is still to be removed."""
    moved = False
    for name, is_directory in list(_entries(fd)):
        try:
            if not is_directory:
                os.unlink(name, dir_fd=fd)
                continue
            os.chmod(name, 0o700, dir_fd=fd)
            if depth >= _DEEP:
                os.rename(name, f".deep-{os.urandom(8).hex()}", src_dir_fd=fd, dst_dir_fd=top)
                moved = True
                continue
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            try:
                moved |= _empty(child, top, depth + 1, problems)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:  # a zygote that outlived its coordinator removes what a later one does
            continue
        except OSError as error:
            problems.append(f"{name}: {os.strerror(error.errno or 0)}")
    return moved


def _entries(fd: int) -> Iterator[tuple[str, bool]]:
    with os.scandir(fd) as entries:
        for entry in entries:
            yield entry.name, entry.is_dir(follow_symlinks=False)
