"""The ledger: in the file before the act, and whole whatever happens to the disk."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from biruda.coordinator.ledger import Given, Ledger
from biruda.coordinator.spawners.protocol import Place
from biruda.messages import AttemptEnded
from biruda.model import Kind
from tests.fakes import result


def place(worker: str) -> Place:
    return Place(worker=worker, kind=Kind.PROCESS, environment="host", nonce="n", directory=f"/w/{worker}")


def given(job: int) -> Given:
    return Given(job=job, attempt=1, lease_s=60.0, started_s=1.0)


def test_what_is_planned_is_written_at_once_and_the_rest_when_it_is_asked_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.planned(place("a"))
    assert set(Ledger(tmp_path / "ledger").entries) == {"a"}
    ledger = Ledger(tmp_path / "ledger")
    ledger.given("a", given(1))
    ledger.ended(AttemptEnded(job=2, attempt=1, result=result()))
    before = (tmp_path / "ledger").read_bytes()
    assert b'"given"' not in before
    ledger.flush()
    again = Ledger(tmp_path / "ledger")
    assert again.entries["a"].given == (given(1),)
    assert set(again.results) == {(2, 1)}
    ledger.close()


def test_a_worker_has_attempts_in_their_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.planned(place("a"))
    for job in (3, 1, 2):
        ledger.given("a", given(job))
    ledger.taken("a", 1, 1)
    ledger.close()
    again = Ledger(tmp_path / "ledger")
    assert again.entries["a"].given == (given(3), given(2))
    again.taken("a", 3, 1)
    again.taken("a", 2, 1)
    again.close()
    assert Ledger(tmp_path / "ledger").entries["a"].given == ()


def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.planned(place("a"))
    ledger.given("a", given(7))
    ledger.close()
    assert Ledger(tmp_path / "ledger").entries["a"].given == (given(7),)


def test_a_long_history_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.planned(place("a"))
    for job in range(30_000):
        ledger.given("a", given(job))
        if job:
            ledger.taken("a", job - 1, 1)
        if job % 100 == 0:
            ledger.flush()
    ledger.flush()
    assert path.stat().st_size < 1_200_000
    assert Ledger(path).entries["a"].given == (given(29_999),)


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """A full disk, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_room_nothing_of_it_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.planned(place("a"))
    for job in range(20):
        ledger.given("a", given(job))
    with files_of_at_most(path.stat().st_size + 300):
        with pytest.raises(OSError, match="File too large"):
            ledger.flush()
        assert path.stat().st_size > 300  # a part of a line
    ledger.given("a", given(99))
    ledger.flush()
    assert Ledger(path).entries["a"].given == (*map(given, range(20)), given(99))
    assert os.listdir(tmp_path) == ["ledger"]


def test_on_a_full_disk_a_ledger_is_opened_and_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.planned(place("a"))
    ledger.given("a", given(1))
    ledger.close()
    with path.open("ab") as file:
        file.write(b'{"is": "gone", "wor')  # a process that was killed in the middle of a line
    with files_of_at_most(10):
        ledger = Ledger(path)
        assert ledger.entries["a"].given == (given(1),)
    ledger.planned(place("b"))
    ledger.close()
    again = Ledger(path)
    assert set(again.entries) == {"a", "b"}
    assert again.entries["a"].given == (given(1),)
    again.close()
    assert os.listdir(tmp_path) == ["ledger"]


def test_what_has_happened_is_written_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.planned(place("a"))
    ledger.planned(place("b"))
    with files_of_at_most(path.stat().st_size):
        ledger.gone("a")
        ledger.spawned(replace(place("b"), pid=7, start_ticks=8))
        with pytest.raises(OSError, match="File too large"):
            ledger.planned(place("c"))
    assert set(Ledger(path).entries) == {"a", "b"}
    ledger = Ledger(path)
    with files_of_at_most(path.stat().st_size):
        ledger.gone("a")
    ledger.planned(place("c"))
    assert set(Ledger(path).entries) == {"b", "c"}
    ledger.close()


def test_a_ledger_that_cannot_be_made_short_is_kept_long(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    for number in range(60):
        ledger.planned(place(f"w{number}"))
    ledger.ended(AttemptEnded(job=1, attempt=1, result=result(reason="x" * (1 << 20))))
    with files_of_at_most(path.stat().st_size + (1 << 20) + 1000):
        ledger.flush()  # which would be compacted now
        (tmp_path / "ledger.new").mkdir()
        ledger.given("w1", given(1))
        ledger.flush()
        (tmp_path / "ledger.new").rmdir()
    ledger.given("w2", given(2))
    ledger.close()
    again = Ledger(path)
    assert (again.entries["w1"].given, again.entries["w2"].given) == ((given(1),), (given(2),))
    assert set(again.results) == {(1, 1)}
