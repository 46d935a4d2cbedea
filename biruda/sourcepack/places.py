"""Where an Unpacker makes files and directories without following a link. Standard library only."""

import os
import stat
from pathlib import Path
from typing import Protocol

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_ENTER = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # none of them exists everywhere
    _CREATE |= getattr(os, _flag, 0)
for _flag in ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"):
    _ENTER |= getattr(os, _flag, 0)


class Place(Protocol):
    """A directory in which an Unpacker works. Paths are relative to it; OSError when the system refuses."""

    def make_directory(self, path: bytes) -> None: ...
    def make_link(self, path: bytes, target: bytes, mtime: int) -> None: ...
    def create_file(self, path: bytes) -> int:
        """A descriptor to write to; finish_file() or os.close() ends it."""
        ...

    def finish_file(self, descriptor: int, path: bytes, mode: int, mtime: int) -> None: ...
    def finish_directory(self, path: bytes, mode: int, mtime: int) -> None: ...
    def close(self) -> None: ...


def place_for(directory: Path) -> Place:
    """The safest that this system has."""
    by_descriptor = {os.open, os.mkdir, os.symlink, os.utime} <= os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
    return PlaceByDescriptor(directory) if by_descriptor else PlaceByPath(directory)


class PlaceByDescriptor:
    """Goes from directory to directory by descriptor, so that no part of a path can be a link, whoever planted it."""

    def __init__(self, directory: Path) -> None:
        self._root = os.open(directory, _ENTER & ~os.O_NOFOLLOW)
        self._current, self._current_path = self._root, b""

    def make_directory(self, path: bytes) -> None:
        """A directory that only its owner can enter until it is finished."""
        parent, _, name = path.rpartition(b"/")
        os.mkdir(name, 0o700, dir_fd=self._enter(parent))

    def make_link(self, path: bytes, target: bytes, mtime: int) -> None:
        """A symlink with exactly this target."""
        parent, _, name = path.rpartition(b"/")
        descriptor = self._enter(parent)
        os.symlink(target, name, dir_fd=descriptor)
        os.utime(name, (mtime, mtime), dir_fd=descriptor, follow_symlinks=False)

    def create_file(self, path: bytes) -> int:
        """A new file, open to be written."""
        parent, _, name = path.rpartition(b"/")
        return os.open(name, _CREATE, 0o600, dir_fd=self._enter(parent))

    def finish_file(self, descriptor: int, path: bytes, mode: int, mtime: int) -> None:
        """Closes the file with its final mode and time."""
        try:
            os.fchmod(descriptor, mode)
            os.utime(descriptor, (mtime, mtime))
        finally:
            os.close(descriptor)

    def finish_directory(self, path: bytes, mode: int, mtime: int) -> None:
        """Gives it its final mode and time; nothing more can be made in it then."""
        descriptor = self._enter(path)
        os.fchmod(descriptor, mode)
        os.utime(descriptor, (mtime, mtime))

    def close(self) -> None:
        """Closes what it has open."""
        self._leave()
        os.close(self._root)

    def _enter(self, path: bytes) -> int:
        """The directory's descriptor, which stays open until another one is entered."""
        if path == self._current_path:
            return self._current
        inner = path.startswith(self._current_path + b"/") and self._current_path
        rest = path[len(self._current_path) + 1 :] if inner else path
        if not inner:
            self._leave()
        for name in rest.split(b"/") if rest else ():
            descriptor = os.open(name, _ENTER, dir_fd=self._current)
            self._leave()
            self._current = descriptor
        self._current_path = path
        return self._current

    def _leave(self) -> None:
        if self._current != self._root:
            os.close(self._current)
        self._current, self._current_path = self._root, b""


class PlaceByPath:
    """For systems without dir_fd: every directory on the way is looked at before something is made in it."""

    def __init__(self, directory: Path) -> None:
        self._root = os.fsencode(os.path.abspath(directory))
        if not os.path.isdir(self._root):
            raise NotADirectoryError(20, "not a directory")
        self._checked = b""

    def make_directory(self, path: bytes) -> None:
        """A directory that only its owner can enter until it is finished."""
        os.mkdir(self._new(path), 0o700)

    def make_link(self, path: bytes, target: bytes, mtime: int) -> None:
        """A symlink with exactly this target."""
        where = self._new(path)
        os.symlink(target, where)
        if os.utime in os.supports_follow_symlinks:
            os.utime(where, (mtime, mtime), follow_symlinks=False)

    def create_file(self, path: bytes) -> int:
        """A new file, open to be written."""
        return os.open(self._new(path), _CREATE, 0o600)

    def finish_file(self, descriptor: int, path: bytes, mode: int, mtime: int) -> None:
        """Closes the file with its final mode and time."""
        os.close(descriptor)
        self._finish(self._new(path), mode, mtime)

    def finish_directory(self, path: bytes, mode: int, mtime: int) -> None:
        """Gives it its final mode and time."""
        self._finish(self._new(path), mode, mtime)

    def close(self) -> None:
        """Nothing is open."""

    def _new(self, path: bytes) -> bytes:
        if os.sep != "/" and (b"\\" in path or b":" in path):  # they would lead elsewhere
            raise OSError(22, "a name that this system cannot have")
        parent = path.rpartition(b"/")[0]
        if parent != self._checked:
            at = self._root
            for name in parent.split(b"/") if parent else ():
                at = os.path.join(at, name)
                if not stat.S_ISDIR(os.lstat(at).st_mode):
                    raise NotADirectoryError(20, "a part of the path is not a directory")
            self._checked = parent
        return os.path.join(self._root, path)

    def _finish(self, path: bytes, mode: int, mtime: int) -> None:
        os.chmod(path, mode)
        os.utime(path, (mtime, mtime))
