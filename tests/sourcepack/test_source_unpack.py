"""Unpacking: what packs hold comes out, everything else is refused and nothing is written outside."""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sourcetrees import (
    END,
    Node,
    make_tree,
    no_file_larger_than,
    nodes_of,
    packed,
    raw_entry,
    raw_header,
    raw_pax,
    unpack,
)

import biruda
from biruda.errors import EnvironmentFault, PeerError
from biruda.sourcepack.places import Place, PlaceByDescriptor, PlaceByPath
from biruda.sourcepack.unpack import Unpacker

PLACES = [PlaceByDescriptor, PlaceByPath]


@pytest.fixture(params=PLACES)
def place_kind(request: pytest.FixtureRequest) -> type[PlaceByDescriptor] | type[PlaceByPath]:
    kind: type[PlaceByDescriptor] | type[PlaceByPath] = request.param
    return kind


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make_tree(
        tmp_path / "tree", {"a/b/c": "c", "a/d": b"d" * 3000, "e": "", "f/g/h/i": "i", "f/j": "j", "k": None}
    )
    (root / "a" / "d").chmod(0o400)
    (root / "f").chmod(0o500)
    (root / "link").symlink_to("/etc/passwd")
    for path in (root / "f", root / "k", root / "a" / "b"):
        os.utime(path, (77, 77))
    os.utime(root / "link", (99, 99), follow_symlinks=False)
    return root


def feed(tar: bytes, directory: Path, place: Place | None = None, **limits: int) -> None:
    with Unpacker(directory, place=place, **limits) as unpacker:
        unpacker.feed(tar)


@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513, 1 << 20])
def test_pieces_may_have_any_size(tree: Path, tmp_path: Path, piece: int) -> None:
    tar, _ = packed(tree)
    assert unpack(tar, tmp_path / "out", piece) == nodes_of(tree)


def test_every_kind_of_place_makes_the_same(tree: Path, tmp_path: Path, place_kind: type[PlaceByPath]) -> None:
    tar, _ = packed(tree)
    out = tmp_path / "out"
    out.mkdir()
    feed(tar, out, place_kind(out))
    assert nodes_of(out) == nodes_of(tree)


def test_data_may_be_any_buffer(tree: Path, tmp_path: Path) -> None:
    tar, _ = packed(tree)
    buffer = bytearray(tar)
    with Unpacker(tmp_path) as unpacker:
        unpacker.feed(buffer)
        buffer.clear()  # nothing holds on to it
    assert nodes_of(tmp_path / "f") == nodes_of(tree / "f")


def test_every_truncation_is_told(tree: Path, tmp_path: Path) -> None:
    tar, _ = packed(tree)
    for number, cut in enumerate([*range(0, len(tar), 512), 1, 700, len(tar) - 1]):
        out = tmp_path / str(number)
        out.mkdir()
        unpacker = Unpacker(out)
        unpacker.feed(tar[:cut])
        with pytest.raises(PeerError, match="ends too early"):
            unpacker.close()
        unpacker.close()


def test_directory_must_exist(tmp_path: Path, place_kind: type[PlaceByPath]) -> None:
    with pytest.raises(OSError, match=r"(?i)directory"):
        place_kind(tmp_path / "none")
    with pytest.raises(EnvironmentFault, match="cannot unpack here"):
        Unpacker(tmp_path / "none")


LINK_OUT = raw_header(b"out", b"2", target=b"..")

