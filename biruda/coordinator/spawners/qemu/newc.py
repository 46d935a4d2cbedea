"""cpio archives in the format newc, as a Linux kernel takes them for its initial file system."""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_END: Final = "TRAILER!!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, directory or device of an archive; root owns it, and its time is the epoch."""

    path: str  # without a leading slash
    mode: int  # with the type
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(path: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(path=path, mode=stat.S_IFREG | (0o755 if executable else 0o644), data=data)


def directory(path: str) -> Entry:
    """A directory."""
    return Entry(path=path, mode=stat.S_IFDIR | 0o755)


def character_device(path: str, major: int, minor: int) -> Entry:
    """A device node, which needs no right to be written into an archive."""
    return Entry(path=path, mode=stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of some entries, a directory before what is in it; the same bytes for the same entries."""
    pieces = [_packed(number, entry) for number, entry in enumerate(entries, 1)]
    pieces.append(_packed(0, Entry(path=_END, mode=0)))
    return b"".join(pieces)


def _packed(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
