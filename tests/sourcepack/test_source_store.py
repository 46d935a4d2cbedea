"""The packs of a daemon: how they come in by parts, are found again, and go."""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sourcetrees import (
    MTIME,
    make_tree,
    many_files,
    no_file_larger_than,
    no_more_open_files,
    nodes_of,
    packed,
    scan_later,
    send,
    store_with,
    unpack,
)

from biruda.errors import EnvironmentFault, PeerError, UserError
from biruda.sourcepack import recipe
from biruda.sourcepack.entry import CHUNK_BYTES
from biruda.sourcepack.pack import scan
from biruda.sourcepack.packstore import PackStore


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(
        tmp_path / "tree",
        {
            "a.c": "int a;\n",
            "b/c.c": "int c;\n",
            "b/same": "int a;\n",
            "large": bytes(2 * CHUNK_BYTES) + b"end",
            "z": "",
        },
    )


@pytest.fixture
def store(tmp_path: Path) -> PackStore:
    return PackStore(tmp_path / "store")


def files_of(store: PackStore, tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "store").iterdir()}


def test_transferred_pack_is_the_packed_one(tree: Path, store: PackStore, tmp_path: Path) -> None:
    tar, summary = packed(tree)
    assert not store.has(summary.digest)
    assert send(scan(tree), store).digest == summary.digest
    assert store.has(summary.digest)
    assert store.path(summary.digest).read_bytes() == tar
    with store.open(summary.digest) as file:
        assert file.read() == tar
    assert files_of(store, tmp_path) == {f"{summary.digest}.tar", f"{summary.digest}.recipe"}
    assert unpack(tar, tmp_path / "out") == nodes_of(tree)


def test_content_that_comes_twice_is_sent_once(tree: Path, store: PackStore) -> None:
    plan = scan(tree)
    chunks = recipe.decode(plan.recipe, max_tar_bytes=1 << 30).chunks
    missing = store.missing(plan.recipe)
    assert len(chunks) == 6
    assert len(missing) == 4 == len({chunk.sha256 for chunk in chunks})
    assert missing == sorted(missing)


def test_one_changed_line_of_300_files_costs_less_than_a_hundredth(store: PackStore, tmp_path: Path) -> None:
    root = many_files(tmp_path / "tree", 300, 13_000)
    cache = tmp_path / "cache"
    first = send(scan_later(root, cache), store)
    changed = root / "dir7" / "file0107.txt"
    changed.write_bytes(changed.read_bytes().replace(b"\n", b"\nchanged", 1))
    plan = scan_later(root, cache)
    second = send(plan, store)
    assert (first.chunks, second.chunks) == (300, 1)
    assert second.bytes <= 0.01 * plan.summary.bytes
    assert second.bytes <= 0.01 * first.bytes
    assert store.path(second.digest).read_bytes() == packed(root)[0]


def test_pack_goes_on_from_store_to_store(tree: Path, store: PackStore, tmp_path: Path) -> None:
    digest = store.add_directory(tree)
    far = PackStore(tmp_path / "far")
    taken = store.recipe(digest)
    assert far.assemble(taken, store.chunks(digest, far.missing(taken))) == digest
    assert far.path(digest).read_bytes() == store.path(digest).read_bytes()
    make_tree(tree, {"b/c.c": "int changed;\n"})
    newer = store.add_directory(tree)
    missing = far.missing(store.recipe(newer))
    assert list(store.chunks(newer, missing)) == [b"int changed;\n"]
    assert far.assemble(store.recipe(newer), store.chunks(newer, missing)) == newer


def test_nothing_is_missing_of_a_pack_that_is_held(tree: Path, store: PackStore) -> None:
    digest = store.add_directory(tree)
    assert store.missing(store.recipe(digest)) == []
    assert store.assemble(store.recipe(digest), []) == digest


def test_new_store_object_finds_what_was_there(tree: Path, store: PackStore, tmp_path: Path) -> None:
    digest = store.add_directory(tree)
    again = PackStore(tmp_path / "store")
    assert again.has(digest)
    make_tree(tree, {"new": "new"})
    assert send(scan(tree), again).chunks == 1


