"""The tar bytes of an entry: ustar, with a pax header where a field does not fit. tarfile takes ten times as long."""

import struct

from biruda.sourcepack.entry import Entry, EntryKind

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_NAME_BYTES = 100
_PREFIX_BYTES = 155
_OCTAL_11 = 8**11  # the first number that 11 octal digits cannot hold
_NO_ID = b"0000000\0"


def header(entry: Entry) -> bytes:
    """Everything that stands before the entry's content: one block, or three and more with a pax header."""
    path = entry.path + b"/" if entry.kind is EntryKind.DIRECTORY else entry.path
    prefix, name, records = b"", path, b""
    if len(path) > _NAME_BYTES:
        cut = path.rfind(b"/", 0, min(_PREFIX_BYTES + 1, len(path) - 1))
        if cut > 0 and len(path) - cut - 1 <= _NAME_BYTES:
            prefix, name = path[:cut], path[cut + 1 :]
        else:
            records += _record(b"path", path)
            name = path[:_NAME_BYTES].rstrip(b"/")
    if len(entry.target) > _NAME_BYTES:
        records += _record(b"linkpath", entry.target)
    size, mtime = entry.size, entry.mtime
    if size >= _OCTAL_11:
        records += _record(b"size", b"%d" % size)
        size = 0
    if not 0 <= mtime < _OCTAL_11:
        records += _record(b"mtime", b"%d" % mtime)
        mtime = 0
    block = _block(name, entry.mode, size, mtime, entry.kind, entry.target[:_NAME_BYTES], prefix)
    if not records:
        return block
    pax = _block(b"././@PaxHeader", 0o644, len(records), 0, ord("x"), b"", b"")
    return b"".join((pax, records, padding(len(records)), block))


def header_bytes(entry: Entry) -> int:
    """len(header(entry)), without making it in the usual case."""
    plain = (
        len(entry.path) < _NAME_BYTES
        and len(entry.target) <= _NAME_BYTES
        and entry.size < _OCTAL_11
        and 0 <= entry.mtime < _OCTAL_11
    )
    return BLOCK_BYTES if plain else len(header(entry))


def padding(size: int) -> bytes:
    """The zeros that fill content of this size up to whole blocks."""
    return bytes(-size % BLOCK_BYTES)


def _record(key: bytes, value: bytes) -> bytes:
    """One pax record; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest
    while length != rest + len(str(length)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, mode: int, size: int, mtime: int, typeflag: int, target: bytes, prefix: bytes) -> bytes:
    numbers = b"%07o\0" % mode, _NO_ID, _NO_ID, b"%011o\0" % size, b"%011o\0" % mtime
    end = b"ustar\0", b"00", b"", b"", _NO_ID, _NO_ID, prefix
    block = _HEADER.pack(name, *numbers, b" " * 8, bytes((typeflag,)), target, *end)
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])
