"""Limits, cancelling, and the ladder from TERM to KILL."""

import os
import sys
import time
from collections.abc import Callable

import pytest

from biruda.messages import StepStarted
from biruda.model import Outcome
from tests.worker.peer import Worker, marked, python, recipe_of, shell, start_process, start_thread

Start = Callable[..., Worker]
both = pytest.mark.parametrize("start", [start_process, start_thread], ids=["process", "thread"])

STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
)


@both
def test_a_step_that_takes_too_long(start: Start) -> None:
    with start() as worker:
        result = worker.peer.run(shell("sleep 600", name="build", limit_s=0.2), shell("echo not reached"))
        assert (result.outcome, result.exit_status) == (Outcome.TIMEOUT, 128 + 15)
        assert result.reason == "step build: still running after 0.2 s"
        assert result.steps[0].note == "time limit of 0.2 s"
        assert 0.2 <= result.steps[0].wall_s < 2
        assert len(result.steps) == 1


def test_silence_is_counted_from_the_last_byte() -> None:
    with start_process() as worker:
        result = worker.peer.run(
            shell("for i in 1 2 3 4 5 6; do printf .; sleep 0.1; done; sleep 600", name="check"), silence_s=0.3
        )
        assert (result.outcome, result.reason) == (Outcome.TIMEOUT, "step check: no output for 0.3 s")
        assert bytes(worker.peer.log.head) == b"......"
        assert result.steps[0].wall_s >= 0.8


def test_a_steps_own_silence_limit_wins() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell("sleep 0.4", silence_s=5.0), silence_s=0.2)
        assert result.outcome is Outcome.PASSED


@both
def test_the_total_limit_names_the_step(start: Start) -> None:
    with start() as worker:
        result = worker.peer.run(
            shell("sleep 0.2", name="one"),
            shell("sleep 600", name="two"),
            shell("echo three", name="three"),
            shell("sleep 0.3; echo four", name="four", always=True),
            total_s=0.4,
        )
        assert result.outcome is Outcome.TIMEOUT
        assert result.reason == "step two: the job was still running after 0.4 s in all"
        assert [s.name for s in result.steps] == ["one", "two", "four"]
        assert bytes(worker.peer.log.head) == b"four\n"


@both
def test_what_ignores_term_is_killed_after_the_grace(start: Start) -> None:
    with start() as worker:
        result = worker.peer.run(python(STUBBORN, limit_s=0.5), grace_s=0.3)
        assert (result.outcome, result.steps[0].signal) == (Outcome.TIMEOUT, 9)
        assert 0.8 <= result.steps[0].wall_s < 3


def test_what_hears_term_has_its_grace_and_its_last_words() -> None:
    text = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.02; done"
    with start_process() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell(text)))
        worker.peer.until(lambda: worker.peer.log.size)
        worker.peer.cancel(reason="not wanted any more")
        result = worker.peer.result()
        assert (result.outcome, result.reason) == (Outcome.CANCELLED, "not wanted any more")
        assert (result.exit_status, result.steps[0].note) == (7, "cancelled")
        assert bytes(worker.peer.log.head).endswith(b"bye\n")


def test_children_of_a_step_have_its_grace_too() -> None:
    child = "trap 'sleep 0.2; echo child is done; exit' TERM; echo up; while :; do sleep 0.02; done"
    with start_process() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell(f"sh -c '{child.replace(chr(39), chr(34))}' & wait")))
        worker.peer.until(lambda: worker.peer.log.size)
        worker.peer.cancel()
        worker.peer.result()
        assert bytes(worker.peer.log.head).endswith(b"child is done\n")


@both
def test_cancel_ends_what_ignores_term_and_runs_no_always_step(start: Start) -> None:
    with start() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(python(STUBBORN), shell("echo never", always=True), grace_s=0.2))
        worker.peer.until(lambda: worker.peer.log.size)
        worker.peer.cancel("preempted", "a more urgent job")
        worker.peer.cancel("preempted", "a more urgent job")
        result = worker.peer.result()
        assert (result.outcome, result.reason) == (Outcome.PREEMPTED, "a more urgent job")
        assert len(result.steps) == 1
        worker.peer.cancel()
        worker.peer.record()
        worker.wait_ended()


def test_cancel_of_another_attempt_is_no_cancel() -> None:
    with start_process() as worker:
        worker.peer.attach()
        fifo = worker.directory / "go"
        os.mkfifo(fifo)
        worker.peer.assign(recipe_of(shell(f"read x < {fifo}; echo $x")), attempt=2)
        worker.peer.next(StepStarted)
        worker.peer.cancel()  # of attempt 1
        worker.peer.record()
        worker.peer.record(attempt=2)  # what runs is not forgotten
        fifo.write_text("on\n")
        assert worker.peer.result().outcome is Outcome.PASSED
        assert bytes(worker.peer.log.head) == b"on\n"


def test_a_timeout_kills_what_is_left_before_the_next_step() -> None:
    mark = f"biruda-mark-{time.monotonic_ns()}"
    stays = f"import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)  # {mark}"
    with start_process() as worker:
        start = f"setsid {sys.executable} -S -c '{stays}' & echo $! > pid; sleep 600"
        look = "kill -0 $(cat pid) && echo it lives; true"
        result = worker.peer.run(shell(start, limit_s=0.4), shell(look, always=True), grace_s=0.2)
        assert result.outcome is Outcome.TIMEOUT
        assert b"it lives" not in worker.peer.log.head
        assert not marked(mark)


def test_cancel_between_the_steps_of_a_pack() -> None:
    with start_process() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(("/bin/true",)), source="0" * 64)
        worker.peer.cancel()
        result = worker.peer.result()
        assert (result.outcome, result.exit_status, result.steps) == (Outcome.CANCELLED, None, ())
