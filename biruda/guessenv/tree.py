"""Reading a root tree without leaving it, whatever it holds.

A path is walked component by component with directory descriptors; symlinks are read and interpreted here, so an
absolute target and ".." mean the tree's own root, as they will once the tree is one. Nothing is opened but directories
and regular files: a FIFO would block, and opening some devices has effects.
"""

import errno
import os
import stat

from biruda.guessenv.names import plain

_LINKS = 40  # the kernel's own limit
_STEPS = 256  # components of one path, links expanded
_DIRECTORIES = 128  # kept open at once; far more than an honest tree needs
_READ = 1 << 20

_PATH_ONLY: int = getattr(os, "O_PATH", os.O_RDONLY)  # Linux: enters a directory that may not be listed

# These are about this process. Any other error is the tree's answer, whatever a hostile one makes it.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EBADF)
_MISSING = (errno.ENOENT, errno.ENOTDIR)

_WHAT_TO_GIVE = "give the directory that holds the root tree, the one with etc and bin in it"


class _NotFollowed(Exception):
    """A path that is there but that this walk does not follow to its end; the text says why."""


class File:
    """One open regular file of a tree. A context manager."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.path = path  # where it really lies in the tree, symlinks followed

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read_at(self, offset: int, length: int) -> bytes:
        """At most length bytes; fewer at the end of the file, none where it cannot be read."""
        if not 0 <= offset < 1 << 62:
            return b""
        try:
            return os.pread(self._descriptor, max(0, length), offset)
        except OSError as error:
            if error.errno in _OURS:
                raise
            return b""


class Tree:
    """A root tree, open. A context manager; `lstats` and `refused` say afterwards what was met."""

    __slots__ = ("_directories", "lstats", "refused", "root")

    def __init__(self, root: str) -> None:
        """Raises FileNotFoundError or NotADirectoryError, saying what to do, and any other OSError as it comes."""
        self.root = root
        self.lstats: dict[tuple[str, str], os.stat_result | None] = {}  # (directory, name) -> None when missing
        self.refused: list[str] = []  # one sentence for each path that is there and cannot be read
        self._directories: dict[str, int] = {}  # "" is the root, others "/usr"
        if os.name == "nt":
            raise NotImplementedError(f"{root}: reading a root tree needs a POSIX host; use guess_here() on Windows")
        try:
            self._directories[""] = os.open(root, _PATH_ONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FileNotFoundError(f"{root}: no such directory; {_WHAT_TO_GIVE}") from None
        except NotADirectoryError:
            raise NotADirectoryError(f"{root}: not a directory; unpack it first, then {_WHAT_TO_GIVE}") from None

    def __enter__(self) -> "Tree":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._directories.values():
            os.close(descriptor)
        self._directories.clear()

    def open(self, path: str) -> File | None:
        """The regular file at path, or None: missing, or refused and then in `refused`."""
        try:
            directory, name = self._resolve(path)
            found = self._lstat(directory, name) if name else None
            if found is None or not stat.S_ISREG(found.st_mode):
                self._refuse(path, "not a regular file")
                return None
            # NONBLOCK and the second check: the tree may change under us, and a FIFO must not block even then
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=self._directory(directory))
        except (OSError, _NotFollowed) as error:
            self._give_up(path, error)
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return File(descriptor, f"{directory}/{name}")

    def read(self, path: str, limit_bytes: int = 65536) -> tuple[str, bytes] | None:
        """(where it really lies, the first limit_bytes bytes) of the regular file at path, or None."""
        file = self.open(path)
        if file is None:
            return None
        with file:
            parts, offset = [], 0
            while offset < limit_bytes and (part := file.read_at(offset, min(_READ, limit_bytes - offset))):
                parts.append(part)
                offset += len(part)
            return file.path, b"".join(parts)

    def find(self, path: str) -> str | None:
        """Where path really lies in the tree, symlinks followed; None when it is missing or leads nowhere."""
        try:
            directory, name = self._resolve(path)
        except (OSError, _NotFollowed) as error:
            self._give_up(path, error)
            return None
        return f"{directory}/{name}" if name else directory or "/"

    def _resolve(self, path: str) -> tuple[str, str]:
        """(directory, name) of what path leads to; name is "" when that is a directory."""
        if "\0" in path:
            raise _NotFollowed("holds a NUL")
        directory, links, steps, last = "", 0, 0, False
        pending = path.split("/")[::-1]
        while pending:
            name = pending.pop()
            if name in ("", "."):
                continue
            steps += 1
            if steps > _STEPS:
                raise _NotFollowed("leads through too many directories")
            if name == "..":
                directory = directory.rpartition("/")[0]
                continue
            found = self._lstat(directory, name)
            if found is None and last:
                raise _NotFollowed(f"is a symlink to {plain(directory)}/{plain(name)}, which is missing")
            if found is None:
                raise FileNotFoundError(errno.ENOENT, "missing")
            if stat.S_ISLNK(found.st_mode):
                links += 1
                last = last or not any(pending)  # from here on, what the path itself leads to
                if links > _LINKS:
                    raise _NotFollowed("leads through too many symlinks")
                target = os.readlink(name, dir_fd=self._directory(directory))
                directory = "" if target.startswith("/") else directory
                pending.extend(target.split("/")[::-1])
            elif stat.S_ISDIR(found.st_mode):
                directory = f"{directory}/{name}"
            elif any(pending):
                raise NotADirectoryError(errno.ENOTDIR, "leads through a file")
            else:
                return directory, name
        return directory, ""

    def _lstat(self, directory: str, name: str) -> os.stat_result | None:
        """Of one component; each is asked for once, so that all answers are of one moment."""
        key = (directory, name)
        if key not in self.lstats:
            try:
                self.lstats[key] = os.stat(name, dir_fd=self._directory(directory), follow_symlinks=False)
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                self.lstats[key] = None
        return self.lstats[key]

    def _directory(self, directory: str) -> int:
        """Its descriptor, reached from its parent's without following a symlink."""
        descriptor = self._directories.get(directory)
        if descriptor is None:
            if len(self._directories) >= _DIRECTORIES:
                raise _NotFollowed("leads through too many directories")
            parent, _, name = directory.rpartition("/")
            flags = _PATH_ONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=self._directory(parent))
            self._directories[directory] = descriptor
        return descriptor

    def _give_up(self, path: str, error: OSError | _NotFollowed) -> None:
        if isinstance(error, _NotFollowed):
            self._refuse(path, str(error))
        elif error.errno in _OURS:
            raise error
        elif error.errno not in _MISSING:
            self._refuse(path, (error.strerror or "cannot be opened").lower())

    def _refuse(self, path: str, why: str) -> None:
        sentence = f"{plain(path)}: {why}; not read"
        if sentence not in self.refused:
            self.refused.append(sentence)
