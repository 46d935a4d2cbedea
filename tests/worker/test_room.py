"""Both rooms behave as one list of bytes would."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biruda.worker.log import Times
from biruda.worker.room import FileRoom, MemoryRoom, Room

operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(max_size=40)),
        st.tuples(st.just("release"), st.integers(0, 200)),
        st.tuples(st.just("read"), st.integers(0, 200), st.integers(1, 50)),
    ),
    max_size=40,
)


def check(room: Room, done: list[tuple[object, ...]]) -> None:
    whole = b""
    for operation in done:
        match operation:
            case ("append", bytes(data)):
                room.append(memoryview(data))
                whole += data
            case ("release", int(offset)):
                room.release(offset)
            case ("read", int(offset), int(size)):
                at = min(max(offset, room.start), room.end)
                piece = room.read(at, size)
                assert piece == whole[at : at + len(piece)]
                assert piece or at == room.end
            case _:
                raise AssertionError(operation)
        assert room.end + len(room.pending) == len(whole)
        assert room.start <= room.end
        assert not (room.pending and room.space)
    room.close()


@given(done=operations)
def test_memory_room(done: list[tuple[object, ...]]) -> None:
    check(MemoryRoom(capacity_bytes=64), done)


@given(done=operations)
def test_file_room(done: list[tuple[object, ...]]) -> None:
    check(FileRoom(os.memfd_create("room")), done)


def test_a_memory_room_that_is_full_has_no_space_until_it_is_released() -> None:
    room = MemoryRoom(capacity_bytes=8)
    room.append(memoryview(b"12345678"))
    assert room.space == 0
    room.append(memoryview(b"90"))
    assert (room.end, bytes(room.pending)) == (8, b"90")
    room.release(3)
    assert (room.start, room.end, bytes(room.pending), room.space) == (3, 10, b"", 1)
    assert room.read(3, 100) + room.read(8, 100) == b"4567890"


def test_a_file_room_that_is_too_far_ahead_of_its_reader_has_no_space(tmp_path: Path) -> None:
    room = FileRoom.at(str(tmp_path / "log"), limit_bytes=10)
    room.append(memoryview(b"0123456789"))
    assert room.space == 0
    room.release(1)
    assert room.space > 0
    room.close()


def test_a_file_room_empties_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("of an earlier attempt")
    room = FileRoom.at(str(path))
    room.append(memoryview(b"new"))
    room.close()
    room.close()
    assert path.read_bytes() == b"new"


def test_a_file_that_somebody_cut_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    room = FileRoom.at(str(tmp_path / "log"))
    room.append(memoryview(b"0123456789"))
    os.truncate(tmp_path / "log", 4)
    assert room.read(0, 100) == b"0123"
    with pytest.raises(OSError, match="ends at byte 4, but 10 were written"):
        room.read(4, 100)
    room.close()


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 50)), max_size=200))
def test_times_never_go_back_and_stay_few(pieces: list[tuple[int, int]]) -> None:
    times = Times(capacity=16)
    offset = elapsed = 0
    truth = []
    for size, pause in pieces:
        elapsed += pause
        times.note(offset, elapsed)
        truth.append((offset, elapsed))
        offset += size
    told = [times.at(at) for at, _ in truth]
    assert told == sorted(told)
    assert all(one <= real for one, (_, real) in zip(told, truth, strict=True))
