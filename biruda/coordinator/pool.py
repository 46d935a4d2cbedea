"""The workers of this host: spares made ahead of need, given out, and cleaned away to the last process."""

import asyncio
import itertools
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from biruda.coordinator.environments import EnvironmentState
from biruda.coordinator.ledger import Given, Ledger
from biruda.coordinator.spawners.protocol import Place, Spawned, Spawner
from biruda.coordinator.workers import HELLO_S, TakeData, TakeMessage, Worker, hang_up, serve
from biruda.errors import EnvironmentFault, Unreachable
from biruda.model import Facts, Kind

log = logging.getLogger("biruda.coordinator")

IDLE_LEASE_S = 60.0

ROOM_AGAIN_S = 1.0
"""Between two tries to write to a disk that is full."""


class Pool:
    """Spawns, keeps and ends workers; the ledger knows of each before it exists."""

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        spawners: Mapping[Kind, Spawner],
        slots: int,
        tasks: asyncio.TaskGroup,
        take: TakeMessage,
        take_data: TakeData,
        ended: Callable[[Worker], None],
        failed: Callable[[str, EnvironmentFault], None],
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._spawners = spawners
        self._slots = slots
        self._most = 2 * slots  # workers that are used again: while one cleans up, another takes the next attempt
        self._tasks = tasks
        self._take = take
        self._take_data = take_data
        self._ended = ended
        self._failed = failed
        self._numbers = itertools.count(1)
        self._prefix = secrets.token_hex(4)  # not the time: another process may have begun in the same second
        self._closing = False
        self._back = asyncio.Event()  # a worker came back, or will not
        self.workers: dict[str, Worker] = {}
        self._uncleaned: dict[str, Place] = {}  # dead, but what they were made by does not answer now

    async def spawn(self, state: EnvironmentState, *, guess: bool = False) -> Worker:
        """A worker that has said hello. Raises EnvironmentFault; then nothing of it is left."""
        worker_id = f"{self._prefix}-{next(self._numbers):x}"
        place = state.spawner.plan(state.config, worker_id, secrets.token_hex(8), self._directory / worker_id)
        place = replace(place, permanent=state.config.permanent)
        await self._plan(place)
        try:
            facts = state.static or state.host_facts
            spawned = await state.spawner.spawn(state.config, place, facts, lease_s=IDLE_LEASE_S, guess=guess)
        except BaseException:
            self._ledger.gone(worker_id)
            raise
        self._ledger.spawned(spawned.place)
        worker = Worker(spawned.place, state.config.name, self._ledger.flush)
        worker.hold(IDLE_LEASE_S)
        self.workers[worker_id] = worker
        self._tasks.create_task(self._serve(worker, spawned), name=f"worker {worker_id}")
        try:
            await self._greet(worker)
        except asyncio.CancelledError:  # perhaps before its serving task has begun
            hang_up(spawned)
            raise
        return worker

    async def _plan(self, place: Place) -> None:
        """It stands in the ledger on return, however long there is no room for it."""
        try:
            self._ledger.planned(place)
            return
        except OSError as error:
            log.error("worker=%s waits for room in the ledger: %s", place.worker, os.strerror(error.errno or 0))
        while True:
            await asyncio.sleep(ROOM_AGAIN_S)
            with suppress(OSError):
                self._ledger.flush()
                return

    async def _greet(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(HELLO_S):
                await worker.greeted.wait()
        except TimeoutError:
            await self.end(worker)
            raise EnvironmentFault(
                f"a worker in {worker.environment} did not say hello within {HELLO_S:g} s",
                hint="the daemon's log may say more; biruda env probe tries again",
            ) from None
        if worker.hello is None:
            said = f": {worker.said}" if worker.said else ""
            raise EnvironmentFault(
                f"a worker in {worker.environment} ended before it said hello{said}",
                hint="the daemon's log may say more; biruda env probe tries again",
            )

    async def adopt(self, place: Place, attempts: list[tuple[int, int]], lease_s: float) -> Worker | None:
        """The worker of an earlier process with its attempts, if it lives and answers; None: it does not."""
        try:
            found = await self._spawners[place.kind].attach(place)
        except OSError:
            return None
        worker = Worker(place, place.environment, self._ledger.flush, attempts=attempts)
        worker.hold(lease_s)
        self.workers[worker.id] = worker
        self._tasks.create_task(self._serve(worker, found), name=f"worker {worker.id}")
        try:
            await self._greet(worker)
        except EnvironmentFault:
            return None
        return worker

    async def _serve(self, worker: Worker, spawned: Spawned) -> None:
        """One worker until nothing of it is left."""
        try:
            attach = self._spawners[worker.place.kind].attach
            await serve(worker, spawned, attach, self._take, self._take_data)
        except Exception:  # the border of one worker: it is killed, the host goes on
            log.exception("worker=%s", worker.id)
        finally:
            worker.died.set()
            worker.greeted.set()
            if not self._closing:
                await self._clean(worker)

    async def _clean(self, worker: Worker) -> None:
        spawner = self._spawners[worker.place.kind]
        try:
            await spawner.kill(worker.place)
            self._ended(worker)
            await spawner.dispose(worker.place)
        except EnvironmentFault as error:
            log.error("worker=%s cannot be cleaned away: %s", worker.id, error)
            if isinstance(error, Unreachable):
                self._uncleaned[worker.id] = worker.place
                self._failed(worker.environment, error)  # first, lest its attempt be sent here again
            self._ended(worker)
            return
        finally:
            self.workers.pop(worker.id, None)
            self._back.set()
        self._ledger.gone(worker.id)

    async def end(self, worker: Worker) -> None:
        """Kill a worker; its serving task cleans up, and says so where it cannot."""
        with suppress(EnvironmentFault):
            await self._spawners[worker.place.kind].kill(worker.place)
        await worker.link.close()

    async def forget(self, place: Place) -> None:
        """Make sure that nothing is left of a place that has no serving task."""
        spawner = self._spawners.get(place.kind)
        if spawner is not None:
            await spawner.kill(place)
            await spawner.dispose(place)
        self._ledger.gone(place.worker)

    async def clean_again(self) -> None:
        """Clean away what could not be before."""
        for worker, place in list(self._uncleaned.items()):
            try:
                await self.forget(place)
            except EnvironmentFault:
                continue
            del self._uncleaned[worker]

    def give(self, worker: Worker, given: Given) -> None:
        """Write down that a worker has an attempt, or one more."""
        worker.attempts.append((given.job, given.attempt))
        worker.hold(given.lease_s)
        worker.returning = False
        if worker.id in self._ledger.entries:
            self._ledger.given(worker.id, given)

    def take(self, worker: Worker, attempt: tuple[int, int]) -> None:
        """Write down that a worker has an attempt no more."""
        worker.attempts.remove(attempt)
        if not worker.attempts:
            worker.hold(IDLE_LEASE_S)
            comes_back = worker.place.kind is Kind.PROCESS or worker.place.permanent
            worker.returning = comes_back and not worker.narrowed
        if worker.id in self._ledger.entries:
            self._ledger.taken(worker.id, *attempt)

    # Spares.

    async def acquire(self, state: EnvironmentState) -> Worker:
        """A worker for one attempt: a spare, else one that is just coming back, else a new one. EnvironmentFault."""
        while True:
            spare = self.take_spare(state)
            if spare is not None:
                return spare
            alive = [item for item in self.workers.values() if item.environment == state.config.name]
            if len(alive) < self._most_of(state) or not any(item.returning for item in alive):
                return await self.spawn(state)
            self._back.clear()
            await self._back.wait()

    def _most_of(self, state: EnvironmentState) -> int:
        """How many workers of an environment there may be before one that comes back is waited for."""
        return (state.config.slots or self._slots) if state.config.permanent else self._most

    def take_spare(self, state: EnvironmentState) -> Worker | None:
        """A worker that waits for an attempt, if there is one."""
        while state.idle:
            worker = self.workers.get(state.idle.pop())
            if worker is not None and not worker.died.is_set():
                return worker
        return None

    def take_back(self, worker: Worker, state: EnvironmentState) -> bool:
        """Count a worker whose attempt has just ended as a spare, where it is one at once; whether it is."""
        return worker.returning and worker.environment == state.config.name and self.release(worker, state)

    def refill(self, state: EnvironmentState) -> None:
        """Make spares in the background until there are as many as wanted.

        Workers that are used again come back by themselves: no more of them are made than there are slots.
        """
        while state.usable and not self._closing and len(state.idle) + state.coming < self._wanted(state):
            state.coming += 1
            self._tasks.create_task(self._make_spare(state), name=f"spare for {state.config.name}")

    def _wanted(self, state: EnvironmentState) -> int:
        if not used_again(state):
            return state.config.spares
        alive = sum(1 for item in self.workers.values() if item.environment == state.config.name)
        out = max(0, alive - len(state.idle) - state.coming)  # with an attempt, or on their way back from one
        return min(state.config.spares, max(0, self._slots - out))

    async def _make_spare(self, state: EnvironmentState) -> None:
        try:
            worker = await self.spawn(state)
            if state.dropped:
                await self.end(worker)
            else:
                state.idle.append(worker.id)
        except EnvironmentFault as error:
            if not state.dropped:
                self._failed(state.config.name, error)
        finally:
            state.coming -= 1

    def release(self, worker: Worker, state: EnvironmentState) -> bool:
        """A used worker is clean and idle again; False when there are enough of them."""
        worker.returning = False
        self._back.set()
        if len(state.idle) >= max(state.config.spares, self._most) or self._closing:
            return False
        state.idle.append(worker.id)
        return True

    def close(self) -> None:
        """From now on workers are left as they are: those with an attempt go on, the others end by themselves."""
        self._closing = True


def used_again(state: EnvironmentState) -> bool:
    """Whether a worker serves attempt after attempt; in its own root each serves one, unless it is permanent."""
    return state.config.kind is Kind.PROCESS or state.config.permanent


async def facts_inside(pool: Pool, state: EnvironmentState) -> tuple[Facts, Worker]:
    """What an environment says of itself from inside, and the worker that said it. Raises EnvironmentFault."""
    worker = await pool.spawn(state, guess=True)
    assert worker.hello is not None
    if worker.hello.facts is None:
        raise EnvironmentFault(f"the worker in {state.config.name} did not say what it landed on")
    return worker.hello.facts, worker
