"""Attempts on this host, from assignment to outbox."""

import asyncio
import hashlib
import logging
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from biruda.config.recipe import expand, in_environment
from biruda.coordinator.attempts import EMPTY_LOG, Attempt
from biruda.coordinator.environments import EnvironmentState
from biruda.coordinator.ledger import Given
from biruda.coordinator.outbox import log_info
from biruda.coordinator.sources import tar_pieces
from biruda.coordinator.workers import Worker
from biruda.errors import BirudaError, EnvironmentFault
from biruda.frames import DataFrame, DataHeader
from biruda.messages import (
    Assign,
    Assignment,
    AttemptEnded,
    AttemptRecorded,
    AttemptStarted,
    Cancel,
    FromWorker,
    Notice,
    StepEnded,
    StepStarted,
    StreamsWanted,
    WorkerHello,
    WorkerIdle,
)
from biruda.model import AttemptResult, Outcome

if TYPE_CHECKING:
    from biruda.coordinator.service import Coordinator

log = logging.getLogger("biruda.coordinator")

CANCEL_SLACK_S = 10.0
"""A worker that has not ended an attempt this long after the grace of a cancel is killed."""


class Runner:
    """Gives attempts to workers, and takes what comes of them."""

    def __init__(self, coordinator: "Coordinator", tasks: asyncio.TaskGroup) -> None:
        self._host = coordinator
        self._tasks = tasks
        self._slots = asyncio.Semaphore(coordinator.slots)
        self._holding: set[tuple[int, int]] = set()

    def hold_slot(self, key: tuple[int, int]) -> None:
        """An adopted attempt has a slot, were it even one too many."""
        if not self._slots.locked():
            self._slots._value -= 1
            self._holding.add(key)

    def _free_slot(self, key: tuple[int, int]) -> None:
        if key in self._holding:
            self._holding.discard(key)
            self._slots.release()

    # Assignments.

    def assign(self, assignment: Assignment) -> None:
        """Run it; one that is here already is not run twice."""
        key = (assignment.job, assignment.attempt)
        if key in self._host.attempts:
            return
        attempt = Attempt(
            job=assignment.job,
            attempt=assignment.attempt,
            environment=assignment.environment,
            lease_s=assignment.lease_s,
            assignment=assignment,
            limits=assignment.recipe.limits,
        )
        self._host.attempts[key] = attempt
        self._tasks.create_task(self._run(attempt, assignment), name=f"attempt {assignment.job}.{assignment.attempt}")

    async def _run(self, attempt: Attempt, assignment: Assignment) -> None:
        await self._slots.acquire()
        self._holding.add(attempt.key)
        try:
            if attempt.cancelled is not None:
                await self._end_without_worker(attempt, *attempt.cancelled)
                return
            await self._start(attempt, assignment)
        except BirudaError as error:
            reason = f"{error}; {error.hint}" if error.hint else str(error)
            await self._end_without_worker(attempt, Outcome.ENVIRONMENT, reason)
        except Exception as error:  # the border of one job: it fails, the host goes on
            log.exception("job=%d attempt=%d", attempt.job, attempt.attempt)
            await self._end_without_worker(attempt, Outcome.INFRA, f"a fault of biruda: {error!r}")

    async def _start(self, attempt: Attempt, assignment: Assignment) -> None:
        host = self._host
        state = host.environments.get(assignment.environment)
        if state is None:
            raise EnvironmentFault(f"{host.host} has no environment {assignment.environment!r} any more")
        source = assignment.source
        if source is not None:
            await host.sources.ensure(source)
        elif assignment.source_path:
            source = await host.sources.add_directory(assignment.source_path)
        worker = await host.pool.acquire(state)
        recipe = assignment.recipe
        if assignment.worker is not None:  # its strings stand in this host's biruda.conf; those of a user stay as typed
            recipe = expand(recipe, self._variables(state, assignment))
        recipe = in_environment(recipe, state.config)
        recipe = replace(recipe, limits=replace(recipe.limits, grace_s=assignment.recipe.limits.grace_s))
        limits = assignment.recipe.limits
        worker.narrowed = any((limits.memory_bytes, limits.pids, limits.cpus))
        try:
            await state.spawner.limit(worker.place, limits)
        except EnvironmentFault:
            await host.pool.end(worker)
            raise
        if attempt.cancelled is not None:
            await host.pool.end(worker)
            await self._end_without_worker(attempt, *attempt.cancelled)
            return
        attempt.started_s = time.time()
        given = Given(job=attempt.job, attempt=attempt.attempt, lease_s=attempt.lease_s, started_s=attempt.started_s)
        host.pool.give(worker, given)
        attempt.worker = worker.id
        attempt.log_path = _room(worker)
        worker.post(Assign(assignments=(replace(assignment, recipe=recipe, source=source),)))
        host.tell_master(
            AttemptStarted(
                job=attempt.job,
                attempt=attempt.attempt,
                at_s=attempt.started_s,
                source=source,
            )
        )
        host.pool.refill(state)
        if source is not None:
            await self._send_source(worker, attempt, source)

    def _variables(self, state: EnvironmentState, assignment: Assignment) -> dict[str, str]:
        return {
            "arch": state.arch,
            "platform": state.platform,
            "host": self._host.host,
            "name": assignment.worker or assignment.name,
            "job": str(assignment.job),
        }

    async def _send_source(self, worker: Worker, attempt: Attempt, digest: str) -> None:
        packs = self._host.sources.packs
        with packs.pinned(digest) as path:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                offset = 0
                for piece in tar_pieces(fd, os.fstat(fd).st_size):
                    await self._send_piece(worker, attempt, offset, piece)
                    offset += len(piece)
                await self._send_piece(worker, attempt, offset, b"")
            except ConnectionError:
                return  # the worker is dead or speaks no more; its end is handled where it is seen
            finally:
                os.close(fd)

    async def _send_piece(self, worker: Worker, attempt: Attempt, offset: int, piece: bytes) -> None:
        while worker.link.credit_bytes <= 0:
            if worker.died.is_set():
                raise ConnectionResetError(worker.id)
            await worker.link.credit()
        worker.link.post_data(DataHeader(attempt.job, attempt.attempt, 0, offset), piece)

    # The end of attempts.

    async def _end_without_worker(self, attempt: Attempt, outcome: Outcome, reason: str) -> None:
        """An attempt that has no worker (any more) ends with what it printed so far."""
        if attempt.result is not None:
            return
        info = EMPTY_LOG
        if attempt.log_path:
            info = await asyncio.to_thread(log_info, attempt.log_path, complete=False)
            attempt.log_bytes = info.bytes
        self._finish(attempt, attempt.broken(outcome, reason, info, time.time()))

    def _finish(self, attempt: Attempt, result: AttemptResult) -> None:
        """The attempt is in the outbox; from here on it is the master's to take."""
        if attempt.cancelled is not None and result.outcome is Outcome.INFRA:
            result = replace(result, outcome=attempt.cancelled[0], reason=attempt.cancelled[1])
        attempt.result = result
        self._host.ledger.ended(attempt.ended())
        self._free_slot(attempt.key)
        self._host.tell_master(attempt.ended())
        self._host.pump.wake()

    async def from_worker(self, worker: Worker, message: FromWorker, payload: bytes) -> None:
        """What a worker says; only about the attempt that it was given."""
        attempt = self._host.attempts.get(worker.attempt) if worker.attempt is not None else None
        match message:
            case WorkerHello():
                self._resume(worker, message, attempt)
            case WorkerIdle():
                await self._used_again(worker)
            case Notice():
                log.warning("worker=%s: %s", worker.id, message.text[:500])
                self._host.tell_master(replace(message, job=attempt.job if attempt else 0))
            case StepStarted():
                if attempt is not None and attempt.key == (message.job, message.attempt):
                    self._host.link.post(payload)
            case StepEnded():
                if attempt is not None and attempt.key == (message.job, message.attempt):
                    if message.index == len(attempt.steps):
                        attempt.steps.append(message.result)
                    self._host.link.post(payload)
            case AttemptEnded():
                if attempt is not None and attempt.key == (message.job, message.attempt):
                    await self._collect(worker, attempt, message.result)
            case _:
                assert_never(message)

    def _resume(self, worker: Worker, hello: WorkerHello, attempt: Attempt | None) -> None:
        """A connection to a worker in the middle of its attempt: go on after the last log byte that is in the file."""
        if attempt is None or hello.job == 0:
            return
        attempt.log_bytes = max(attempt.log_bytes, min(hello.log_end, attempt.log_size()))
        attempt.steps = list(hello.steps)
        worker.post(StreamsWanted(job=attempt.job, attempt=attempt.attempt, streams=((0, attempt.log_bytes),)))
        self._host.pump.wake()

    async def _used_again(self, worker: Worker) -> None:
        state = self._host.environments.get(worker.environment)
        if state is None or worker.narrowed or not self._host.pool.release(worker, state):
            await self._host.pool.end(worker)

    async def data_from_worker(self, worker: Worker, item: DataFrame) -> None:
        """Log bytes go on to the master, artifact bytes into the outbox."""
        attempt = self._host.attempts.get(worker.attempt) if worker.attempt is not None else None
        if attempt is None or attempt.key != (item.header.job, item.header.attempt):
            return
        if item.header.channel == 0:
            self._host.pump.relay(attempt, item)
        elif attempt.collected is not None:
            await self._take_artifact(worker, attempt, item)

    async def _collect(self, worker: Worker, attempt: Attempt, result: AttemptResult) -> None:
        """The worker's attempt has ended: fetch its artifacts, one of equal content once."""
        if attempt.collected is not None or attempt.result is not None:
            return
        attempt.collected = result
        if result.artifacts:
            self._host.outbox.begin_artifacts(attempt.job, attempt.attempt)
        seen: set[str] = set()
        for channel, artifact in enumerate(result.artifacts, start=1):
            if artifact.sha256 not in seen:
                seen.add(artifact.sha256)
                path = self._host.outbox.artifact(attempt.job, attempt.attempt, channel)
                attempt.collecting[channel] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if attempt.collecting:
            wanted = tuple((channel, 0) for channel in attempt.collecting)
            worker.post(StreamsWanted(job=attempt.job, attempt=attempt.attempt, streams=wanted))
        else:
            self._complete(worker, attempt)

    async def _take_artifact(self, worker: Worker, attempt: Attempt, item: DataFrame) -> None:
        fd = attempt.collecting.get(item.header.channel)
        if fd is None:
            return
        if item.payload:
            os.pwrite(fd, item.payload, item.header.offset)
            return
        os.close(attempt.collecting.pop(item.header.channel))
        if not attempt.collecting:
            await asyncio.to_thread(self._check_artifacts, attempt)
            self._complete(worker, attempt)

    def _check_artifacts(self, attempt: Attempt) -> None:
        """Leave out what is not what the worker said it is. Blocking."""
        assert attempt.collected is not None
        good: set[str] = set()
        for channel, artifact in enumerate(attempt.collected.artifacts, start=1):
            path = self._host.outbox.artifact(attempt.job, attempt.attempt, channel)
            if artifact.sha256 in good or not os.path.exists(path):
                continue
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (digest, os.stat(path).st_size) == (artifact.sha256, artifact.bytes):
                good.add(artifact.sha256)
        kept = tuple(item for item in attempt.collected.artifacts if item.sha256 in good)
        if kept != attempt.collected.artifacts:
            self._renumber(attempt, kept)

    def _renumber(self, attempt: Attempt, kept: "tuple[object, ...]") -> None:
        """Give the artifacts that stay the channels that their places in the result mean."""
        assert attempt.collected is not None
        old = attempt.collected.artifacts
        for channel, artifact in enumerate(old, start=1):
            if artifact in kept:
                source = self._host.outbox.artifact(attempt.job, attempt.attempt, channel)
                target = self._host.outbox.artifact(attempt.job, attempt.attempt, kept.index(artifact) + 1)
                if os.path.exists(source):
                    os.replace(source, target)
        lost = ", ".join(item.path for item in old if item not in kept)
        artifacts = tuple(item for item in old if item in kept)
        reason = attempt.collected.reason or f"artifacts changed while they were collected: {lost}"
        attempt.collected = replace(attempt.collected, artifacts=artifacts, reason=reason)

    def _complete(self, worker: Worker, attempt: Attempt) -> None:
        """Everything of the attempt is on this host's disk: the worker may forget it."""
        result, attempt.collected = attempt.collected, None
        assert result is not None
        if result.log.bytes:
            attempt.log_path = self._host.outbox.take_log(attempt.job, attempt.attempt, _room(worker))
        attempt.log_bytes = max(attempt.log_bytes, result.log.bytes)
        attempt.worker = ""
        self._finish(attempt, result)
        self._host.pool.give(worker, None)
        worker.post(AttemptRecorded(job=attempt.job, attempt=attempt.attempt))

    def worker_ended(self, worker: Worker) -> None:
        """A worker is dead, and all it made; an attempt that it still had is the infrastructure's fault."""
        for state in self._host.environments.values():
            if worker.id in state.idle:
                state.idle.remove(worker.id)
                self._host.pool.refill(state)
        attempt = self._host.attempts.get(worker.attempt) if worker.attempt is not None else None
        if attempt is None or attempt.result is not None:
            return
        attempt.worker = ""
        attempt.collected = None
        attempt.log_path = self._host.outbox.take_log(attempt.job, attempt.attempt, _room(worker))
        outcome, reason = attempt.cancelled or (Outcome.INFRA, "its worker died")
        self._tasks.create_task(
            self._end_without_worker(attempt, outcome, reason), name=f"end of {attempt.job}.{attempt.attempt}"
        )

    # What the master wants of a running attempt.

    def cancel(self, message: Cancel) -> None:
        """End an attempt: its worker does it, and is killed when it does not."""
        attempt = self._host.attempts.get((message.job, message.attempt))
        if attempt is None or attempt.result is not None:
            return
        attempt.cancelled = (Outcome(message.outcome), message.reason)
        worker = self._host.pool.workers.get(attempt.worker)
        if worker is not None:
            worker.post(message)
            self._tasks.create_task(self._insist(attempt, worker), name=f"cancel {message.job}.{message.attempt}")

    async def _insist(self, attempt: Attempt, worker: Worker) -> None:
        try:
            async with asyncio.timeout(attempt.limits.grace_s + CANCEL_SLACK_S):
                await worker.died.wait()
        except TimeoutError:
            if attempt.worker == worker.id:
                log.warning("job=%d attempt=%d does not end: its worker is killed", attempt.job, attempt.attempt)
                await self._host.pool.end(worker)

    async def forget(self, job: int, number: int) -> None:
        """The master has it, or wants to hear no more of it: nothing of the attempt is kept."""
        attempt = self._host.attempts.pop((job, number), None)
        if attempt is None:
            return
        attempt.cancelled = attempt.cancelled or (Outcome.CANCELLED, "it was given up by the master")
        worker = self._host.pool.workers.get(attempt.worker)
        if worker is not None:
            worker.attempt = None
            await self._host.pool.end(worker)
        self._free_slot(attempt.key)
        attempt.close()
        self._host.ledger.recorded(job, number)
        artifacts = attempt.result is None or bool(attempt.result.artifacts)
        if attempt.log_bytes or artifacts:
            self._host.outbox.forget(job, number, artifacts=artifacts)


def _room(worker: Worker) -> str:
    """The file in which a worker keeps its attempt's log."""
    return f"{worker.place.directory}/log"
