"""Trees, tar bytes and stores for the tests of source packs."""

import hashlib
import io
import os
import resource
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from biruda.sourcepack import wire
from biruda.sourcepack.pack import PackSummary, Plan, pack, scan
from biruda.sourcepack.packstore import PackStore
from biruda.sourcepack.unpack import Unpacker

MTIME = 1_600_000_000
LATER_NS = 1 << 62
"""A time of a scan at which every file has long settled."""


class Node(NamedTuple):
    """What a test compares of one path."""

    kind: str
    mode: int
    mtime: int
    content: bytes


def make_tree(root: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """Files by path; None makes a directory. Times are in the past and differ."""
    root.mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        os.utime(path, (MTIME + number, MTIME + number))
    return root


def many_files(root: Path, count: int, size: int) -> Path:
    """Files of hexadecimal text which no compression makes smaller than half."""
    lines = {}
    for number in range(count):
        text = "\n".join(hashlib.sha256(b"%d %d" % (number, line)).hexdigest() for line in range(size // 65))
        lines[f"dir{number % 10}/file{number:04}.txt"] = text
    return make_tree(root, lines)


def nodes_of(root: Path) -> dict[bytes, Node]:
    """Everything below a directory."""
    found: dict[bytes, Node] = {}
    base = os.fsencode(root)
    for directory, names, files in os.walk(base):
        for name in names + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                kind, content = "link", os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                kind, content = "directory", b""
            else:
                with open(path, "rb") as file:
                    kind, content = "file", file.read()
            mode = 0o777 if kind == "link" else stat.S_IMODE(status.st_mode)
            found[path[len(base) + 1 :]] = Node(kind, mode, int(status.st_mtime_ns // 10**9), content)
    return found


def packed(root: Path) -> tuple[bytes, PackSummary]:
    """The tar bytes of a tree and what pack() says about them."""
    output = io.BytesIO()
    summary = pack(root, output.write)
    return output.getvalue(), summary


def unpack(tar: bytes, into: Path, piece: int = 1 << 16) -> dict[bytes, Node]:
    """What comes out of tar bytes that are fed in pieces of this size."""
    into.mkdir()
    with Unpacker(into) as unpacker:
        for at in range(0, len(tar), piece):
            unpacker.feed(tar[at : at + piece])
    return nodes_of(into)


class Sent(NamedTuple):
    """A transfer as it went over the wire."""

    digest: str
    recipe_bytes: int
    chunk_bytes: int
    chunks: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.recipe_bytes + self.chunk_bytes


def send(plan: Plan, store: PackStore) -> Sent:
    """The whole exchange between a sender and a store, in its wire form."""
    on_wire = wire.compress_recipe(plan.recipe)
    recipe = wire.decompress_recipe(on_wire, max_bytes=1 << 24)
    missing = store.missing(recipe)
    stream = list(wire.encode_chunks(plan.chunks(missing)))
    digest = store.assemble(recipe, wire.decode_chunks(stream))
    return Sent(digest, len(on_wire), sum(map(len, stream)), len(missing))


def store_with(directory: Path, *trees: Path) -> tuple[PackStore, list[str]]:
    """A store that holds these trees, and their digests."""
    store = PackStore(directory)
    return store, [store.add_directory(tree) for tree in trees]


def scan_later(root: Path, cache: Path) -> Plan:
    """A scan whose results are remembered however young the files are."""
    return scan(root, cache=cache, at_ns=LATER_NS)


_RAW = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")


def raw_header(
    name: bytes,
    typeflag: bytes = b"0",
    *,
    size: bytes | int = 0,
    mode: bytes | int = 0o644,
    mtime: bytes | int = 0,
    target: bytes = b"",
    prefix: bytes = b"",
    magic: bytes = b"ustar\0",
) -> bytes:
    """A tar header with a right checksum around any fields."""
    fields = [b"%07o\0" % mode if isinstance(mode, int) else mode, b"0000000\0", b"0000000\0"]
    fields += [b"%011o\0" % value if isinstance(value, int) else value for value in (size, mtime)]
    block = _RAW.pack(name, *fields, b" " * 8, typeflag, target, magic, b"00", b"", b"", b"", b"", prefix)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def raw_entry(name: bytes, content: bytes = b"", typeflag: bytes = b"0") -> bytes:
    """Header, content and padding."""
    return raw_header(name, typeflag, size=len(content)) + content + bytes(-len(content) % 512)


def raw_pax(*records: tuple[bytes, bytes]) -> bytes:
    """An extended header of these records."""
    data = b""
    for key, value in records:
        rest = len(key) + len(value) + 3
        length = next(n for n in range(rest, rest + 9) if n == rest + len(str(n)))
        data += b"%d %s=%s\n" % (length, key, value)
    return raw_entry(b"././@PaxHeader", data, b"x")


END = bytes(1024)


@contextmanager
def _limited(which: int, limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def no_file_larger_than(limit_bytes: int) -> AbstractContextManager[None]:
    """A disk that refuses to take more."""
    return _limited(resource.RLIMIT_FSIZE, limit_bytes)


def no_more_open_files() -> AbstractContextManager[None]:
    """A process that has as many files open as it may."""
    return _limited(resource.RLIMIT_NOFILE, 3)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the privilege to read everything, which tests run by root have."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
