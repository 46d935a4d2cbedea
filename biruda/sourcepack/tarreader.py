"""Reads tar bytes in pieces of any size: the strict subset that tarformat.py writes. Standard library only."""

import re
from typing import NamedTuple, Protocol

from biruda.errors import PeerError
from biruda.sourcepack.names import MAX_PATH_BYTES, shown

_BLOCK_BYTES = 512
_ZEROS = bytes(_BLOCK_BYTES)
_MAX_PAX_BYTES = 3 * MAX_PATH_BYTES  # a path, a link target and two numbers
_PAX = ord("x")
_OCTAL = re.compile(rb"[0-7]{6,11}[ \0]{1,2}")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,5}) (path|linkpath|size|mtime)=")
_PAX_NUMBER = re.compile(rb"-?[0-9]{1,19}")


class Header(NamedTuple):
    """An entry as its header describes it; nothing of it has been judged."""

    path: bytes
    typeflag: int
    mode: int
    mtime: int
    size: int
    target: bytes


class Sink(Protocol):
    """What happens with the entries. For each: begin(), content() as often as content arrives, end()."""

    def begin(self, header: Header) -> None: ...
    def content(self, data: memoryview) -> None: ...
    def end(self) -> None: ...


class TarReader:
    """Takes the bytes of one tar stream. PeerError when they are not such a stream; it cannot go on then."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._block = bytearray()  # a header of which a part has arrived
        self._pax: bytearray | None = None  # the extended header of the entry that comes next
        self._in_pax = False
        self._content_left = 0
        self._padding_left = 0
        self._zero_blocks = 0

    @property
    def is_whole(self) -> bool:
        """Whether the end of the archive has arrived."""
        return self._zero_blocks == 2

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes; they are not kept."""
        at, size = 0, len(data)
        with memoryview(data) as view:
            while at < size:
                if self._content_left:
                    end = min(at + self._content_left, size)
                    self._take_content(view[at:end])
                elif self._padding_left:
                    end = min(at + self._padding_left, size)
                    self._padding_left -= end - at
                elif not self._block and size - at >= _BLOCK_BYTES:
                    end = at + _BLOCK_BYTES
                    self._take_block(bytes(view[at:end]))
                else:
                    end = min(at + _BLOCK_BYTES - len(self._block), size)
                    self._block += view[at:end]
                    if len(self._block) == _BLOCK_BYTES:
                        block = bytes(self._block)
                        self._block.clear()
                        self._take_block(block)
                at = end

    def _take_content(self, data: memoryview) -> None:
        self._content_left -= len(data)
        if self._in_pax and self._pax is not None:
            self._pax += data
            self._in_pax = self._content_left > 0
            return
        self._sink.content(data)
        if not self._content_left:
            self._sink.end()

    def _take_block(self, block: bytes) -> None:
        if self.is_whole:
            raise PeerError("source pack: bytes after its end")
        if block == _ZEROS:
            if self._pax is not None:
                raise PeerError("source pack: an extended header without an entry")
            self._zero_blocks += 1
            return
        header = _parse(block)
        if self._zero_blocks:
            raise PeerError(f"{shown(header.path)}: stands behind the end of the source pack")
        if header.typeflag == _PAX:
            self._begin_pax(header)
            return
        if self._pax is not None:
            header = _with_pax(header, bytes(self._pax))
            self._pax = None
        self._sink.begin(header)
        self._expect(header.size)
        if not header.size:
            self._sink.end()

    def _begin_pax(self, header: Header) -> None:
        if self._pax is not None or not 0 < header.size <= _MAX_PAX_BYTES:
            raise PeerError(f"{shown(header.path)}: an extended header that is repeated, empty or too long")
        self._pax = bytearray()
        self._in_pax = True
        self._expect(header.size)

    def _expect(self, size: int) -> None:
        self._content_left = size
        self._padding_left = -size % _BLOCK_BYTES


def _parse(block: bytes) -> Header:
    path, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    path = prefix + b"/" + path if prefix else path
    if block[257:265] != b"ustar\x0000":
        raise PeerError(f"{shown(path)}: not the header of a ustar archive")
    if _octal(block[148:156], path) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise PeerError(f"{shown(path)}: the checksum of its header is wrong")
    return Header(
        path,
        block[156],
        _octal(block[100:108], path),
        _octal(block[136:148], path),
        _octal(block[124:136], path),
        block[157:257].partition(b"\0")[0],
    )


def _octal(field: bytes, path: bytes) -> int:
    if not _OCTAL.fullmatch(field):
        raise PeerError(f"{shown(path)}: a field of its header is not an octal number: {field!r}")
    return int(field.rstrip(b" \0"), 8)


def _with_pax(header: Header, records: bytes) -> Header:
    """The header with what the extended header before it says instead."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(records):
        match = _PAX_RECORD.match(records, at)
        end = at + int(match[1]) if match else 0
        if match is None or match[2] in found or not match.end() < end <= len(records) or records[end - 1] != ord("\n"):
            raise PeerError(f"{shown(header.path)}: its extended header is malformed")
        found[match[2]] = records[match.end() : end - 1]
        at = end
    path = found.get(b"path", header.path)
    size, mtime = (found.get(key) for key in (b"size", b"mtime"))
    return header._replace(
        path=path,
        target=found.get(b"linkpath", header.target),
        size=header.size if size is None else _number(size, path),
        mtime=header.mtime if mtime is None else _number(mtime, path),
    )


def _number(value: bytes, path: bytes) -> int:
    if not _PAX_NUMBER.fullmatch(value):
        raise PeerError(f"{shown(path)}: a number in its extended header is malformed")
    return int(value)
