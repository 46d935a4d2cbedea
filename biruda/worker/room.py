"""The room: log bytes that the coordinator has not acknowledged yet.

Offsets count from the log's first byte. A room takes what append() gives it in full: what finds no place waits in
`pending`, and while anything waits `space` is 0 and the caller must not read more from the job. That is back-pressure.
"""

import errno
import mmap
import os
import sys
from typing import Protocol

from biruda.frames import DATA_BYTES

MEMORY_BYTES = 4 << 20
"""How much of a log a room without a file holds, and how much of a larger one stays in memory when it is empty."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENFILE, errno.EMFILE)

FILE_LIMIT_BYTES = 8 << 30
"""How much a room's file may be ahead of the acknowledgements."""


class Room(Protocol):
    """What the two rooms have in common."""

    start: int  # bytes before it are released
    end: int  # bytes from start to here can be read
    pending: bytearray  # bytes after end that found no place yet
    problem: str  # why there is no place, where that is not just a slow peer

    @property
    def space(self) -> int:
        """How many bytes may be appended now."""

    def append(self, data: memoryview) -> None:
        """Take the log's next bytes."""

    def retry(self) -> None:
        """Find a place for what is pending."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to size bytes from offset, which is in start..end; b"" only at end. Raises OSError."""

    def release(self, offset: int) -> None:
        """The peer has every byte before offset."""

    def close(self) -> None:
        """Give back what it holds; the file stays."""


def untouched(size_bytes: int) -> mmap.mmap:
    """Memory that costs nothing until it is written to; a bytearray is written to when it is made."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size_bytes)
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class MemoryRoom:
    """A ring of bytes."""

    def __init__(self, capacity_bytes: int = MEMORY_BYTES) -> None:
        self.start = 0
        self.end = 0
        self.pending = bytearray()
        self.problem = ""
        self._memory = untouched(capacity_bytes)
        self._ring = memoryview(self._memory)
        self._origin = 0  # the offset whose place is the ring's first byte
        self._peak_bytes = 0  # held at once since the ring was empty

    @property
    def space(self) -> int:
        return 0 if self.pending else len(self._ring) - (self.end - self.start)

    def append(self, data: memoryview) -> None:
        self.pending += data[self._store(data) :]

    def _store(self, data: memoryview) -> int:
        """How many of the next bytes went into the ring."""
        capacity = len(self._ring)
        size = 0 if self.pending else min(len(data), capacity - (self.end - self.start))
        at = (self.end - self._origin) % capacity
        first = min(size, capacity - at)
        self._ring[at : at + first] = data[:first]
        self._ring[: size - first] = data[first:size]
        self.end += size
        self._peak_bytes = max(self._peak_bytes, self.end - self.start)
        return size

    def retry(self) -> None:
        waiting, self.pending = self.pending, bytearray()
        self.append(memoryview(waiting))

    def read(self, offset: int, size: int) -> bytes:
        at = (offset - self._origin) % len(self._ring)
        return bytes(self._ring[at : at + min(size, self.end - offset)])

    def release(self, offset: int) -> None:
        self.start = min(max(self.start, offset), self.end)
        if self.start == self.end:
            self._rewind()
        if self.pending:
            self.retry()

    def _rewind(self) -> None:
        """Begin at the ring's first byte again: what was never needed at once shall not become memory in use."""
        self._origin = self.end
        if self._peak_bytes > MEMORY_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
        self._peak_bytes = 0

    def close(self) -> None:
        self._ring = memoryview(b"")


class FileRoom:
    """The coordinator's outbox: the whole log, each byte at its offset, never released."""

    def __init__(self, fd: int, *, path: str = "", limit_bytes: int = FILE_LIMIT_BYTES) -> None:
        self.start = 0
        self.end = 0
        self.pending = bytearray()
        self.problem = ""
        self._fd = fd
        self._path = path  # of a file of its own, which is made or emptied when the first byte comes; else ""
        self._limit_bytes = limit_bytes
        self._acknowledged = 0
        if fd >= 0:
            os.ftruncate(fd, 0)

    @classmethod
    def at(cls, path: str, limit_bytes: int = FILE_LIMIT_BYTES) -> "FileRoom":
        """The room in a file that is its own."""
        return cls(-1, path=path, limit_bytes=limit_bytes)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    @property
    def space(self) -> int:
        if self.pending or self.end - self._acknowledged >= self._limit_bytes:
            return 0
        return DATA_BYTES

    def append(self, data: memoryview) -> None:
        if not self.pending:
            data = data[self._store(data) :]
        self.pending += data

    def _store(self, data: memoryview) -> int:
        """How many of the next bytes are in the file. Raises OSError where waiting does not help."""
        stored = 0
        try:
            if self._fd < 0:
                self._open()
            while stored < len(data):
                written = os.pwrite(self._fd, data[stored:], self.end)
                self.end += written
                stored += written
            self.problem = ""
        except OSError as error:  # no space, over quota, a failing disk: tried again until it works
            if self._fd < 0 and error.errno not in _NO_ROOM:
                raise
            self.problem = os.strerror(error.errno or 0)
        return stored

    def retry(self) -> None:
        with memoryview(self.pending) as waiting:
            stored = self._store(waiting)
        del self.pending[:stored]

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self.end - offset)
        data = os.pread(self._fd, size, offset)
        if size and not data:
            raise OSError(f"the room's file ends at byte {offset}, but {self.end} were written to it")
        return data

    def release(self, offset: int) -> None:
        self._acknowledged = min(max(self._acknowledged, offset), self.end)

    def close(self) -> None:
        if self._path and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def file_room(path: str, fd: int, limit_bytes: int = FILE_LIMIT_BYTES) -> FileRoom | None:
    """The room in the file that a spawner named or opened, None where there is none. Raises OSError."""
    if path:
        return FileRoom.at(path, limit_bytes)
    return FileRoom(fd, limit_bytes=limit_bytes) if fd >= 0 else None
