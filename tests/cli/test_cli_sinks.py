"""Several logs on one output: every byte of each is there, in whole lines, behind its prefix."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.cli.sinks import LONGEST_LINE_BYTES, Output, Prefixed


def unprefixed(prefix: bytes, written: bytes) -> list[bytes]:
    """The lines behind the prefix; every line must have it."""
    lines = written.split(b"\n")
    assert lines.pop() == b""
    assert all(line.startswith(prefix) for line in lines)
    return [line[len(prefix) :] for line in lines]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"x", b"\n"))))
def test_any_cut_of_a_log_gives_the_same_lines(pieces: list[bytes]) -> None:
    written: list[bytes] = []
    sink = Prefixed(b"[a] ", written.append)
    for piece in pieces:
        sink.write(piece)
    assert all(piece.endswith(b"\n") for piece in written if piece)  # only whole lines go out
    sink.end()
    log = b"".join(pieces)
    expected = log.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert unprefixed(b"[a] ", b"".join(written)) == expected


@settings(deadline=None)
@given(st.integers(1, 5 * LONGEST_LINE_BYTES), st.integers(1, 3 * LONGEST_LINE_BYTES), st.booleans())
def test_a_long_line_is_cut_and_every_piece_has_the_prefix(length: int, step: int, ended: bool) -> None:
    line = (bytes(range(11, 250)) * (length // 239 + 1))[:length]
    log = line + (b"\nnext\n" if ended else b"")
    written: list[bytes] = []
    sink = Prefixed(b"[a] ", written.append)
    for at in range(0, len(log), step):
        sink.write(log[at : at + step])
    sink.end()
    lines = unprefixed(b"[a] ", b"".join(written))
    if ended:
        assert lines.pop() == b"next"
    assert b"".join(lines) == line
    assert max(map(len, lines)) <= LONGEST_LINE_BYTES
    assert len(lines) == -(-length // LONGEST_LINE_BYTES)


def test_a_line_without_end_is_not_kept() -> None:
    seen = [0]

    def count(data: bytes) -> None:
        seen[0] += len(data)

    sink = Prefixed(b"[a] ", count)
    for number in range(1000):
        sink.write(b"y" * 60000)
        assert (number + 1) * 60000 - seen[0] <= 2 * LONGEST_LINE_BYTES


def test_the_end_adds_a_line_end_once() -> None:
    written: list[bytes] = []
    sink = Prefixed(b"> ", written.append)
    sink.write(b"one\ntwo")
    sink.end()
    sink.end()
    assert b"".join(written) == b"> one\n> two\n"


def test_threads_do_not_cut_into_each_others_lines() -> None:
    reader, writer = os.pipe()
    output = Output(writer)
    got: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, 65536):
            got.append(data)

    def write(name: bytes) -> None:
        sink = Prefixed(b"[" + name + b"] ", output.write)
        for _ in range(500):
            sink.write((name * 50 + b"\n") * 7 + name * 20)

    readers = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in (readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    os.close(writer)
    readers.join()
    os.close(reader)
    for line in b"".join(got).splitlines():
        assert line.startswith(b"[")
        assert set(line[4:]) == {line[1]}


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    from biruda.errors import BirudaError

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(BirudaError, match="No space left"):
            Output(descriptor).write(b"x")
    finally:
        os.close(descriptor)