def test_directory_is_packed_with_a_cache(tree: Path, store: PackStore, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    scan_later(tree, cache)
    assert store.add_directory(tree, cache=cache) == packed(tree)[1].digest


class TestWhatPeersDoWrong:
    def refused(self, store: PackStore, plan_recipe: bytes, chunks: Iterable[bytes], tmp_path: Path) -> str:
        with pytest.raises(PeerError) as caught:
            store.assemble(plan_recipe, chunks)
        assert files_of(store, tmp_path) == set()
        return str(caught.value)

    def test_corrupted_chunk_is_named(self, tree: Path, store: PackStore, tmp_path: Path) -> None:
        plan = scan(tree)
        chunks = list(plan.chunks(store.missing(plan.recipe)))
        chunks[1] = b"int X;\n"
        assert "chunk 1 (b/c.c, 7 bytes): what arrived has another sha256" in self.refused(
            store, plan.recipe, chunks, tmp_path
        )

    def test_chunks_in_another_order_are_refused(self, tree: Path, store: PackStore, tmp_path: Path) -> None:
        plan = scan(tree)
        chunks = list(plan.chunks(store.missing(plan.recipe)))
        assert "chunk 0 (a.c" in self.refused(store, plan.recipe, reversed(chunks), tmp_path)

    def test_chunk_that_does_not_arrive_is_named(self, tree: Path, store: PackStore, tmp_path: Path) -> None:
        plan = scan(tree)
        chunks = list(plan.chunks(store.missing(plan.recipe)))
        assert "chunk 5 (large, 3 bytes): it has not arrived" in self.refused(store, plan.recipe, chunks[:-1], tmp_path)
        assert "chunk 0 (a.c, 7 bytes)" in self.refused(store, plan.recipe, [], tmp_path)

    def test_chunks_too_many_are_refused(self, tree: Path, store: PackStore, tmp_path: Path) -> None:
        plan = scan(tree)
        chunks = list(plan.chunks(store.missing(plan.recipe)))

        def endless() -> Iterator[bytes]:
            yield from chunks
            while True:
                yield chunks[0]

        assert "does not have" in self.refused(store, plan.recipe, [*chunks, b"more"], tmp_path)
        assert "does not have" in self.refused(store, plan.recipe, endless(), tmp_path)

    def test_recipe_that_lies_about_a_length_is_refused(self, store: PackStore, tmp_path: Path) -> None:
        (tmp_path / "t").mkdir()
        plan = scan(make_tree(tmp_path / "t", {"a": "four"}))
        (entry,) = recipe.decode(plan.recipe, max_tar_bytes=1 << 20).entries
        lie = recipe.encode([entry._replace(size=5)])
        assert "chunk 0 (a, 5 bytes): it has 4 bytes" in self.refused(store, lie, [b"four"], tmp_path)

    def test_lengths_are_compared_with_what_is_held(self, tree: Path, store: PackStore) -> None:
        digest = store.add_directory(tree)
        entries = list(recipe.decode(store.recipe(digest), max_tar_bytes=1 << 30).entries)
        entries[0] = entries[0]._replace(size=6)
        assert store.missing(recipe.encode(entries)) == [0]

    def test_limits(self, tree: Path, tmp_path: Path) -> None:
        plan = scan(tree)
        small = PackStore(tmp_path / "small", max_pack_bytes=plan.summary.bytes - 1)
        with pytest.raises(PeerError, match="larger than"):
            small.missing(plan.recipe)
        with pytest.raises(UserError, match="too large"):
            small.add_directory(tree)
        short = PackStore(tmp_path / "short", max_recipe_bytes=len(plan.recipe) - 1)
        with pytest.raises(PeerError, match="larger than"):
            short.assemble(plan.recipe, [])
        exact = PackStore(tmp_path / "exact", max_pack_bytes=plan.summary.bytes, max_recipe_bytes=len(plan.recipe))
        assert exact.add_directory(tree) == plan.digest

    def test_chunk_indexes_are_checked(self, tree: Path, store: PackStore) -> None:
        digest = store.add_directory(tree)
        for index in (-1, 6, 1 << 70):
            with pytest.raises(PeerError, match="was asked for; it has 6"):
                list(store.chunks(digest, [index]))

    @pytest.mark.parametrize("digest", ["", "0" * 64, "../../etc/passwd", "*"])
    def test_digest_that_is_not_held(self, store: PackStore, digest: str) -> None:
        assert not store.has(digest)
        for use in (store.path, store.open, store.recipe, store.touch):
            with pytest.raises(UserError, match="not held here"):
                use(digest)
        with pytest.raises(UserError, match="not held here"), store.pinned(digest):
            pass


def test_chunks_that_were_sent_though_they_came_in_meanwhile_are_passed_over(store: PackStore, tmp_path: Path) -> None:
    files = {name: f"content of {name}" for name in "abcdef"}
    whole = scan(make_tree(tmp_path / "whole", files))
    asked = store.missing(whole.recipe)
    part = make_tree(tmp_path / "part", {name: files[name] for name in "adf"})
    store.add_directory(part)
    assert store.assemble(whole.recipe, whole.chunks(asked)) == whole.digest
    assert store.path(whole.digest).read_bytes() == packed(tmp_path / "whole")[0]


def test_pack_that_came_in_meanwhile_is_not_made_again(tree: Path, store: PackStore) -> None:
    plan = scan(tree)
    asked = store.missing(plan.recipe)
    store.add_directory(tree)
    arriving = plan.chunks(asked)
    assert store.assemble(plan.recipe, arriving) == plan.digest
    assert list(arriving) == []  # read to its end
    with pytest.raises(PeerError, match="does not have"):
        store.assemble(plan.recipe, [b"of another pack"])


def test_many_threads_assemble_one_pack(tmp_path: Path, store: PackStore) -> None:
    root = many_files(tmp_path / "tree", 40, 2000)
    plan = scan(root)
    everything = list(plan.chunks(store.missing(plan.recipe)))
    together = threading.Barrier(6)

    def chunks() -> Iterator[bytes]:
        together.wait()
        yield from everything

    with ThreadPoolExecutor(6) as threads:
        digests = list(threads.map(lambda _: store.assemble(plan.recipe, chunks()), range(6)))
    assert set(digests) == {plan.digest}
    assert store.path(plan.digest).read_bytes() == packed(root)[0]
    assert files_of(store, tmp_path) == {f"{plan.digest}.tar", f"{plan.digest}.recipe"}


def test_threads_assemble_and_evict_at_once(tmp_path: Path, store: PackStore) -> None:
    plans = []
    for number in range(4):
        files = {f"common{index}": f"common {index}" for index in range(20)}
        plans.append(scan(make_tree(tmp_path / f"t{number}", {**files, "own": f"own {number}"})))

    def work(number: int) -> None:
        plan = plans[number % 4]
        for _ in range(10):
            with suppress(PeerError):  # evicted between the question and the answer
                store.assemble(plan.recipe, plan.chunks(store.missing(plan.recipe)))
            store.evict(30_000)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(8)))
    for plan in plans:
        assert send(plan, store).digest == plan.digest
    store.evict(0)
    assert files_of(store, tmp_path) == set()


