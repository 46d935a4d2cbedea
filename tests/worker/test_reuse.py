"""A worker that serves attempt after attempt begins each one as if it were the first."""

import os
from collections.abc import Callable

import pytest

from biruda.frames import FrameType, pack
from biruda.messages import (
    Assign,
    Assignment,
    AttemptEnded,
    Cancel,
    StepStarted,
    Unassign,
    Unassigned,
    WorkerIdle,
)
from biruda.model import Outcome
from tests.worker.peer import (
    TIMEOUT_S,
    Peer,
    Worker,
    recipe_of,
    shell,
    start_process,
    start_thread,
    step,
    wait_until,
)


@pytest.mark.parametrize("start", [start_process, start_thread], ids=["process", "thread"])
@pytest.mark.parametrize("room", [{}, {"room_path": ""}], ids=["file", "memory"])
def test_three_attempts_in_a_row(start: Callable[..., Worker], room: dict[str, str]) -> None:
    with start(reuse=True, **room) as worker:
        peer = worker.peer
        peer.attach()
        for job in (1, 2, 3):
            peer.channels.clear()
            recipe = recipe_of(
                shell("ls -A; echo > left; mkdir -p a/b; chmod 0 a"), step("/bin/sh", script=f"echo {job}")
            )
            peer.assign(recipe, job=job)
            result = peer.result()
            assert (result.outcome, bytes(peer.log.head)) == (Outcome.PASSED, b"%d\n" % job)
            if not room:
                (worker.directory / f"log.{job}.1").rename(worker.directory / f"log-{job}")
            peer.record(job=job)
            assert peer.next(WorkerIdle) == WorkerIdle(worker="w1")
            assert [p.name for p in worker.directory.iterdir() if p.name.startswith("work")] == ["work"]
            assert list((worker.directory / "work").iterdir()) == []  # kept for the next, as if new
        peer.record(job=3)  # repeated: it is idle still
        peer.next(WorkerIdle)
        peer.close()
        worker.wait_ended()
        if not room:
            assert [(worker.directory / f"log-{job}").read_bytes() for job in (1, 2, 3)] == [b"1\n", b"2\n", b"3\n"]


def test_an_attempt_on_a_new_connection_is_followed_by_another() -> None:
    with start_process(reuse=True) as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(("/bin/echo", "x")), job=1)
        worker.peer.result()
        worker.peer.close()
        peer = worker.connect()
        assert peer.attach().others == ((1, 1),)
        assert peer.next(AttemptEnded).result.outcome is Outcome.PASSED  # told again
        peer.record(job=1)
        peer.next(WorkerIdle)
        peer.messages.clear()
        peer.assign(recipe_of(("/bin/echo", "yy")), job=2)
        assert peer.result().log.bytes == 3
        peer.record(job=2)
        peer.next(WorkerIdle)
        peer.close()
        worker.wait_ended()


def test_descriptors_and_memory_stay_as_they_are() -> None:
    with start_process(reuse=True) as worker:
        peer = worker.peer
        peer.attach()

        def cost() -> tuple[int, int]:
            return len(os.listdir(f"/proc/{worker.pid}/fd")), worker.rss_bytes()

        first = (0, 0)
        for job in range(1, 60):
            peer.channels.clear()
            peer.assign(recipe_of(shell("echo x; exit 1"), artifacts=("*",)), job=job)
            peer.result()
            peer.record(job=job)
            peer.next(WorkerIdle)
            if job == 10:
                first = cost()
        last = cost()
        assert last[0] == first[0]
        assert last[1] - first[1] < 1 << 20


# Attempts that wait in the worker.


def assign_all(peer: Peer, jobs: range, script: str = "echo {job}") -> None:
    peer.say(
        Assign(
            assignments=tuple(
                Assignment(
                    job=job,
                    attempt=1,
                    environment="here",
                    recipe=recipe_of(shell(script.format(job=job))),
                    lease_s=30.0,
                )
                for job in jobs
            )
        )
    )


