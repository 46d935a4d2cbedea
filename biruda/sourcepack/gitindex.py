"""The names that a git index tracks, for what is tracked although a rule ignores it. Formats 2 to 4."""

import re
import struct
from pathlib import Path

_HEADER = struct.Struct(">4sII")
_STAT_BYTES = 40  # ten 32-bit fields before the object's name
_EXTENDED = 0x4000
_SHA256_OBJECTS = re.compile(r"^\s*objectformat\s*=\s*sha256\s*$", re.IGNORECASE | re.MULTILINE)


class IndexTrouble(ValueError):
    """The index cannot be read; the ignore rules alone decide then."""


def tracked_names(git_directory: Path, common_directory: Path) -> set[bytes]:
    """All paths in the index, relative to the top of the work tree; none where there is no index yet."""
    try:
        data = (git_directory / "index").read_bytes()
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise IndexTrouble(error.strerror) from error
    try:
        return _parse(data, 32 if _has_sha256_objects(common_directory) else 20)
    except (IndexError, struct.error, ValueError) as error:
        raise IndexTrouble(str(error)) from error


def _has_sha256_objects(common_directory: Path) -> bool:
    try:
        config = (common_directory / "config").read_text("utf-8", "replace")
    except OSError:
        return False
    return _SHA256_OBJECTS.search(config) is not None


def _parse(data: bytes, object_bytes: int) -> set[bytes]:
    signature, version, count = _HEADER.unpack_from(data)
    if signature != b"DIRC" or version not in (2, 3, 4):
        raise ValueError(f"not an index of format 2, 3 or 4 (format {version})")
    names: set[bytes] = set()
    at, name = _HEADER.size, b""
    for _ in range(count):
        flags_at = at + _STAT_BYTES + object_bytes
        flags = data[flags_at] << 8 | data[flags_at + 1]
        name_at = flags_at + (4 if flags & _EXTENDED else 2)
        if version == 4:
            strip, name_at = _varint(data, name_at)
            end = data.index(b"\0", name_at)
            name = name[: len(name) - strip] + data[name_at:end]
            at = end + 1
        else:
            end = data.index(b"\0", name_at)
            name = data[name_at:end]
            at += (end - at + 8) & ~7  # one to eight NULs up to a multiple of eight
        if not name:
            raise ValueError("an empty name")
        names.add(name)
    _refuse_split(data, at, object_bytes)
    return names


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """git's offset encoding: seven bits a byte, most significant first, one added for each byte that follows."""
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = (value + 1) << 7 | data[at] & 0x7F
    return value, at + 1


def _refuse_split(data: bytes, at: int, object_bytes: int) -> None:
    """A split index keeps most of its names in another file."""
    while at < len(data) - object_bytes:
        if data[at : at + 4] == b"link":
            raise ValueError("a split index")
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "big")