def test_what_a_crash_leaves_is_removed_by_the_next_start(tree: Path, store: PackStore, tmp_path: Path) -> None:
    digest = store.add_directory(tree)
    plan = scan(make_tree(tmp_path / "other", {"x": "x", "y": "y"}))
    crashed = []

    class Crash(BaseException):
        pass

    def chunks() -> Iterator[bytes]:
        yield b"x"
        crashed.extend(path.name for path in (tmp_path / "store").iterdir() if path.suffix not in (".tar", ".recipe"))
        raise Crash

    with pytest.raises(Crash):
        store.assemble(plan.recipe, chunks())
    assert len(crashed) == 2
    assert all(name.startswith(".tmp-") for name in crashed)
    left = {".tmp-crashed": "half", f"{'1' * 64}.recipe": "published without its pack", f"{'2' * 64}.tar": "no recipe"}
    make_tree(tmp_path / "store", {**left, "notes of an administrator": "kept"})
    again = PackStore(tmp_path / "store")
    assert files_of(again, tmp_path) == {f"{digest}.tar", f"{digest}.recipe", "notes of an administrator"}
    assert again.has(digest)
    assert not again.has("2" * 64)


class TestDamage:
    def test_damaged_pack_is_removed_and_its_chunks_are_asked_for_again(
        self, tree: Path, store: PackStore, tmp_path: Path
    ) -> None:
        digest = store.add_directory(tree)
        path = store.path(digest)
        path.write_bytes(path.read_bytes().replace(b"int c;", b"int X;"))
        plan = scan(make_tree(tree, {"new": "new"}))
        with pytest.raises(EnvironmentFault, match=r"damaged: .*the pack was removed"):
            send(plan, store)
        assert not store.has(digest)
        assert files_of(store, tmp_path) == set()
        assert send(plan, store).chunks == 5

    @pytest.mark.parametrize("damage", ["garbage", "another", "gone"])
    def test_damaged_recipe_costs_the_pack_alone(self, tree: Path, tmp_path: Path, damage: str) -> None:
        other = make_tree(tmp_path / "other", {"o": "other"})
        store, (digest, kept) = store_with(tmp_path / "store", tree, other)
        sidecar = store.path(digest).with_suffix(".recipe")
        if damage == "garbage":
            sidecar.write_bytes(b"garbage")
        elif damage == "another":
            sidecar.write_bytes(store.path(kept).with_suffix(".recipe").read_bytes())
        again = PackStore(tmp_path / "store")
        if damage == "gone":
            sidecar.unlink()
        make_tree(other, {"n": "new"})
        assert send(scan(other), again).chunks == 1
        assert not again.has(digest)

    def test_tar_file_that_somebody_removed(self, tree: Path, store: PackStore) -> None:
        digest = store.add_directory(tree)
        store.path(digest).unlink()
        with pytest.raises(EnvironmentFault, match="the pack was removed"):
            store.open(digest)
        assert send(scan(tree), store).chunks == 4

    def test_trouble_that_passes_costs_no_pack(self, tree: Path, store: PackStore) -> None:
        digest = store.add_directory(tree)
        with no_more_open_files():
            for use in (store.open, store.recipe):
                with pytest.raises(EnvironmentFault, match="Too many open files"):
                    use(digest)
        assert store.has(digest)
        store.open(digest).close()

    def test_disk_that_refuses_is_an_environment_fault(self, tree: Path, store: PackStore, tmp_path: Path) -> None:
        with no_file_larger_than(1 << 20), pytest.raises(EnvironmentFault, match="File too large"):
            store.add_directory(tree)
        assert files_of(store, tmp_path) == set()
        with pytest.raises(EnvironmentFault, match="Not a directory"):
            PackStore(tree / "a.c" / "store")