HOSTILE = {
    "absolute": (raw_entry(b"/tmp/evil", b"x"), "/tmp/evil.*absolute"),
    "parent": (raw_entry(b"../evil", b"x"), r"\.\./evil"),
    "parent inside": (raw_entry(b"a", b"", b"5") + raw_entry(b"a/../../evil", b"x"), r"a/\.\./\.\./evil"),
    "parent directory": (raw_entry(b"../", b"", b"5"), r"\.\./"),
    "dot": (raw_entry(b"./a", b"x"), r"\./a"),
    "no name": (raw_entry(b"", b"x"), "empty name"),
    "absolute by prefix": (raw_header(b"evil", prefix=b"/tmp"), "/tmp/evil.*absolute"),
    "absolute by pax": (raw_pax((b"path", b"/tmp/evil")) + raw_entry(b"a", b"x"), "/tmp/evil.*absolute"),
    "NUL by pax": (raw_pax((b"path", b"a\0b")) + raw_entry(b"a", b"x"), "NUL"),
    "through a link": (LINK_OUT + raw_entry(b"out/evil", b"x"), "out/evil: .*out is no directory"),
    "link through a link": (LINK_OUT + raw_header(b"out/evil", b"2", target=b"x"), "out/evil: "),
    "directory over a link": (LINK_OUT + raw_entry(b"out", b"", b"5"), "out: .*twice"),
    "file over a link": (LINK_OUT + raw_entry(b"out", b"x"), "out: .*twice"),
    "twice": (raw_entry(b"a", b"x") + raw_entry(b"a", b"y"), "a: .*twice"),
    "not in order": (raw_entry(b"b", b"x") + raw_entry(b"a", b"y"), "a: .*order"),
    "no directory for it": (raw_entry(b"a/b", b"x"), "a/b: .*a is no directory"),
    "in a file": (raw_entry(b"a", b"x") + raw_entry(b"a/b", b"y"), "a/b: .*a is no directory"),
    "hard link": (raw_header(b"a", b"1", target=b"/etc/passwd"), "a: .*hard link"),
    "character device": (raw_header(b"a", b"3"), "a: .*device"),
    "block device": (raw_header(b"a", b"4"), "a: .*device"),
    "fifo": (raw_header(b"a", b"6"), "a: .*fifo"),
    "old file": (raw_header(b"a", b"\0"), "a: .*kind"),
    "long name of GNU": (raw_entry(b"././@LongLink", b"x" * 300, b"L"), "refused"),
    "global header": (raw_entry(b"a", b"13 path=/tmp\n", b"g"), "a: .*kind"),
    "set-user-ID": (raw_header(b"a", mode=0o4755), "a: .*set-user-ID"),
    "set-group-ID directory": (raw_header(b"a/", b"5", mode=0o2755), "a/: .*set-group-ID"),
    "sticky": (raw_header(b"a/", b"5", mode=0o1777), "a/: .*sticky"),
    "part too long": (raw_pax((b"path", b"x" * 256)) + raw_entry(b"a"), "xxx: .*256"),
    "path too long": (raw_pax((b"path", b"/".join([b"x" * 100] * 41))) + raw_entry(b"a"), "xxx: .*at most 4095"),
    "negative size": (raw_pax((b"size", b"-1")) + raw_entry(b"a"), "a: .*size of -1"),
    "huge size": (raw_pax((b"size", b"9" * 19)) + raw_entry(b"a"), "a: .*size of 9999"),
    "size of a directory": (raw_header(b"a/", b"5", size=5), "a/: .*size of 5"),
    "size of a link": (raw_header(b"a", b"2", size=5, target=b"t"), "a: .*size of 5"),
    "size in binary": (raw_header(b"a", size=b"\x80" + bytes(11)), "a: .*octal"),
    "size with a sign": (raw_header(b"a", size=b"-0000000001\0"), "a: .*octal"),
    "empty size": (raw_header(b"a", size=bytes(12)), "a: .*octal"),
    "mode that is no number": (raw_header(b"a", mode=b"rwxr-xr-"), "a: .*octal"),
    "impossible time": (raw_pax((b"mtime", b"9" * 18)) + raw_entry(b"a"), "a: .*modification time"),
    "time with a fraction": (raw_pax((b"mtime", b"1.5")) + raw_entry(b"a"), "a: .*malformed"),
    "link without target": (raw_header(b"a", b"2"), "a: .*link target"),
    "link with a long target": (raw_pax((b"linkpath", b"t" * 5000)) + raw_header(b"a", b"2"), "a: .*link target"),
    "file with a target": (raw_header(b"a", target=b"t"), "a: .*no link"),
    "unknown pax record": (raw_pax((b"uid", b"0")) + raw_entry(b"a"), "a: .*malformed"),
    "repeated pax record": (raw_pax((b"path", b"a"), (b"path", b"b")) + raw_entry(b"a"), "a: .*malformed"),
    "pax record too long": (raw_entry(b"h", b"99 path=a\n", b"x") + raw_entry(b"a"), "a: .*malformed"),
    "pax record too short": (raw_entry(b"h", b"3 path=a\n", b"x") + raw_entry(b"a"), "a: .*malformed"),
    "pax without an entry": (raw_pax((b"path", b"a")), "without an entry"),
    "pax twice": (raw_pax((b"path", b"a")) * 2, "extended header"),
    "pax without end": (raw_header(b"h", b"x", size=1 << 30), "h: .*extended header"),
    "old magic": (raw_header(b"a", magic=b"ustar "), "a: .*ustar"),
    "checksum": (raw_header(b"a").replace(b"0000644", b"0000645"), "a: .*checksum"),
    "garbage": (b"\xff" * 512, "not the header"),
    "entry after a zero block": (bytes(512) + raw_entry(b"a"), "a: .*behind the end"),
    "bytes after the end": (END + raw_entry(b"a"), "bytes after its end"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_entry_is_refused_by_name(tmp_path: Path, name: str, place_kind: type[PlaceByPath]) -> None:
    tar, complaint = HOSTILE[name]
    out = tmp_path / "canary" / "out"
    out.mkdir(parents=True)
    with pytest.raises(PeerError, match=complaint):
        feed(tar + END, out, place_kind(out))
    assert {path.name for path in (tmp_path / "canary").iterdir()} == {"out"}


def test_limits_name_the_entry_that_breaks_them(tmp_path: Path) -> None:
    tar = raw_entry(b"a", b"12345") + raw_entry(b"b", b"12345") + END
    with pytest.raises(PeerError, match=r"b: .*more than 1 entries"):
        feed(tar, make_tree(tmp_path / "1", {}), max_entries=1)
    with pytest.raises(PeerError, match=r"b: .*size of 5 bytes; the whole pack may have 9"):
        feed(tar, make_tree(tmp_path / "2", {}), max_bytes=9)
    feed(tar, make_tree(tmp_path / "3", {}), max_bytes=10, max_entries=2)


@pytest.mark.parametrize("planted", ["a", "a/b"])
def test_what_lies_in_the_directory_already_is_not_written_to(
    tmp_path: Path, planted: str, place_kind: type[PlaceByPath]
) -> None:
    outside = make_tree(tmp_path / "outside", {"b": "kept"})
    out = make_tree(tmp_path / "out", {})
    if planted == "a":
        (out / "a").symlink_to(outside)
    else:
        (out / "a").mkdir()
    with pytest.raises(EnvironmentFault, match=r"^a: cannot be unpacked: File exists"):
        feed(raw_entry(b"a/", b"", b"5") + raw_entry(b"a/b", b"evil") + END, out, place_kind(out))
    assert (outside / "b").read_text() == "kept"


def test_link_that_somebody_plants_meanwhile_is_not_followed(tmp_path: Path, place_kind: type[PlaceByPath]) -> None:
    outside = make_tree(tmp_path / "outside", {"keep": ""})
    out = make_tree(tmp_path / "out", {})
    unpacker = Unpacker(out, place=place_kind(out))
    unpacker.feed(raw_entry(b"a/", b"", b"5") + raw_entry(b"a/b/", b"", b"5"))
    (out / "a" / "b").rmdir()
    (out / "a" / "b").symlink_to(outside)
    with pytest.raises(EnvironmentFault, match=r"^a/b/c: cannot"):
        unpacker.feed(raw_entry(b"a/b/c", b"evil"))
    assert {path.name for path in outside.iterdir()} == {"keep"}


def test_after_an_error_nothing_is_open_and_nothing_more_is_taken(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    unpacker = Unpacker(tmp_path)
    unpacker.feed(raw_header(b"a", size=5000) + b"half")
    with pytest.raises(PeerError):
        unpacker.feed(b"x" * 10_000)
    unpacker.close()
    with pytest.raises(ValueError, match="after its end"):
        unpacker.feed(b"x")
    assert len(os.listdir("/proc/self/fd")) == before


def test_disk_that_refuses_is_an_environment_fault(tmp_path: Path) -> None:
    with no_file_larger_than(1000), pytest.raises(EnvironmentFault, match=r"^a: cannot be unpacked: File too large"):
        feed(raw_entry(b"a", bytes(5000)) + END, tmp_path)


def test_worker_needs_the_standard_library_alone() -> None:
    root = Path(biruda.__file__).parents[1]
    script = f"import sys; sys.path.insert(0, {str(root)!r}); import biruda.sourcepack.unpack; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", script]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    parts = {f"biruda.sourcepack.{name}" for name in ("entry", "names", "places", "tarreader", "unpack")}
    ours = {name for name in loaded if name.startswith("biruda")}
    assert ours == {"biruda", "biruda.errors", "biruda.sourcepack", *parts}
    assert not {"asyncio", "dataclasses", "hashlib", "logging", "tarfile", "tempfile"} & loaded


NAMES = [
    b"a",
    b"a/b",
    b"a/b/c",
    b"b",
    b"..",
    b"../evil",
    b"/tmp",
    b"a/../../evil",
    b"l",
    b"l/evil",
    b"l/l",
    b"",
    b"c/",
    b"./d",
]
TARGETS = [b"..", b".", b"/", b"../canary-file", b"a", b"l", b"t" * 100]
names = st.sampled_from(NAMES)
pax_records = st.one_of(
    st.tuples(st.just(b"path"), names),
    st.tuples(st.just(b"linkpath"), st.sampled_from(TARGETS)),
    st.tuples(st.sampled_from([b"size", b"mtime"]), st.sampled_from([b"0", b"5", b"-1", b"9" * 19, b"1e3"])),
)
hostile_entries = st.one_of(
    st.builds(raw_entry, names, st.binary(max_size=600), st.sampled_from([b"0", b"5", b"2", b"1", b"x", b"L", b"6"])),
    st.builds(
        raw_header,
        names,
        st.sampled_from([b"0", b"5", b"2", b"2", b"5"]),
        mode=st.sampled_from([0o644, 0o755, 0, 0o4755, b"junk"]),
        size=st.sampled_from([0, 0, 0, 100, 8**11 - 1, b"\xff" * 12]),
        mtime=st.sampled_from([0, 8**11 - 1]),
        target=st.sampled_from([b"", *TARGETS]),
        prefix=st.sampled_from([b"", b"", b"a", b"l", b"/tmp"]),
    ),
    st.lists(pax_records, min_size=1, max_size=3).map(lambda records: raw_pax(*records)),
    st.sampled_from([END, bytes(512), b"\xff" * 512, b"x"]),
)


def unpack_within_canary(tar: bytes, cuts: list[int], by_path: bool) -> None:
    """Unpacks what may be anything; all that may happen is a PeerError, and nothing outside changes."""
    with tempfile.TemporaryDirectory() as name:
        canary = Path(name) / "canary"
        out = make_tree(canary / "out", {})
        make_tree(canary, {"canary-file": "untouched", "other/file": "untouched"})
        before = {path: node for path, node in nodes_of(canary).items() if not path.startswith(b"out")}
        try:
            with Unpacker(out, place=PlaceByPath(out) if by_path else None) as unpacker:
                last = 0
                for cut in [*sorted(cut % (len(tar) + 1) for cut in cuts), len(tar)]:
                    unpacker.feed(tar[last:cut])
                    last = cut
        except PeerError:
            pass
        after = {path: node for path, node in nodes_of(canary).items() if not path.startswith(b"out")}
        assert after == before
        for path in out.rglob("*"):
            assert path.is_symlink() or path.stat().st_mode & 0o7000 == 0


@settings(max_examples=200, deadline=None, database=None)
@given(
    entries=st.lists(hostile_entries, max_size=6),
    cuts=st.lists(st.integers(0, 1 << 16), max_size=4),
    by_path=st.booleans(),
)
def test_no_sequence_of_entries_writes_outside(entries: list[bytes], cuts: list[int], by_path: bool) -> None:
    unpack_within_canary(b"".join(entries) + END, cuts, by_path)


@settings(max_examples=200, deadline=None, database=None)
@given(seed=st.integers(0, 2**32), by_path=st.booleans())
def test_no_damage_to_a_pack_does_more_than_stop_it(seed: int, by_path: bool) -> None:
    chance = random.Random(seed)
    tar = bytearray(
        raw_entry(b"a/", b"", b"5")
        + raw_entry(b"a/f", b"content" * 100)
        + raw_pax((b"path", b"b" * 120), (b"mtime", b"-5"))
        + raw_entry(b"b")
        + raw_header(b"l", b"2", target=b"..")
        + END
    )
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(tar))
        if chance.random() < 0.5:
            tar[at] = chance.randrange(256)
        else:
            tar[at : at + chance.randint(0, 600)] = tar[chance.randrange(len(tar)) :][: chance.randint(0, 600)]
    unpack_within_canary(bytes(tar), [chance.randrange(1 << 16)], by_path)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    tar = raw_header(b"a/", b"5", mode=0o777) + raw_header(b"a/b", mode=0o666, mtime=9) + END
    before = os.umask(0o077)
    try:
        feed(tar, tmp_path)
    finally:
        os.umask(before)
    found = nodes_of(tmp_path)
    assert found[b"a"].mode == 0o777
    assert found[b"a/b"] == Node("file", 0o666, 9, b"")
