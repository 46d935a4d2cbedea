"""One entry of a source pack."""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

CHUNK_BYTES = 1 << 20
"""A file's content is cut at these offsets; what lies between two cuts is a chunk, the unit of transfer."""

DIGEST_BYTES = 32

MTIME_LIMIT = 1 << 40
"""Modification times lie between minus this and this: beyond it file systems wrap."""


class EntryKind(IntEnum):
    """The kinds a pack holds; the value is the typeflag of the tar header."""

    FILE = ord("0")
    LINK = ord("2")
    DIRECTORY = ord("5")


class Entry(
    NamedTuple
):  # not a dataclass: a frozen one takes four times as long to make, and there are 100 000 of them
    """One file, directory or symlink; fields that its kind lacks are empty."""

    path: bytes  # relative to the tree, "/"-separated, no trailing slash
    kind: EntryKind
    mode: int  # the rwx bits; 0o777 for a link
    mtime: int  # whole seconds
    size: int = 0  # of a file
    target: bytes = b""  # of a link
    digests: bytes = b""  # of a file: the sha256 of each chunk, 32 bytes each, in order


def chunk_count(size: int) -> int:
    """How many chunks a file of this size has."""
    return -(-size // CHUNK_BYTES)


def chunk_lengths(size: int) -> Iterator[int]:
    """The lengths of its chunks, in order."""
    for start in range(0, size, CHUNK_BYTES):
        yield min(CHUNK_BYTES, size - start)