def ended_jobs(peer: Peer, count: int) -> list[int]:
    peer.until(lambda: len(peer.of(AttemptEnded)) >= count)
    return [message.job for message in peer.of(AttemptEnded)]


def test_attempts_that_wait_are_run_one_after_the_other() -> None:
    with start_process(reuse=True) as worker:
        peer = worker.peer
        peer.attach()
        assign_all(peer, range(1, 8))
        assign_all(peer, range(5, 11))  # some of them again
        assert ended_jobs(peer, 10) == list(range(1, 11))
        assert all(message.result.outcome is Outcome.PASSED for message in peer.of(AttemptEnded))
        for job in range(1, 11):
            assert (worker.directory / f"log.{job}.1").read_bytes() == b"%d\n" % job
            assert not peer.of(WorkerIdle)
            peer.record(job=job)
        peer.next(WorkerIdle)
        peer.close()
        worker.wait_ended()


def test_results_are_told_again_until_they_are_recorded() -> None:
    with start_process(reuse=True) as worker:
        worker.peer.attach()
        assign_all(worker.peer, range(1, 4))
        assert ended_jobs(worker.peer, 3) == [1, 2, 3]
        worker.peer.record(job=2)
        worker.peer.raw(pack(FrameType.PING))
        worker.peer.until_acknowledged()
        worker.peer.close()
        peer = worker.connect()
        assert set(peer.attach().others) == {(1, 1), (3, 1)}
        assert ended_jobs(peer, 2) == [1, 3]
        peer.record(job=1)
        peer.record(job=3)
        peer.next(WorkerIdle)
        peer.close()
        worker.wait_ended()


def test_what_waits_goes_on_while_nobody_is_there() -> None:
    with start_process(reuse=True) as worker:
        worker.peer.attach()
        assign_all(worker.peer, range(1, 4), "while [ ! -e ../go ]; do sleep 0.01; done; echo {job}")
        worker.peer.next(StepStarted)
        worker.peer.close()
        (worker.directory / "go").touch()
        assert wait_until(lambda: (worker.directory / "log.3.1").exists(), TIMEOUT_S)
        peer = worker.connect()
        peer.attach()
        assert ended_jobs(peer, 3) == [1, 2, 3]


def test_what_has_not_begun_can_be_taken_back_or_cancelled() -> None:
    with start_process(reuse=True) as worker:
        peer = worker.peer
        peer.attach()
        assign_all(peer, range(1, 5), "while [ ! -e ../go ]; do sleep 0.01; done; echo {job}")
        peer.next(StepStarted)
        peer.say(Unassign(job=3, attempt=1))
        assert peer.next(Unassigned) == Unassigned(job=3, attempt=1)
        peer.say(Cancel(job=2, attempt=1, outcome="cancelled", reason="not wanted"))
        cancelled = peer.next(AttemptEnded)
        assert (cancelled.job, cancelled.result.outcome, cancelled.result.steps) == (2, Outcome.CANCELLED, ())
        peer.say(Unassign(job=1, attempt=1))  # it runs: not answered
        (worker.directory / "go").touch()
        assert ended_jobs(peer, 2) == [1, 4]
        assert not peer.of(Unassigned)
        assert not (worker.directory / "log.3.1").exists()


def test_artifacts_are_collected_before_the_next_one_begins() -> None:
    with start_process(reuse=True) as worker:
        peer = worker.peer
        peer.attach()
        peer.assign(recipe_of(shell("echo made > made"), artifacts=("made",)), job=1)
        assign_all(peer, range(2, 3))
        assert [item.path for item in peer.next(AttemptEnded).result.artifacts] == ["made"]
        peer.want((1, 0), job=1)
        peer.until(lambda: peer.channels[1].ended_at == 5)
        assert not peer.of(AttemptEnded)
        peer.record(job=1)
        assert ended_jobs(peer, 1) == [2]


def test_who_takes_no_attempts_ahead_says_so() -> None:
    with start_process(reuse=True, room_path="") as worker:
        worker.peer.attach()
        assign_all(worker.peer, range(1, 3))
        worker.peer.wait_closed()
        assert "2 were assigned" in worker.stderr
