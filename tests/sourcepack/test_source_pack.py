"""Packing: the tar bytes, read by others and by us; scanning; files that change meanwhile."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sourcetrees import MTIME, make_tree, nodes_of, packed, scan_later, unpack

from biruda.errors import PeerError, UserError
from biruda.sourcepack import recipe, statcache
from biruda.sourcepack.entry import Entry, EntryKind
from biruda.sourcepack.pack import pack, scan
from biruda.sourcepack.tarformat import END, header, header_bytes

MIB = 1 << 20


@pytest.fixture
def odd_tree(tmp_path: Path) -> Path:
    """Everything that is difficult about names, kinds, modes, sizes and times."""
    root = make_tree(
        tmp_path / "odd",
        {
            "empty file": "",
            "line\nbreak": "n",
            "script": "#!/bin/sh\n",
            "empty directory": None,
            "unicode/\u00e9\u4e16": "u",
            "x" * 99: "99",
            "x" * 100: "100",
            "x" * 101: "101",
            "d" * 99 + "/" + "f" * 99: "split",
            "d" * 99 + "/" + "f" * 101: "not to be split",
            "/".join(["p" * 74] * 4): "300 characters",
            "large": b"0123456789abcdef" * (MIB // 8) + b"end",
        },
    )
    (root / "script").chmod(0o755)
    (root / "x").mkdir(mode=0o500)
    with open(os.fsencode(root) + b"/not \xff utf-8", "wb") as file:
        file.write(b"b")
    os.mkdir(os.fsencode(root) + b"/" + b"\xfe" * 120)
    with (root / "sparse").open("wb") as file:
        file.truncate(20 * MIB + 1)
    for name, target in {"link": "script", "dangling": "no/where", "absolute": "/etc/passwd", "up": "../.."}.items():
        (root / name).symlink_to(target)
    (root / "long link").symlink_to("t" * 300)
    os.link(root / "script", root / "hard link")
    os.utime(root / "large", ns=(0, MTIME * 10**9 + 999_999_999))
    os.utime(root / "script", (0, -5))
    os.utime(root / "line\nbreak", (0, 2**33 + 5))
    return root


def test_what_was_packed_is_unpacked(odd_tree: Path, tmp_path: Path) -> None:
    tar, summary = packed(odd_tree)
    assert unpack(tar, tmp_path / "out") == nodes_of(odd_tree)
    assert summary.bytes == len(tar)
    assert summary.files == sum(node.kind == "file" for node in nodes_of(odd_tree).values())
    assert summary.skipped == ()
    names = os.fsencode(tmp_path / "out")
    assert os.lstat(names + b"/hard link").st_nlink == 1


def test_packing_again_gives_the_same_bytes_wherever_the_tree_lies(odd_tree: Path, tmp_path: Path) -> None:
    tar, summary = packed(odd_tree)
    copy, _ = packed(odd_tree)
    assert copy == tar
    unpack(tar, tmp_path / "out")
    assert packed(tmp_path / "out") == (tar, summary)


def test_digest_is_that_of_the_recipe(odd_tree: Path) -> None:
    plan = scan(odd_tree)
    tar, summary = packed(odd_tree)
    assert plan.summary == summary
    assert plan.digest == summary.digest == hashlib.sha256(plan.recipe).hexdigest()
    decoded = recipe.decode(plan.recipe, max_tar_bytes=1 << 30)
    assert decoded.tar_bytes == len(tar)
    for chunk in decoded.chunks:
        content = tar[chunk.offset : chunk.offset + chunk.length]
        assert hashlib.sha256(content).digest() == chunk.sha256
    assert b"".join(plan.chunks(range(len(decoded.chunks)))) == b"".join(
        tar[chunk.offset : chunk.offset + chunk.length] for chunk in decoded.chunks
    )


def test_tarfile_reads_it(odd_tree: Path) -> None:
    tar, _ = packed(odd_tree)
    expected = nodes_of(odd_tree)
    with tarfile.open(fileobj=io.BytesIO(tar), errorlevel=2) as archive:
        members = archive.getmembers()
        for member in members:
            node = expected.pop(os.fsencode(member.name))
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert (member.mode, int(member.mtime)) == (node.mode, node.mtime)
            if node.kind == "file":
                content = archive.extractfile(member)
                assert content is not None
                assert content.read() == node.content
            else:
                assert member.isdir() if node.kind == "directory" else os.fsencode(member.linkname) == node.content
    assert expected == {}
    assert [os.fsencode(member.name) for member in members] == sorted(os.fsencode(member.name) for member in members)


def has_gnu_tar() -> bool:
    """Whether the tar of this system is the one whose words the test uses."""
    return (
        shutil.which("tar") is not None and b"GNU" in subprocess.run(["tar", "--version"], capture_output=True).stdout
    )


@pytest.mark.skipif(not has_gnu_tar(), reason="GNU tar is not installed")
def test_tar_extracts_it(odd_tree: Path, tmp_path: Path) -> None:
    tar, _ = packed(odd_tree)
    out = tmp_path / "out"
    out.mkdir()
    command = ["tar", "--extract", "--preserve-permissions", "--warning=no-timestamp", "-C", str(out)]
    done = subprocess.run(command, input=tar, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert nodes_of(out) == nodes_of(odd_tree)


entries = st.builds(
    Entry,
    path=st.lists(
        st.binary(min_size=1, max_size=120).map(lambda raw: raw.translate(None, b"\0/.") or b"n"), min_size=1
    ).map(b"/".join),
    kind=st.sampled_from(EntryKind),
    mode=st.integers(0, 0o777),
    mtime=st.integers(-(2**39), 2**39),
    size=st.integers(0, 2**40),
    target=st.binary(min_size=1, max_size=300).map(lambda raw: raw.translate(None, b"\0") or b"t"),
)


@settings(database=None)
@given(entry=entries)
def test_every_header_means_the_same_to_tarfile(entry: Entry) -> None:
    entry = entry._replace(size=entry.size if entry.kind is EntryKind.FILE else 0)
    entry = entry._replace(target=entry.target if entry.kind is EntryKind.LINK else b"")
    data = header(entry)
    assert len(data) == header_bytes(entry)
    with tarfile.open(fileobj=io.BytesIO(data + END), encoding="utf-8", errors="surrogateescape") as archive:
        member = archive.next()
    assert member is not None
    assert os.fsencode(member.name) == entry.path
    assert (member.type, member.mode) == (bytes((entry.kind,)), entry.mode)
    assert (member.size, int(member.mtime), os.fsencode(member.linkname)) == (entry.size, entry.mtime, entry.target)


def test_progress_ends_at_all_bytes(odd_tree: Path, tmp_path: Path) -> None:
    total = sum(len(node.content) for node in nodes_of(odd_tree).values() if node.kind == "file")
    for run in (
        lambda told: pack(odd_tree, lambda data: None, progress=told),
        lambda told: scan(odd_tree, progress=told),
    ):
        seen: list[tuple[int, int]] = []
        run(lambda done, of, seen=seen: seen.append((done, of)))
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)


def test_file_that_grows_is_cut_to_the_size_it_had(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "t", {"grows": b"a" * (2 * MIB), "z": "z"})
    output = io.BytesIO()

    def write(data: bytes | memoryview) -> None:
        if not output.tell():
            with (root / "grows").open("ab") as file:
                file.write(b"more")
        output.write(data)

    summary = pack(root, write)
    assert unpack(output.getvalue(), tmp_path / "out")[b"grows"].content == b"a" * (2 * MIB)
    assert summary.bytes == len(output.getvalue())


def test_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "t", {"shrinks": b"a" * (2 * MIB)})
    with pytest.raises(UserError, match=r"^shrinks: became shorter"):
        pack(root, lambda data: os.truncate(root / "shrinks", MIB + 1))


@pytest.mark.parametrize("change", ["removed", "fifo", "link"])
def test_file_that_is_no_file_any_more_is_named(tmp_path: Path, change: str) -> None:
    root = make_tree(tmp_path / "t", {"first": b"a" * MIB, "then": "x"})

    def write(data: bytes | memoryview) -> None:
        (root / "then").unlink(missing_ok=True)
        if change == "fifo":
            os.mkfifo(root / "then")
        elif change == "link":
            (root / "then").symlink_to("/etc/passwd")

    with pytest.raises(UserError, match=r"^then: changed while"):
        pack(root, write)


def test_chunks_of_a_changed_file_are_refused(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "t", {"a": "one", "b": "two", "c": b"c" * (MIB + 5)})
    plan = scan(root)
    make_tree(root, {"b": "TWO"})
    assert list(plan.chunks([0, 2, 3])) == [b"one", b"c" * MIB, b"c" * 5]
    with pytest.raises(UserError, match=r"^b: changed while"):
        list(plan.chunks([1]))
    with pytest.raises(PeerError, match=r"chunk 4 was asked for; it has 4"):
        list(plan.chunks([4]))


class TestStatCache:
    def test_remembered_files_are_not_read_again(self, tmp_path: Path) -> None:
        root = make_tree(tmp_path / "t", {"a": "one", "b": b"b" * (MIB + 1), "c/d": "three"})
        cache = tmp_path / "cache"
        first = scan_later(root, cache)
        assert scan_later(root, cache).recipe == first.recipe
        known = statcache.load(cache)
        assert set(known) == {b"a", b"b", b"c/d"}
        marked = {name: kept._replace(digests=bytes(len(kept.digests))) for name, kept in known.items()}
        statcache.save(cache, marked.items())
        decoded = recipe.decode(scan_later(root, cache).recipe, max_tar_bytes=MIB * 9)
        assert {chunk.sha256 for chunk in decoded.chunks} == {bytes(32)}

    def test_changed_files_are_read_again(self, tmp_path: Path) -> None:
        root = make_tree(tmp_path / "t", {"a": "one", "b": "two"})
        cache = tmp_path / "cache"
        scan_later(root, cache)
        make_tree(root, {"a": "ONE"})  # the same size and time: only ctime tells
        assert scan_later(root, cache).recipe == scan(root).recipe
        (root / "b").unlink()
        scan_later(root, cache)
        assert set(statcache.load(cache)) == {b"a"}

    def test_mode_and_time_come_from_the_file(self, tmp_path: Path) -> None:
        root = make_tree(tmp_path / "t", {"a": "one"})
        cache = tmp_path / "cache"
        scan_later(root, cache)
        (root / "a").chmod(0o700)
        os.utime(root / "a", (7, 7))
        (entry,) = recipe.decode(scan_later(root, cache).recipe, max_tar_bytes=MIB).entries
        assert (entry.mode, entry.mtime) == (0o700, 7)

    def test_file_that_just_changed_is_not_remembered(self, tmp_path: Path) -> None:
        root = make_tree(tmp_path / "t", {"a": "one"})
        changed_ns = (root / "a").stat().st_ctime_ns
        cache = tmp_path / "cache"
        scan(root, cache=cache, at_ns=changed_ns + statcache.SETTLING_NS)
        assert statcache.load(cache) == {}
        scan(root, cache=cache, at_ns=changed_ns + statcache.SETTLING_NS + 1)
        assert set(statcache.load(cache)) == {b"a"}

    @pytest.mark.parametrize("damage", ["cut", "flip", "empty", "directory"])
    def test_damaged_cache_only_costs_time(self, tmp_path: Path, damage: str) -> None:
        root = make_tree(tmp_path / "t", {"a": "one", "b": "two"})
        cache = tmp_path / "cache"
        first = scan_later(root, cache)
        data = cache.read_bytes()
        if damage == "directory":
            cache.unlink()
            make_tree(cache, {"x": ""})
        else:
            flipped = data[:50] + bytes((data[50] ^ 1,)) + data[51:]
            cache.write_bytes({"cut": data[:-9], "flip": flipped, "empty": b""}[damage])
        assert statcache.load(cache) == {}
        assert scan_later(root, cache).recipe == first.recipe
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_name_that_no_pack_may_have_is_refused_when_packing() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = os.open(name, os.O_RDONLY)
        path = Path(name)
        try:
            for _ in range(20):  # deeper than a path may be long, as it can only be made step by step
                os.mkdir("d" * 250, dir_fd=directory)
                inner = os.open("d" * 250, os.O_RDONLY, dir_fd=directory)
                os.close(directory)
                directory = inner
            with pytest.raises(UserError, match=r"^d+/d.*cannot be packed: .*(too long|4095)"):
                packed(path)
        finally:
            os.close(directory)
            shutil.rmtree(path / ("d" * 250))
