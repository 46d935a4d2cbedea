"""Any line of any log: against what splitting the whole would give."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.master.joblog import index as index_module
from biruda.master.joblog import lines as lines_module
from biruda.master.joblog.index import BLOCK_BYTES, LineIndex, load
from biruda.master.joblog.lines import MAX_LINE_BYTES, read_lines


def opened(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


def indexed(fd: int) -> LineIndex:
    index = LineIndex()
    index.extend(fd, os.fstat(fd).st_size, 1 << 40)
    return index


def split(content: bytes) -> list[bytes]:
    lines = content.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


LINES = st.lists(st.binary(max_size=3) | st.sampled_from([b"", b"x" * 50, b"\n" * 7, b"y" * 200]), max_size=40)


@given(pieces=LINES, first=st.integers(0, 60), count=st.integers(1, 20))
@settings(deadline=None)
def test_lines_are_those_that_splitting_gives(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], first: int, count: int
) -> None:
    content = b"\n".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "BLOCK_BYTES", 16)
        patch.setattr(lines_module, "_PIECE_BYTES", 24)
        patch.setattr(lines_module, "MAX_LINE_BYTES", 20)
        fd = opened(tmp_path_factory.mktemp("l") / "log", content)
        try:
            index = LineIndex()
            while index.bytes < len(content):  # as it grows, a little at a time
                index.extend(fd, min(index.bytes + 5, len(content)), 1 << 20)
            expected = split(content)
            lines = read_lines(fd, index, first, count)
            assert index.lines == len(expected)
            assert [line.text for line in lines] == [line[:20] for line in expected[first : first + count]]
            assert [line.size_bytes for line in lines] == [len(line) for line in expected[first : first + count]]
            for number, line in enumerate(lines, first):
                assert content[line.offset :].startswith(line.text)
                assert index.line_at(fd, line.offset) == number
        finally:
            os.close(fd)


def test_a_line_of_many_megabytes_is_cut_and_the_next_one_is_found(tmp_path: Path) -> None:
    long = b"a" * (10 << 20)
    fd = opened(tmp_path / "log", b"one\n" + long + b"\nthree\n" + long)
    index = indexed(fd)
    first, second, third, fourth = read_lines(fd, index, 0, 10)
    assert (first.text, third.text) == (b"one", b"three")
    assert (second.size_bytes, len(second.text), second.is_cut) == (len(long), MAX_LINE_BYTES, True)
    assert (fourth.size_bytes, fourth.text) == (len(long), b"a" * MAX_LINE_BYTES)
    assert third.offset == 4 + len(long) + 1
    os.close(fd)


def test_an_answer_has_a_bounded_size(tmp_path: Path) -> None:
    fd = opened(tmp_path / "log", (b"z" * 4000 + b"\n") * 1000)
    lines = read_lines(fd, indexed(fd), 0, 1000)
    assert 0 < len(lines) < 200
    os.close(fd)


def test_a_kept_index_is_the_same_and_a_wrong_one_is_none(tmp_path: Path) -> None:
    content = b"line\n" * (3 * BLOCK_BYTES // 5) + b"open"
    fd = opened(tmp_path / "log", content)
    index, kept = indexed(fd), tmp_path / "1.1.lines"
    index.save(kept, fd)
    again = load(kept, fd)
    assert again is not None
    last = len(split(content)) - 1
    assert read_lines(fd, again, last, 1)[0].text == b"open"
    assert (again.lines, again.bytes) == (index.lines, index.bytes)
    for damaged in (b"", kept.read_bytes()[:-3], kept.read_bytes()[:-1] + b"\xff", b"x" + kept.read_bytes()[1:]):
        kept.write_bytes(damaged)
        assert load(kept, fd) is None
    index.save(kept, fd)
    os.utime(tmp_path / "log", ns=(1, 1))  # another log of this name
    assert load(kept, fd) is None
    assert load(tmp_path / "none", fd) is None
    os.close(fd)
