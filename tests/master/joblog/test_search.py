"""Searches through whole logs: what is found, and what a hostile pattern cannot do."""

import asyncio
import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.errors import UserError
from biruda.master.joblog import index as index_module
from biruda.master.joblog import search as search_module
from biruda.master.joblog import searching
from biruda.master.joblog.index import LineIndex
from biruda.master.joblog.search import search
from biruda.master.joblog.searching import Query, compiled


def index_of(path: Path) -> Path:
    return path.with_suffix(".lines")


async def found(path: Path, query: Query) -> tuple[list[int], dict[str, Any]]:
    """The lines, and what is said last."""
    fd = os.open(path, os.O_RDONLY)
    hits: list[int] = []
    last: dict[str, Any] = {}
    try:
        async with aclosing(
            search(fd, path.stat().st_size, path.read_bytes().count(b"\n"), query, index_of(path))
        ) as said:
            async for last in said:
                hits += last.get("hits", [])
    finally:
        os.close(fd)
    return hits, last


async def test_a_search_names_lines_and_draws_a_map(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d %s\n" % (n, b"Needle" if n % 100 == 7 else b"hay") for n in range(1000)))
    expected = [n + 1 for n in range(1000) if n % 100 == 7]
    for query in (
        Query(text="needle"),
        Query(text="Needle"),
        Query(text="n[e]+dle$", regex=True),
        Query(text="^line.*Need", regex=True),
        Query(text="(?i)NEEDLE", regex=True),
    ):
        hits, last = await found(log, query)
        assert (hits, last["found"], last["complete"]) == (expected, 10, True), query
        assert sum(last["map"]) == 10
        assert len(last["map"]) == searching.MAP_CELLS
    hits, last = await found(log, Query(text="NEEDLE"))
    assert (hits, last["found"]) == ([], 0)
    hits, _ = await found(log, Query(text="line 5[0-9]{2} ", regex=True))
    assert hits == list(range(501, 601))


async def test_a_kept_index_changes_nothing_but_the_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"%d %s\n" % (n, b"needle" * (n % 997 == 5)) for n in range(100_000)))
    without = await found(log, Query(text="needle"))
    with log.open("rb") as file:
        index = LineIndex()
        index.extend(file.fileno(), log.stat().st_size, 1 << 30)
        index.save(index_of(log), file.fileno())
    assert await found(log, Query(text="needle")) == without
    assert without[0] == [n + 1 for n in range(100_000) if n % 997 == 5]


async def test_text_is_taken_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a.b\naxb\n.*\nübermütig <script>\n\x1b[31mred\n")
    for text, lines in (("a.b", [1]), (".*", [3]), ("<script>", [4]), ("übermütig", [4]), ("\x1b[31m", [5])):
        assert (await found(log, Query(text=text)))[0] == lines


async def test_more_lines_than_are_named_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"y\n" * 50_000)
    hits, last = await found(log, Query(text="y"))
    assert (len(hits), hits[-1], last["found"]) == (searching.MAX_HITS, searching.MAX_HITS, 50_000)


async def test_a_pattern_without_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "LIMIT_S", 1)
    log = tmp_path / "log"
    log.write_bytes(b"before\n" + b"a" * 60 + b"!\n")
    _, last = await found(log, Query(text="^(a|aa)+$", regex=True))
    assert (last["complete"], last["found"]) == (False, None)
    assert "stopped after" in last["reason"]


async def test_who_stops_listening_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * 60 + b"!\n")
    pids: list[int] = []
    start = search_module.process.start

    def started(*args: Any, **more: Any) -> Any:
        child = start(*args, **more)
        pids.append(child.pid)
        return child

    monkeypatch.setattr(search_module.process, "start", started)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(found(log, Query(text="^(a|aa)+$", regex=True)))
        while not pids:
            await asyncio.sleep(0)
        task.cancel()
    assert not Path(f"/proc/{pids[0]}").exists()


@pytest.mark.parametrize("text", ["(", "*", "a\nb", "", "x" * 5000, "(?P<a>.)(?P<a>.)"])
def test_what_is_no_query_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="q: "):
        compiled(Query(text=text, regex=True))


@given(
    pieces=st.lists(st.sampled_from([b"ab", b"b", b"", b"xabx", b"\xff"]), max_size=30),
    piece=st.integers(1, 40),
    query=st.sampled_from([Query(text="ab"), Query(text="a.?b", regex=True), Query(text="b$", regex=True)]),
)
@settings(deadline=None)
def test_what_is_found_does_not_depend_on_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], piece: int, query: Query
) -> None:
    content = b"\n".join(pieces)
    path = tmp_path_factory.mktemp("s") / "log"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "PIECE_BYTES", piece)
        patch.setattr(index_module, "BLOCK_BYTES", 8)
        pattern = compiled(query)
        index = LineIndex()
        index.extend(fd, len(content), 1 << 30)
        for known in (None, index):
            matching = searching._matching_lines(fd, len(content), pattern, searching._literal(query), known)
            lines = [line for _, line in matching if line >= 0]
            assert lines == [number for number, line in enumerate(content.split(b"\n")) if pattern.search(line)]
    os.close(fd)