class TestEviction:
    @pytest.fixture
    def three(self, tmp_path: Path) -> tuple[PackStore, list[str]]:
        """Packs of the same size, used in their order."""
        trees = [make_tree(tmp_path / f"t{n}", {"shared": "shared", "own": f"own {n}"}) for n in range(3)]
        store, digests = store_with(tmp_path / "store", *trees)
        for number, digest in enumerate(digests):
            store.touch(digest, at_ns=(MTIME + number) * 10**9)
        return store, digests

    def size(self, store: PackStore, digest: str) -> int:
        return store.path(digest).stat().st_size

    def test_least_recently_used_goes_first(self, three: tuple[PackStore, list[str]]) -> None:
        store, (first, second, third) = three
        size = self.size(store, first)
        assert store.evict(3 * size) == []
        store.touch(first)
        assert store.evict(3 * size - 1) == [second]
        assert [store.has(digest) for digest in (first, second, third)] == [True, False, True]
        assert store.evict(0) == [third, first]

    def test_order_of_use_outlives_the_process(self, three: tuple[PackStore, list[str]], tmp_path: Path) -> None:
        _, (first, second, third) = three
        store = PackStore(tmp_path / "store")
        store.touch(first)
        again = PackStore(tmp_path / "store")
        assert again.evict(0) == [second, third, first]

    def test_pack_in_use_stays(self, three: tuple[PackStore, list[str]]) -> None:
        store, (first, second, third) = three
        with store.pinned(first) as path, store.pinned(first):
            assert store.evict(0) == [second, third]
            assert path.exists()
        assert store.evict(0) == [first]

    def test_pack_that_is_being_sent_stays(self, three: tuple[PackStore, list[str]]) -> None:
        store, (first, second, third) = three
        sending = store.chunks(second, [0, 1])
        assert next(sending) == b"own 1"
        assert store.evict(0) == [first, third]
        assert list(sending) == [b"shared"]
        assert store.evict(0) == [second]

    def test_open_pack_can_be_read_to_its_end(self, three: tuple[PackStore, list[str]]) -> None:
        store, (first, *_) = three
        tar = store.path(first).read_bytes()
        with store.open(first) as file:
            store.evict(0)
            assert file.read() == tar

    def test_chunks_that_another_pack_has_are_still_found(
        self, three: tuple[PackStore, list[str]], tmp_path: Path
    ) -> None:
        store, digests = three
        plan = scan(make_tree(tmp_path / "new", {"shared": "shared", "own": "own 2"}))
        for number, digest in enumerate(reversed(digests)):
            store.touch(digest, at_ns=(MTIME + number) * 10**9)
        assert store.evict(2 * self.size(store, digests[0])) == [digests[2]]
        assert store.missing(plan.recipe) == [0]
        assert send(plan, store).digest == plan.digest

    def test_question_keeps_the_packs_that_answer_it(self, three: tuple[PackStore, list[str]], tmp_path: Path) -> None:
        store, (first, _, third) = three
        plan = scan(make_tree(tmp_path / "new", {"x": "own 0", "y": "new"}))
        assert store.missing(plan.recipe) == [1]
        store.evict(2 * self.size(store, first))
        assert store.has(first)
        assert store.has(third)


@settings(max_examples=25, deadline=None, database=None)
@given(
    versions=st.lists(
        st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["", "1", "2", "3", "4" * 600]), max_size=6),
        min_size=1,
        max_size=5,
    ),
    restart=st.booleans(),
)
def test_any_history_of_a_tree_arrives(
    versions: list[dict[str, str]], restart: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("history")
    store = PackStore(base / "store")
    known: set[bytes] = set()
    for number, files in enumerate(versions):
        root = make_tree(base / str(number), files)
        contents = {hashlib.sha256(text.encode()).digest() for text in files.values() if text}
        sent = send(scan(root), store)
        assert sent.chunks == len(contents - known)
        assert store.path(sent.digest).read_bytes() == packed(root)[0]
        known |= contents
        if restart:
            store = PackStore(base / "store")
