"""A worker that serves attempt after attempt begins each one as if it were the first."""

import os
from collections.abc import Callable

import pytest

from biruda.messages import WorkerIdle
from biruda.model import Outcome
from tests.worker.peer import Worker, recipe_of, shell, start_process, start_thread, step


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
                (worker.directory / "log").rename(worker.directory / f"log-{job}")
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
        assert peer.attach().ended
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
