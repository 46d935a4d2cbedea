"""Where the lines of a log are: how many line ends stand before each block, so that one block is read to find any line.

Its size follows from the log's bytes and not from its lines: 128 KiB for 1 GiB, whether it is one line or 500 million.
"""

import os
import struct
import zlib
from array import array
from bisect import bisect_left
from pathlib import Path

BLOCK_BYTES = 64 * 1024
_MAGIC = b"biruda lines 1\n\0"
_HEAD = struct.Struct("<QQ?qI")  # bytes, line ends, whether the last byte is one, the log's mtime_ns, CRC-32 of counts


class LineIndex:
    """The line ends of a file that only grows. One thread may extend it while others look lines up, from 0."""

    def __init__(self) -> None:
        self.bytes = 0  # what was looked at by now
        self.ends = 0  # line ends in it
        self._before = array("Q", [0])  # line ends before each block
        self._ends_with_line = True

    @property
    def lines(self) -> int:
        """Lines by now; a last one without its end counts."""
        return self.ends if self._ends_with_line else self.ends + 1

    def extend(self, fd: int, size_bytes: int, budget_bytes: int) -> None:
        """Look at what follows, up to size_bytes and at most about budget_bytes of it."""
        buffer = bytearray(BLOCK_BYTES)
        view = memoryview(buffer)
        stop = min(size_bytes, self.bytes + budget_bytes)
        while self.bytes < stop:
            want = min(BLOCK_BYTES - self.bytes % BLOCK_BYTES, stop - self.bytes)
            got = os.preadv(fd, [view[:want]], self.bytes)
            if not got:
                return
            self.ends += buffer.count(b"\n", 0, got)
            self._ends_with_line = buffer[got - 1] == 0x0A
            self.bytes += got
            if self.bytes % BLOCK_BYTES == 0:
                self._before.append(self.ends)

    def start_of(self, fd: int, line: int) -> int:
        """Offset of a line's first byte; the end of what was looked at for a line that has not begun."""
        if line <= 0:
            return 0
        if line > self.ends:
            return self.bytes
        block = bisect_left(self._before, line) - 1
        data = os.pread(fd, BLOCK_BYTES, block * BLOCK_BYTES)
        position = 0
        for _ in range(line - self._before[block]):
            position = data.find(b"\n", position) + 1
        return block * BLOCK_BYTES + position

    def line_at(self, fd: int, offset: int) -> int:
        """The line that the byte at offset is in."""
        offset = max(0, min(offset, self.bytes))
        block = min(offset // BLOCK_BYTES, len(self._before) - 1)
        start = block * BLOCK_BYTES
        return self._before[block] + os.pread(fd, offset - start, start).count(b"\n")

    def save(self, path: Path, fd: int) -> None:
        """Keep it in a file. It is a cache: not synced, and checked when it is read."""
        counts = self._before.tobytes()
        changed_ns = os.fstat(fd).st_mtime_ns
        head = _HEAD.pack(self.bytes, self.ends, self._ends_with_line, changed_ns, zlib.crc32(counts))
        temporary = path.with_name(f"{path.name}.new")
        temporary.write_bytes(_MAGIC + head + counts)
        temporary.replace(path)


def load(path: Path, fd: int) -> LineIndex | None:
    """The kept index of a finished log; None where there is none that is right."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + _HEAD.size
    if len(data) < start or not data.startswith(_MAGIC):
        return None
    size, ends, ends_with_line, changed_ns, checksum = _HEAD.unpack_from(data, len(_MAGIC))
    counts, log = data[start:], os.fstat(fd)
    if (size, changed_ns) != (log.st_size, log.st_mtime_ns):
        return None
    if len(counts) != (size // BLOCK_BYTES + 1) * 8 or zlib.crc32(counts) != checksum:
        return None
    index = LineIndex()
    index.bytes, index.ends, index._ends_with_line = size, ends, ends_with_line
    index._before = array("Q", counts)
    return index
