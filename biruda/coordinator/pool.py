"""The workers of this host: spares made ahead of need, given out, and cleaned away to the last process."""

import asyncio
import itertools
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from biruda.coordinator.environments import EnvironmentState
from biruda.coordinator.ledger import Given, Ledger
from biruda.coordinator.spawners.protocol import Place, Spawner
from biruda.coordinator.workers import HELLO_S, TakeData, TakeMessage, Worker, connect, open_pidfd, serve
from biruda.errors import EnvironmentFault
from biruda.model import Facts, Kind

log = logging.getLogger("biruda.coordinator")

IDLE_LEASE_S = 60.0


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
        self._numbers = itertools.count(1)
        self._prefix = f"{int(time.time()):x}"
        self._closing = False
        self._back = asyncio.Event()  # a worker came back, or will not
        self.workers: dict[str, Worker] = {}

    async def spawn(self, state: EnvironmentState, *, guess: bool = False) -> Worker:
        """A worker that has said hello. Raises EnvironmentFault; then nothing of it is left."""
        worker_id = f"{self._prefix}-{next(self._numbers):x}"
        place = state.spawner.plan(state.config, worker_id, secrets.token_hex(8), self._directory / worker_id)
        self._ledger.planned(place)
        try:
            facts = state.static or state.host_facts
            spawned = await state.spawner.spawn(state.config, place, facts, lease_s=IDLE_LEASE_S, guess=guess)
        except BaseException:
            self._ledger.gone(worker_id)
            raise
        self._ledger.spawned(spawned.place)
        worker = Worker(spawned.place, state.config.name)
        self.workers[worker_id] = worker
        self._tasks.create_task(
            self._serve(worker, spawned.connection, spawned.pidfd, IDLE_LEASE_S), name=f"worker {worker_id}"
        )
        await self._greet(worker)
        return worker

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
            raise EnvironmentFault(
                f"a worker in {worker.environment} ended before it said hello",
                hint="the daemon's log may say more; biruda env probe tries again",
            )

    async def adopt(self, place: Place, attempt: tuple[int, int], lease_s: float) -> Worker | None:
        """The worker of an earlier process with its attempt, if it lives and answers; None: it does not."""
        try:
            pidfd = open_pidfd(place)
        except (OSError, ValueError):
            return None
        try:
            connection = connect(place)
        except OSError:
            os.close(pidfd)
            return None
        worker = Worker(place, place.environment, attempt=attempt)
        self.workers[worker.id] = worker
        self._tasks.create_task(self._serve(worker, connection, pidfd, lease_s), name=f"worker {worker.id}")
        try:
            await self._greet(worker)
        except EnvironmentFault:
            return None
        return worker

    async def _serve(self, worker: Worker, connection: socket.socket, pidfd: int, lease_s: float) -> None:
        """One worker until nothing of it is left."""
        try:
            await serve(worker, connection, pidfd, lease_s, self._take, self._take_data)
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
            self._ended(worker)
            return
        finally:
            self.workers.pop(worker.id, None)
            self._back.set()
        self._ledger.gone(worker.id)

    async def end(self, worker: Worker) -> None:
        """Kill a worker; its serving task cleans up."""
        await self._spawners[worker.place.kind].kill(worker.place)
        await worker.link.close()

    async def forget(self, place: Place) -> None:
        """Make sure that nothing is left of a place that has no serving task."""
        spawner = self._spawners.get(place.kind)
        if spawner is not None:
            await spawner.kill(place)
            await spawner.dispose(place)
        self._ledger.gone(place.worker)

    def give(self, worker: Worker, given: Given | None) -> None:
        """Write down which attempt a worker has."""
        worker.attempt = (given.job, given.attempt) if given is not None else None
        worker.returning = given is None and worker.place.kind is Kind.PROCESS and not worker.narrowed
        if worker.id in self._ledger.entries:
            self._ledger.given(worker.id, given)

    # Spares.

    async def acquire(self, state: EnvironmentState) -> Worker:
        """A worker for one attempt: a spare, else one that is just coming back, else a new one. EnvironmentFault."""
        while True:
            while state.idle:
                worker = self.workers.get(state.idle.pop())
                if worker is not None and not worker.died.is_set():
                    return worker
            alive = [item for item in self.workers.values() if item.environment == state.config.name]
            if len(alive) < self._most or not any(item.returning for item in alive):
                return await self.spawn(state)
            self._back.clear()
            await self._back.wait()

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
            state.idle.append(worker.id)
        except EnvironmentFault as error:
            state.fail(error)
            log.error("environment=%s cannot be used: %s", state.config.name, error)
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
    """Whether a worker serves attempt after attempt; in its own root each serves one."""
    return state.config.kind is Kind.PROCESS


async def facts_inside(pool: Pool, state: EnvironmentState) -> tuple[Facts, Worker]:
    """What an environment says of itself from inside, and the worker that said it. Raises EnvironmentFault."""
    worker = await pool.spawn(state, guess=True)
    assert worker.hello is not None
    if worker.hello.facts is None:
        raise EnvironmentFault(f"the worker in {state.config.name} did not say what it landed on")
    return worker.hello.facts, worker
