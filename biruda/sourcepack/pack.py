"""From a directory to a pack: as tar bytes in one pass, or as a plan whose chunks are read when they are asked for."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from biruda.errors import PeerError, UserError
from biruda.sourcepack import recipe, statcache
from biruda.sourcepack.entry import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    MTIME_LIMIT,
    Entry,
    EntryKind,
    chunk_lengths,
)
from biruda.sourcepack.names import fault_in_path, shown
from biruda.sourcepack.tarformat import END, header, header_bytes, padding
from biruda.sourcepack.tree import Found, Tree, unreadable, walk

Progress = Callable[[int, int], object]
"""Called with the bytes of file content done so far and in all."""

_WRITE_BYTES = (
    256 * 1024
)  # small pieces are gathered up to this: a call for each of them would take longer than they do
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What went into a pack."""

    digest: str  # sha256 of the recipe
    bytes: int  # of the tar file
    files: int  # regular files
    skipped: tuple[str, ...]  # what was left out because no pack can hold it, each with the reason


@dataclass(frozen=True, slots=True)
class Plan:
    """A tree that was scanned: what the pack consists of, and where its chunks are read from."""

    recipe: bytes
    summary: PackSummary
    _tree: Tree = field(repr=False)
    _pieces: tuple[tuple[bytes, int, int], ...] = field(repr=False)  # path, offset and length of each chunk
    _digests: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """The digest of the pack."""
        return self.summary.digest

    def chunks(self, indexes: Iterable[int]) -> Iterator[bytes]:
        """These chunks, read now and in this order. UserError when a file is not what was scanned any more."""
        descriptor, opened = -1, b""
        try:
            for index in indexes:
                path, offset, length = self._piece(index)
                if path != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, opened = _open(self._tree.root, path), path
                chunk = _read_exactly(descriptor, length, offset, path)
                if hashlib.sha256(chunk).digest() != self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]:
                    raise _changed(path)
                yield chunk
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _piece(self, index: int) -> tuple[bytes, int, int]:
        if not 0 <= index < len(self._pieces):
            raise PeerError(f"source pack {self.digest}: chunk {index} was asked for; it has {len(self._pieces)}")
        return self._pieces[index]


def pack(
    directory: Path, write: Callable[[bytes | memoryview], object], *, progress: Progress | None = None
) -> PackSummary:
    """Writes the tree as a tar stream, reading each file once; what it takes of memory does not depend on sizes.

    Raises UserError that names a file which cannot be read or which became shorter while it was read; of one that
    grew, as much is taken as it had when it was opened.
    """
    tree = walk(directory)
    output = _Gathered(write)
    count = _Count(tree, progress)
    digest = hashlib.sha256(recipe.encode_start(len(tree.found)))
    for found in tree.found:
        if found.kind is EntryKind.FILE:
            entry = _write_file(tree, found, output, count)
        else:
            entry = _entry_without_content(tree, found)
            output.write(header(entry))
        digest.update(recipe.encode_entry(entry))
    output.write(END)
    output.flush()
    return PackSummary(digest.hexdigest(), output.written, count.files, tree.skipped)


def scan(
    directory: Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    at_ns: int | None = None,
    whole: bool = False,
) -> Plan:
    """What a pack of the tree consists of; every file is read and hashed unless the cache knows it.

    `cache` is a file that the caller gives a tree; it is replaced at the end. `at_ns` is the time of the scan, now when
    left out: what changed just before it is not remembered. whole: see walk(). Raises UserError as pack() does.
    """
    tree = walk(directory, whole=whole)
    known = statcache.load(cache)
    remembered: list[tuple[bytes, statcache.Remembered]] = []
    count = _Count(tree, progress)
    entries: list[Entry] = []
    for found in tree.found:
        if found.kind is not EntryKind.FILE:
            entries.append(_entry_without_content(tree, found))
            continue
        kept = known.get(found.path)
        if kept is not None and kept.is_still(found.stat):
            entries.append(_file_entry(found.path, found.stat, kept.digests))
        else:
            entry, kept = _hash_file(tree, found, at_ns or time.time_ns())
            entries.append(entry)
        if kept is not None:
            remembered.append((found.path, kept))
        count.file_done(entries[-1].size)
    if cache is not None:
        statcache.save(cache, remembered)
    return _plan(tree, entries, count.files)


def _plan(tree: Tree, entries: list[Entry], files: int) -> Plan:
    encoded = recipe.encode(entries)
    tar_bytes = len(END) + sum(header_bytes(entry) + entry.size + -entry.size % 512 for entry in entries)
    pieces = tuple(
        (entry.path, number * CHUNK_BYTES, length)
        for entry in entries
        for number, length in enumerate(chunk_lengths(entry.size))
    )
    summary = PackSummary(recipe.digest_of(encoded), tar_bytes, files, tree.skipped)
    return Plan(encoded, summary, tree, pieces, b"".join(entry.digests for entry in entries))


