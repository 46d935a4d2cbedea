"""The recipe of a pack: all of it but the content of its files, which stands there as the sha256 of each chunk.

The tar bytes follow from the recipe and the chunks, and one tree has one recipe; its sha256 is the pack's digest.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from biruda.errors import PeerError
from biruda.sourcepack.entry import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    MTIME_LIMIT,
    Entry,
    EntryKind,
    chunk_count,
    chunk_lengths,
)
from biruda.sourcepack.names import MAX_PATH_BYTES, fault_in_path, fault_in_target, shown
from biruda.sourcepack.tarformat import BLOCK_BYTES, END, header_bytes

MAGIC = b"biruda source pack 1\n"

_COUNT = struct.Struct(">I")
_ENTRY = struct.Struct(">BHqQH")  # kind, mode, mtime, size of the file or length of the target, length of the path
_KINDS = {int(kind): kind for kind in EntryKind}


class Chunk(NamedTuple):
    """A piece of a file, and where it stands in the tar file."""

    sha256: bytes
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class PackRecipe:
    """A recipe that was checked: its entries can be unpacked by anybody."""

    digest: str
    entries: tuple[Entry, ...]
    chunks: tuple[Chunk, ...]  # in the order of the tar file; the same content may come more than once
    tar_bytes: int


def digest_of(recipe: bytes) -> str:
    """The digest of the pack that this recipe describes."""
    return hashlib.sha256(recipe).hexdigest()


def encode(entries: Sequence[Entry]) -> bytes:
    """The recipe of these entries, which are sorted by path."""
    return encode_start(len(entries)) + b"".join(map(encode_entry, entries))


def encode_start(count: int) -> bytes:
    """How a recipe of this many entries begins."""
    return MAGIC + _COUNT.pack(count)


def encode_entry(entry: Entry) -> bytes:
    """One entry as it stands in the recipe."""
    size = entry.size or len(entry.target)
    fields = _ENTRY.pack(entry.kind, entry.mode, entry.mtime, size, len(entry.path))
    return b"".join((fields, entry.path, entry.target, entry.digests))


def decode(recipe: bytes, *, max_tar_bytes: int) -> PackRecipe:
    """The recipe with every field checked: it may come from anybody. PeerError names the entry that is wrong."""
    entries: list[Entry] = []
    chunks: list[Chunk] = []
    directories: set[bytes] = {b""}
    offset, last = 0, b""
    for entry in _entries(recipe):
        _check(entry, last, directories)
        last = entry.path
        if entry.kind is EntryKind.DIRECTORY:
            directories.add(entry.path)
        entries.append(entry)
        offset += header_bytes(entry)
        if entry.size:
            if offset + entry.size > max_tar_bytes:
                raise PeerError(f"{shown(entry.path)}: the source pack is larger than {max_tar_bytes} bytes")
            chunks += _chunks(entry, offset)
            offset += entry.size + -entry.size % BLOCK_BYTES
    offset += len(END)
    if offset > max_tar_bytes:
        raise PeerError(f"the source pack is larger than {max_tar_bytes} bytes")
    return PackRecipe(digest_of(recipe), tuple(entries), tuple(chunks), offset)


def _entries(recipe: bytes) -> Iterator[Entry]:
    """The entries as they stand there; raises when fields go beyond the end or bytes are left over."""
    at = len(MAGIC) + _COUNT.size
    if len(recipe) < at or not recipe.startswith(MAGIC):
        raise PeerError(f"not a recipe of a source pack: it does not begin with {MAGIC.decode().strip()!r}")
    (count,) = _COUNT.unpack_from(recipe, len(MAGIC))
    for number in range(count):
        if at + _ENTRY.size > len(recipe):
            raise PeerError(f"recipe of a source pack: it ends after {number} of {count} entries")
        kind_value, mode, mtime, size, path_bytes = _ENTRY.unpack_from(recipe, at)
        kind = _KINDS.get(kind_value)
        path_end = at + _ENTRY.size + path_bytes
        path = recipe[at + _ENTRY.size : path_end]
        if kind is None:
            raise PeerError(f"{shown(path)}: a kind of entry that does not exist: {kind_value}")
        rest_bytes = size if kind is EntryKind.LINK else chunk_count(size) * DIGEST_BYTES
        at = path_end + rest_bytes
        if at > len(recipe):
            raise PeerError(f"{shown(path)}: the recipe ends within this entry")
        rest = recipe[path_end:at]
        if kind is EntryKind.LINK:
            yield Entry(path, kind, mode, mtime, 0, rest, b"")
        else:
            yield Entry(path, kind, mode, mtime, size, b"", rest)
    if at != len(recipe):
        raise PeerError(f"recipe of a source pack: {len(recipe) - at} bytes after its last entry")


def _check(entry: Entry, last: bytes, directories: set[bytes]) -> None:
    path = entry.path
    fault = fault_in_path(path)
    if not fault:
        if path <= last:
            fault = "twice, or not in the order of paths"
        elif path.rpartition(b"/")[0] not in directories:
            fault = "in no directory of the pack"
        elif not -MTIME_LIMIT < entry.mtime < MTIME_LIMIT:
            fault = f"an impossible modification time: {entry.mtime}"
        elif entry.kind is EntryKind.LINK:
            fault = fault_in_target(entry.target) or ("" if entry.mode == 0o777 else "a link whose mode is not 777")
        elif entry.mode & ~0o777:
            fault = f"more than permission bits in its mode: {entry.mode:o}"
        elif entry.kind is EntryKind.DIRECTORY and entry.size:
            fault = "a directory with content"
    if fault:
        raise PeerError(f"{shown(path[:MAX_PATH_BYTES])}: refused in a source pack: {fault}")


def _chunks(entry: Entry, offset: int) -> list[Chunk]:
    if entry.size <= CHUNK_BYTES:
        return [Chunk(entry.digests, entry.size, offset)]
    return [
        Chunk(entry.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES], length, offset + number * CHUNK_BYTES)
        for number, length in enumerate(chunk_lengths(entry.size))
    ]
