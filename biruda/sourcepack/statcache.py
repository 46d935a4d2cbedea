"""What was hashed before: the chunk digests of files whose stat is still the same, kept in one file."""

import os
import struct
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from biruda.errors import EnvironmentFault
from biruda.sourcepack.disk import Temporary
from biruda.sourcepack.entry import DIGEST_BYTES, chunk_count

SETTLING_NS = 2_000_000_000
"""A file changed this shortly before it was read may change again without a new time: some clocks tick that slowly."""

_MAGIC = b"biruda stat cache 1\n"
_RECORD = struct.Struct(">HQqqQ")  # length of the path, size, mtime_ns, ctime_ns, inode
_CHECKSUM = struct.Struct(">I")


class Remembered(NamedTuple):
    """A file as it was when its digests were made."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    digests: bytes

    def is_still(self, status: os.stat_result) -> bool:
        """Whether the file has not been touched since. Nobody can set ctime, so nothing else need be read."""
        now = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        return (self.size, self.mtime_ns, self.ctime_ns, self.inode) == now


def remember(before: os.stat_result, after: os.stat_result, digests: bytes, *, read_at_ns: int) -> Remembered | None:
    """What to keep of a file that was read between these two stats; None when it may have changed meanwhile."""
    kept = Remembered(before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino, digests)
    return kept if kept.is_still(after) and before.st_ctime_ns + SETTLING_NS < read_at_ns else None


def load(path: Path | None) -> dict[bytes, Remembered]:
    """The cache by path; empty when there is none, or when it is damaged: it only saves time."""
    if path is None:
        return {}
    try:
        data = path.read_bytes()
        return _parse(data)
    except (OSError, ValueError, struct.error):
        return {}


def save(path: Path, remembered: Iterable[tuple[bytes, Remembered]]) -> None:
    """Replaces the file as a whole; a cache that cannot be written is no error."""
    parts = [_MAGIC]
    for name, kept in remembered:
        fields = _RECORD.pack(len(name), kept.size, kept.mtime_ns, kept.ctime_ns, kept.inode)
        parts += fields, name, kept.digests
    data = b"".join(parts)
    with suppress(OSError, EnvironmentFault):
        path.parent.mkdir(parents=True, exist_ok=True)
        with Temporary(path.parent) as file:
            file.write(data)
            file.write(_CHECKSUM.pack(zlib.crc32(data)))
            file.become(path)


def _parse(data: bytes) -> dict[bytes, Remembered]:
    end = len(data) - _CHECKSUM.size
    if not data.startswith(_MAGIC) or _CHECKSUM.unpack_from(data, end)[0] != zlib.crc32(memoryview(data)[:end]):
        raise ValueError("damaged")
    remembered: dict[bytes, Remembered] = {}
    at = len(_MAGIC)
    while at < end:
        name_bytes, size, mtime_ns, ctime_ns, inode = _RECORD.unpack_from(data, at)
        name_at = at + _RECORD.size
        digests_at = name_at + name_bytes
        at = digests_at + chunk_count(size) * DIGEST_BYTES
        digests = data[digests_at:at]
        remembered[data[name_at:digests_at]] = Remembered(size, mtime_ns, ctime_ns, inode, digests)
    return remembered