class _Gathered:
    """Small writes made larger."""

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self.written = 0
        self._write = write
        self._parts: list[bytes] = []
        self._gathered_bytes = 0

    def write(self, data: bytes) -> None:
        """Takes data in order."""
        self.written += len(data)
        self._parts.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= _WRITE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Passes on what was gathered."""
        if self._parts:
            self._write(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))
        self._parts, self._gathered_bytes = [], 0


class _Count:
    """How far it is, and who wants to know."""

    def __init__(self, tree: Tree, progress: Progress | None) -> None:
        self.files = 0
        self._done_bytes = 0
        self._progress = progress
        self._total_bytes = sum(found.stat.st_size for found in tree.found if found.kind is EntryKind.FILE)

    def bytes_done(self, count: int) -> None:
        """Some content more has been read."""
        self._done_bytes += count
        if self._progress is not None:
            self._progress(self._done_bytes, max(self._done_bytes, self._total_bytes))

    def file_done(self, size: int = 0) -> None:
        """One file more; `size` is what bytes_done() was not told."""
        self.files += 1
        if size:
            self.bytes_done(size)


def _entry_without_content(tree: Tree, found: Found) -> Entry:
    path, kind, status = found
    _refuse(path)
    if kind is EntryKind.DIRECTORY:
        return Entry(path, kind, status.st_mode & 0o777, _mtime(status))
    try:
        target = os.readlink(os.path.join(tree.root, path))
    except OSError as error:
        raise unreadable(path, error) from error
    return Entry(path, kind, 0o777, _mtime(status), target=target)


def _file_entry(path: bytes, status: os.stat_result, digests: bytes) -> Entry:
    _refuse(path)
    return Entry(path, EntryKind.FILE, status.st_mode & 0o777, _mtime(status), status.st_size, b"", digests)


def _refuse(path: bytes) -> None:
    fault = fault_in_path(path)
    if fault:
        raise UserError(f"{shown(path)}: cannot be packed: {fault}")


def _mtime(status: os.stat_result) -> int:
    seconds = status.st_mtime_ns // 1_000_000_000
    return min(max(seconds, 1 - MTIME_LIMIT), MTIME_LIMIT - 1)


def _write_file(tree: Tree, found: Found, output: _Gathered, count: _Count) -> Entry:
    with _opened(tree, found) as (descriptor, status):
        output.write(header(_file_entry(found.path, status, b"")))
        digests = []
        for piece in _pieces(descriptor, status.st_size, found.path):
            output.write(piece)
            digests.append(hashlib.sha256(piece).digest())
            count.bytes_done(len(piece))
    output.write(padding(status.st_size))
    count.file_done()
    return _file_entry(found.path, status, b"".join(digests))


def _hash_file(tree: Tree, found: Found, at_ns: int) -> tuple[Entry, statcache.Remembered | None]:
    with _opened(tree, found) as (descriptor, status):
        pieces = _pieces(descriptor, status.st_size, found.path)
        digests = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
        kept = statcache.remember(status, os.fstat(descriptor), digests, read_at_ns=at_ns)
    return _file_entry(found.path, status, digests), kept


@contextmanager
def _opened(tree: Tree, found: Found) -> Iterator[tuple[int, os.stat_result]]:
    """The file and its stat, which decides its size from here on."""
    descriptor = _open(tree.root, found.path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _changed(found.path)
        yield descriptor, status
    finally:
        os.close(descriptor)


def _open(root: bytes, path: bytes) -> int:
    try:
        return os.open(os.path.join(root, path), _OPEN_FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise _changed(path) from error
        raise unreadable(path, error) from error


def _pieces(descriptor: int, size: int, path: bytes) -> Iterator[bytes]:
    for offset in range(0, size, CHUNK_BYTES):
        yield _read_exactly(descriptor, min(CHUNK_BYTES, size - offset), offset, path)


def _read_exactly(descriptor: int, length: int, offset: int, path: bytes) -> bytes:
    try:
        data = os.pread(descriptor, length, offset)
        while len(data) < length:
            more = os.pread(descriptor, length - len(data), offset + len(data))
            if not more:
                raise UserError(
                    f"{shown(path)}: became shorter while it was packed",
                    hint="pack a tree that nothing writes to, or leave the file out with a line in .birudaignore",
                )
            data += more
    except OSError as error:
        raise unreadable(path, error) from error
    return data


def _changed(path: bytes) -> UserError:
    return UserError(
        f"{shown(path)}: changed while the tree was packed", hint="run it again when nothing writes to the tree"
    )
