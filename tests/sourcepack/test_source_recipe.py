"""Recipes and chunk streams as they come from a peer, who may send anything."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from sourcetrees import make_tree

from biruda.errors import PeerError
from biruda.sourcepack import recipe, wire
from biruda.sourcepack.entry import CHUNK_BYTES, Entry, EntryKind
from biruda.sourcepack.pack import scan

FILE, LINK, DIRECTORY = EntryKind.FILE, EntryKind.LINK, EntryKind.DIRECTORY
GOOD = [
    Entry(b"a", DIRECTORY, 0o755, 5),
    Entry(b"a/f", FILE, 0o644, 6, 3, digests=bytes(32)),
    Entry(b"a/g", FILE, 0o644, 6, CHUNK_BYTES + 1, digests=bytes(range(64))),
    Entry(b"l", LINK, 0o777, -7, target=b"../out"),
]
LIMIT = 1 << 30


def test_recipe_says_what_was_put_in() -> None:
    decoded = recipe.decode(recipe.encode(GOOD), max_tar_bytes=LIMIT)
    assert list(decoded.entries) == GOOD
    assert [chunk.length for chunk in decoded.chunks] == [3, CHUNK_BYTES, 1]


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ([Entry(b"/etc/passwd", FILE, 0o644, 0)], "/etc/passwd.*absolute"),
        ([Entry(b"..", DIRECTORY, 0o755, 0)], r"\.\..*part"),
        ([Entry(b"a", DIRECTORY, 0o755, 0), Entry(b"a/../b", FILE, 0o644, 0)], r"a/\.\./b"),
        ([Entry(b"a//b", FILE, 0o644, 0)], "a//b"),
        ([Entry(b"a/", FILE, 0o644, 0)], "a/"),
        ([Entry(b"a\0b", FILE, 0o644, 0)], "NUL"),
        ([Entry(b"", FILE, 0o644, 0)], "empty name"),
        ([Entry(b"x" * 256, FILE, 0o644, 0)], "256 bytes"),
        ([Entry(b"/".join([b"x" * 200] * 21), FILE, 0o644, 0)], "at most 4095"),
        ([Entry(b"b", FILE, 0o644, 0), Entry(b"a", FILE, 0o644, 0)], "^a: .*order"),
        ([Entry(b"a", FILE, 0o644, 0), Entry(b"a", FILE, 0o644, 0)], "^a: .*twice"),
        ([Entry(b"a/b", FILE, 0o644, 0)], "a/b: .*no directory"),
        ([Entry(b"a", LINK, 0o777, 0, target=b"/tmp"), Entry(b"a/b", FILE, 0o644, 0)], "a/b: .*no directory"),
        ([Entry(b"a", FILE, 0o4755, 0)], "a: .*permission bits"),
        ([Entry(b"a", DIRECTORY, 0o1777, 0)], "a: .*permission bits"),
        ([Entry(b"a", LINK, 0o644, 0, target=b"t")], "a: .*not 777"),
        ([Entry(b"a", LINK, 0o777, 0)], "a: .*link target"),
        ([Entry(b"a", LINK, 0o777, 0, target=b"t\0")], "a: .*link target"),
        ([Entry(b"a", LINK, 0o777, 0, target=b"t" * 5000)], "a: .*link target"),
        ([Entry(b"a", FILE, 0o644, 1 << 50)], "a: .*modification time"),
        ([Entry(b"a", DIRECTORY, 0o755, 0, 5, digests=bytes(32))], "a: .*directory with content"),
        ([Entry(b"a", FILE, 0o644, 0, LIMIT, digests=bytes(32 * 1024))], "a: .*larger than"),
        ([Entry(b"a", FILE, 0o644, 0, 5)], "ends within"),
        ([Entry(b"a", FILE, 0o644, 0, 2**64 - 1)], "ends within"),
    ],
)
def test_entry_that_no_pack_may_have_is_named(entries: list[Entry], complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        recipe.decode(recipe.encode(entries), max_tar_bytes=LIMIT)


def test_count_and_end_must_be_right() -> None:
    good = recipe.encode(GOOD)
    more = recipe.encode_start(5) + good[len(recipe.encode_start(4)) :]
    for bad in (b"", good[:10], good[:-1], good + b"\0", more, b"something else" + good):
        with pytest.raises(PeerError):
            recipe.decode(bad, max_tar_bytes=LIMIT)


@settings(max_examples=300, database=None)
@given(data=st.data())
def test_whatever_is_accepted_is_canonical(data: st.DataObject) -> None:
    raw = bytearray(recipe.encode(GOOD))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        cut = data.draw(st.integers(0, 4))
        raw[at : at + cut] = data.draw(st.binary(max_size=4))
    try:
        decoded = recipe.decode(bytes(raw), max_tar_bytes=LIMIT)
    except PeerError:
        return
    assert recipe.encode(decoded.entries) == raw


def test_compressed_recipe_comes_back(tmp_path: Path) -> None:
    plan = scan(make_tree(tmp_path, {f"file{number}": str(number) for number in range(300)}))
    sent = wire.compress_recipe(plan.recipe)
    assert len(sent) < len(plan.recipe)
    assert wire.decompress_recipe(sent, max_bytes=len(plan.recipe)) == plan.recipe
    with pytest.raises(PeerError, match="larger than"):
        wire.decompress_recipe(sent, max_bytes=len(plan.recipe) - 1)


def test_recipe_that_is_no_whole_frame_is_refused() -> None:
    sent = wire.compress_recipe(bytes(100_000))
    wide = zstd.compress(os.urandom(1 << 20) * 20, options={zstd.CompressionParameter.window_log: 27})
    for bad in (b"", b"x" * 50, sent[:-1], sent + b"x", sent + sent, wide):
        with pytest.raises(PeerError):
            wire.decompress_recipe(bad, max_bytes=1 << 25)


def pieces_of(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@settings(max_examples=30, deadline=None, database=None)
@given(
    chunks=st.lists(st.one_of(st.binary(min_size=1, max_size=200), st.just(bytes(CHUNK_BYTES))), max_size=8),
    size=st.integers(1, 5000),
)
def test_chunk_stream_comes_back_however_it_is_cut(chunks: list[bytes], size: int) -> None:
    stream = b"".join(wire.encode_chunks(chunks))
    assert list(wire.decode_chunks(pieces_of(stream, size))) == chunks
    assert list(wire.decode_chunks([b"", stream, b""])) == chunks


def test_damaged_chunk_streams_are_refused() -> None:
    stream = b"".join(wire.encode_chunks([b"one" * 1000, b"two"]))
    record = struct.pack(">I", 3) + b"abc"
    bad_streams = [
        b"",
        b"no zstd at all",
        stream[:-1],
        stream + b"x",
        stream + stream,
        zstd.compress(record[:-1]),
        zstd.compress(record[:2]),
        zstd.compress(struct.pack(">I", 0)),
        zstd.compress(struct.pack(">I", CHUNK_BYTES + 1) + bytes(CHUNK_BYTES + 1)),
    ]
    for bad in bad_streams:
        for size in (1, 1 << 20):
            with pytest.raises(PeerError):
                list(wire.decode_chunks(pieces_of(bad, size)))


def test_chunk_stream_is_made_and_read_piece_by_piece() -> None:
    chunk = os.urandom(CHUNK_BYTES)
    made = 0

    def endless() -> Iterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield chunk

    arriving = wire.decode_chunks(wire.encode_chunks(endless()))
    assert [next(arriving) for _ in range(3)] == [chunk] * 3
    assert made < 10


@settings(max_examples=200, deadline=None, database=None)
@given(places=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=4), st.integers(0, 4)), max_size=4))
def test_a_damaged_recipe_is_a_recipe_or_refused(places: list[tuple[int, bytes, int]]) -> None:
    data = recipe.encode(GOOD)
    for place, put, lost in places:
        place %= len(data) + 1
        data = data[:place] + put + data[place + lost :]
    try:
        decoded = recipe.decode(data, max_tar_bytes=LIMIT)
    except PeerError:
        return
    assert recipe.encode(list(decoded.entries)) == data


@settings(max_examples=150, deadline=None, database=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=4), st.integers(0, 4)), max_size=4),
    inside=st.booleans(),
    size=st.integers(1, 500),
)
def test_a_damaged_chunk_stream_gives_whole_chunks_or_is_refused(
    places: list[tuple[int, bytes, int]], inside: bool, size: int
) -> None:
    chunks = [b"one" * 100, b"two", os.urandom(300)]
    data = b"".join(struct.pack(">I", len(chunk)) + chunk for chunk in chunks) if inside else None
    data = data or b"".join(wire.encode_chunks(chunks))
    for place, put, lost in places:
        place %= len(data) + 1
        data = data[:place] + put + data[place + lost :]
    try:
        for chunk in wire.decode_chunks(pieces_of(zstd.compress(data) if inside else data, size)):
            assert 0 < len(chunk) <= CHUNK_BYTES
    except PeerError:
        pass
