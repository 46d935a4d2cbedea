"""Short attempts wait in a worker, so that it need not wait for them: docs/adr/0007."""

import asyncio
from typing import TYPE_CHECKING

from biruda.coordinator.attempts import Attempt
from biruda.coordinator.environments import EnvironmentState
from biruda.coordinator.workers import Worker
from biruda.messages import Assign, Assignment, Unassign
from biruda.model import AttemptResult

if TYPE_CHECKING:
    from biruda.coordinator.runner import Runner
    from biruda.coordinator.service import Coordinator

SHORT_S = 0.05
"""Attempts that take no longer are given to a worker ahead."""

MOST = 4
"""So many at most wait in one worker."""

EVEN_OUT_S = 0.02
"""A slot that is free for so long takes from a worker what waits in it."""


def is_light(assignment: Assignment) -> bool:
    """Whether nothing has to be done for an attempt on this host but to tell a worker of it."""
    recipe = assignment.recipe
    brings = assignment.source is not None or assignment.source_path
    return not brings and not recipe.limits.narrow and not recipe.artifacts and not recipe.reports


class Ahead:
    """What is given to workers beside what they run, and taken back. The first of a worker's attempts has the slot."""

    def __init__(self, host: "Coordinator", runner: "Runner") -> None:
        self._host = host
        self._runner = runner
        self._typical_s = 1.0  # how long attempts took lately
        self._is_due = False  # _even_out() is

    def note(self, result: AttemptResult) -> None:
        """An attempt has ended so."""
        self._typical_s = 0.8 * self._typical_s + 0.2 * max(0.0, result.finished_s - result.started_s)

    def given(self, worker: Worker, state: EnvironmentState) -> list[Assignment]:
        """What a worker gets ahead: where attempts are short, and wait for nothing but a slot."""
        given: list[Assignment] = []
        if not worker.takes_more or self._typical_s > SHORT_S:
            return given

        def fits(attempt: Attempt) -> bool:
            assignment = attempt.assignment
            return assignment is not None and attempt.environment == worker.environment and is_light(assignment)

        while len(worker.attempts) <= MOST:
            attempt = self._runner.slots.next_if(fits)
            if attempt is None or attempt.assignment is None:
                break
            try:
                given.append(self._runner.prepared(attempt, attempt.assignment, state, worker, None))
            except Exception as error:  # the border of one job: it fails, the host goes on
                self._runner.fail_soon(attempt, error)
        return given

    def go_on(self, worker: Worker, ended: tuple[int, int], state: EnvironmentState | None) -> bool:
        """The worker has begun the next attempt that waited in it, if there is one; it has the slot now."""
        following = self._host.attempts.get(worker.attempts[0]) if worker.attempts else None
        if following is None:
            return False
        self._runner.slots.hand_over(ended, following.key)
        self._runner.begun(following)
        if state is not None:
            more = self.given(worker, state)
            if more:
                worker.post(Assign(assignments=tuple(more)))
        return True

    def look(self) -> None:
        """A slot may have become free that something waits for in a worker."""
        if self._is_due or not self._runner.slots.has_free:
            return
        if any(len(worker.attempts) > 1 for worker in self._host.pool.workers.values()):
            self._is_due = True
            asyncio.get_running_loop().call_later(EVEN_OUT_S, self._even_out)

    def _even_out(self) -> None:
        """Where a slot stays free, take back what waits in a worker behind a longer attempt."""
        self._is_due = False
        if not self._runner.slots.has_free:
            return
        for worker in self._host.pool.workers.values():
            if len(worker.attempts) > 1 and worker.link.connected:
                job, number = worker.attempts[-1]
                worker.post(Unassign(job=job, attempt=number))
        self.look()

    def came_back(self, worker: Worker, key: tuple[int, int]) -> None:
        """It had not begun in its worker: it starts where there is room."""
        if key not in worker.attempts:
            return
        self._host.pool.take(worker, key)
        attempt = self._host.attempts.get(key)
        if attempt is not None:
            self._runner.start_again(attempt)
