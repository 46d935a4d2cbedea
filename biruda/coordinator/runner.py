"""Attempts on this host, from assignment to outbox."""

import asyncio
import errno
import hashlib
import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from biruda.config.recipe import expand, in_environment
from biruda.coordinator.ahead import Ahead
from biruda.coordinator.attempts import EMPTY_LOG, Attempt
from biruda.coordinator.environments import EnvironmentState
from biruda.coordinator.ledger import Given
from biruda.coordinator.outbox import log_info
from biruda.coordinator.slots import Slots
from biruda.coordinator.sources import tar_pieces
from biruda.coordinator.spawners.protocol import MOST_LEASE_S, log_file
from biruda.coordinator.workers import Worker
from biruda.errors import BirudaError, EnvironmentFault, Unreachable
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
    Unassigned,
    WorkerHello,
    WorkerIdle,
)
from biruda.model import AttemptResult, Outcome

if TYPE_CHECKING:
    from biruda.coordinator.service import Coordinator

log = logging.getLogger("biruda.coordinator")

CANCEL_SLACK_S = 10.0
"""A worker that has not ended an attempt this long after the grace of a cancel is killed."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

STORE_AGAIN_S = 1.0
"""Between two tries to write to a disk that is full."""

START_TOLD_S = 0.02
"""The master hears of an attempt's start so long after it, unless it has ended by then."""


Key = tuple[int, int]


class Runner:
    """Gives attempts to workers, and takes what comes of them."""

    def __init__(self, coordinator: "Coordinator", tasks: asyncio.TaskGroup) -> None:
        self._host = coordinator
        self._tasks = tasks
        self._starts: dict[Key, AttemptStarted] = {}  # to be told soon
        self.slots = Slots(coordinator.slots, self._begin)
        self.ahead = Ahead(coordinator, self)

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
        self.slots.ask(attempt)

    def _begin(self, attempt: Attempt) -> None:
        """Its slot is free. What a spare can run as it is, it gets at once; all else takes a task."""
        assignment = attempt.assignment
        assert assignment is not None
        state = self._host.environments.get(assignment.environment)
        is_plain = assignment.source is None and not assignment.source_path and not assignment.recipe.limits.narrow
        worker = self._host.pool.take_spare(state) if state is not None and is_plain else None
        if state is None or worker is None:
            self._tasks.create_task(self._run(attempt, assignment), name=f"attempt {attempt.job}.{attempt.attempt}")
            return
        try:
            self._give(attempt, assignment, state, worker, None)
        except Exception as error:  # the border of one job: it fails, the host goes on
            self.fail_soon(attempt, error)

    async def _run(self, attempt: Attempt, assignment: Assignment) -> None:
        try:
            await self._start(attempt, assignment)
        except Exception as error:  # the border of one job: it fails, the host goes on
            await self._fail(attempt, error)

    async def _fail(self, attempt: Attempt, error: Exception) -> None:
        if isinstance(error, BirudaError):
            reason = f"{error}; {error.hint}" if error.hint else str(error)
            if isinstance(error, Unreachable):  # it comes back: then the attempt is run again
                self._host.environment_failed(attempt.environment, error)
                await self._end_without_worker(attempt, Outcome.INFRA, reason)
                return
            await self._end_without_worker(attempt, Outcome.ENVIRONMENT, reason)
        else:
            log.error("job=%d attempt=%d", attempt.job, attempt.attempt, exc_info=error)
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
        self._give(attempt, assignment, state, worker, source)
        if source is not None:
            await self._send_source(worker, attempt, source)

    def _give(
        self, attempt: Attempt, assignment: Assignment, state: EnvironmentState, worker: Worker, source: str | None
    ) -> None:
        """The attempt begins in this worker. Raises BirudaError for a recipe that cannot be expanded."""
        attempt.started_s = time.time()
        attempt.source = source
        prepared = self.prepared(attempt, assignment, state, worker, source)
        worker.post(Assign(assignments=(prepared, *self.ahead.given(worker, state))))
        self._tell_start(attempt)
        self._host.pool.refill(state)

    def prepared(
        self, attempt: Attempt, assignment: Assignment, state: EnvironmentState, worker: Worker, source: str | None
    ) -> Assignment:
        """What the worker is told, once it is written down that it has the attempt."""
        recipe = assignment.recipe
        if assignment.worker is not None:  # its strings stand in this host's biruda.conf; those of a user stay as typed
            recipe = expand(recipe, self._variables(state, assignment))
        recipe = in_environment(recipe, state.config)
        if recipe.limits.grace_s != assignment.recipe.limits.grace_s:
            recipe = replace(recipe, limits=replace(recipe.limits, grace_s=assignment.recipe.limits.grace_s))
        attempt.lease_s = min(attempt.lease_s, MOST_LEASE_S.get(worker.place.kind, attempt.lease_s))
        changed = recipe is not assignment.recipe or source != assignment.source
        if changed or attempt.lease_s != assignment.lease_s:
            assignment = replace(assignment, recipe=recipe, source=source, lease_s=attempt.lease_s)
        given = Given(
            job=attempt.job,
            attempt=attempt.attempt,
            lease_s=attempt.lease_s,
            started_s=attempt.started_s,
            source=source,
        )
        self._host.pool.give(worker, given)
        attempt.worker = worker.id
        attempt.log_path = log_file(worker.place, *attempt.key)
        return assignment

    def begun(self, attempt: Attempt) -> None:
        """It runs from now on."""
        attempt.started_s = time.time()
        self._tell_start(attempt)

    def start_again(self, attempt: Attempt) -> None:
        """It was given to a worker and has not begun there; what it was is not known any more of an adopted one."""
        attempt.worker, attempt.log_path = "", ""
        attempt.started_s = 0.0
        if attempt.assignment is not None and attempt.cancelled is None:
            self.slots.ask_again(attempt)
            return
        lost = (Outcome.INFRA, "it was lost between its coordinator and its worker")
        self._end_soon(attempt, *(attempt.cancelled or lost))

    def _free(self, key: Key) -> None:
        """An attempt has its slot no more."""
        self.slots.free(key)
        self.ahead.look()

    def fail_soon(self, attempt: Attempt, error: Exception) -> None:
        """It ends because it cannot be begun."""
        self._tasks.create_task(self._fail(attempt, error), name=f"end of {attempt.job}.{attempt.attempt}")

    def _end_soon(self, attempt: Attempt, outcome: Outcome, reason: str) -> None:
        work = self._end_without_worker(attempt, outcome, reason)
        self._tasks.create_task(work, name=f"end of {attempt.job}.{attempt.attempt}")

    def _tell_start(self, attempt: Attempt) -> None:
        """Soon: of an attempt that ends before, its result says all."""
        if not self._starts:
            asyncio.get_running_loop().call_later(START_TOLD_S, self._tell_starts)
        self._starts[attempt.key] = AttemptStarted(
            job=attempt.job, attempt=attempt.attempt, at_s=attempt.started_s, source=attempt.source
        )

    def _tell_starts(self) -> None:
        for message in self._starts.values():
            self._host.tell_master(message)
        self._starts.clear()

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
        self._free(attempt.key)

    def _finish(self, attempt: Attempt, result: AttemptResult) -> None:
        """The attempt is in the outbox; from here on it is the master's to take."""
        if attempt.cancelled is not None and result.outcome is Outcome.INFRA:
            result = replace(result, outcome=attempt.cancelled[0], reason=attempt.cancelled[1])
        attempt.result = result
        attempt.end_storing()
        ended = attempt.ended()
        self._host.ledger.ended(ended)
        start = self._starts.pop(attempt.key, None)
        if start is not None and start.source != (attempt.assignment.source if attempt.assignment else None):
            self._host.tell_master(start)  # which source it was stands nowhere else
        self._host.tell_master(ended)
        if attempt.log_owed_bytes > 0:
            self._host.pump.wake()

    async def from_worker(self, worker: Worker, message: FromWorker, payload: bytes) -> None:
        """What a worker says; only about attempts that it was given."""
        match message:
            case WorkerHello():
                self._resume(worker, message)
            case WorkerIdle():
                await self._used_again(worker)
            case Unassigned():
                self.ahead.came_back(worker, (message.job, message.attempt))
            case Notice():
                log.warning("worker=%s: %s", worker.id, message.text[:500])
                has_it = any(job == message.job for job, _ in worker.attempts)
                self._host.tell_master(replace(message, job=message.job if has_it else 0))
            case StepStarted():
                if self._attempt_of(worker, message.job, message.attempt) is not None:
                    self._host.link.post(payload)
            case StepEnded():
                attempt = self._attempt_of(worker, message.job, message.attempt)
                if attempt is not None:
                    if message.index == len(attempt.steps):
                        attempt.steps.append(message.result)
                    self._host.link.post(payload)
            case AttemptEnded():
                attempt = self._attempt_of(worker, message.job, message.attempt)
                if attempt is not None and attempt.result is None:
                    await self._collect(worker, attempt, message.result)
                else:
                    self._ended_unwanted(worker, (message.job, message.attempt))
            case _:
                assert_never(message)

    def _attempt_of(self, worker: Worker, job: int, number: int) -> Attempt | None:
        """An attempt that this worker was given, and that is wanted."""
        return self._host.attempts.get((job, number)) if (job, number) in worker.attempts else None

    def _ended_unwanted(self, worker: Worker, key: Key) -> None:
        """The result of an attempt that was given up, or is safe already."""
        job, number = key
        if worker.writes_its_log and key not in self._host.attempts:
            with suppress(FileNotFoundError):
                os.unlink(log_file(worker.place, job, number))
        if key in worker.attempts:
            was_first = worker.attempts[0] == key
            self._host.pool.take(worker, key)
            if was_first and not self.ahead.go_on(worker, key, self._host.environments.get(worker.environment)):
                self._free(key)
        worker.post(AttemptRecorded(job=job, attempt=number))

    def _resume(self, worker: Worker, hello: WorkerHello) -> None:
        """A connection to a worker that has attempts: go on after the last log byte that is in the file."""
        if not worker.attempts:
            return
        here = {(hello.job, hello.attempt), *hello.others}
        if worker.attempts[0] not in here or hello.awaits_source:
            # The coordinator died, or the connection broke, while it was given.
            self._tasks.create_task(self._host.pool.end(worker), name=f"end of worker {worker.id}")
            return
        for key in [key for key in worker.attempts if key not in here]:
            self.ahead.came_back(worker, key)
        attempt = self._attempt_of(worker, hello.job, hello.attempt)
        if attempt is not None:
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
        attempt = self._attempt_of(worker, item.header.job, item.header.attempt)
        if attempt is None:
            return
        if item.header.channel == 0:
            if not worker.writes_its_log:
                await self._store(attempt, item)
            self._host.pump.relay(attempt, item)
        elif attempt.collected is not None:
            await self._take_artifact(worker, attempt, item)

    async def _store(self, attempt: Attempt, item: DataFrame) -> None:
        """Log bytes are in the attempt's file on return; until then nothing more is read from the worker."""
        told = False
        while True:
            try:
                attempt.store_log(item.header.offset, item.payload)
                return
            except OSError as error:
                if not told:
                    what = f"no space left for the log of job {attempt.job} ({os.strerror(error.errno or 0)})"
                    self._host.tell_master(Notice(job=attempt.job, text=f"{what}; the job is paused until there is"))
                    told = True
                await asyncio.sleep(STORE_AGAIN_S)

    async def _collect(self, worker: Worker, attempt: Attempt, result: AttemptResult) -> None:
        """The worker's attempt has ended: fetch its artifacts, one of equal content once."""
        if attempt.collected is not None or attempt.result is not None:
            return
        if not worker.writes_its_log and attempt.log_size() != result.log.bytes:  # it lies about its own log
            result = replace(result, log=await asyncio.to_thread(log_info, attempt.log_path, complete=False))
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
            await self._write_artifact(attempt, fd, item)
            return
        os.close(attempt.collecting.pop(item.header.channel))
        if not attempt.collecting:
            await asyncio.to_thread(self._check_artifacts, attempt)
            self._complete(worker, attempt)

    async def _write_artifact(self, attempt: Attempt, fd: int, item: DataFrame) -> None:
        """The whole piece is in its file on return, however long the disk is full."""
        told, data, offset = False, memoryview(item.payload), item.header.offset
        while data:
            try:
                written = os.pwrite(fd, data, offset)
                data, offset = data[written:], offset + written
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                if not told:
                    self._host.tell_master(
                        Notice(job=attempt.job, text=f"no space left for the artifacts of job {attempt.job}: they wait")
                    )
                    told = True
                await asyncio.sleep(STORE_AGAIN_S)

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
            attempt.log_path = self._host.outbox.take_log(*attempt.key, log_file(worker.place, *attempt.key))
        attempt.log_bytes = max(attempt.log_bytes, result.log.bytes)
        attempt.worker = ""
        self.ahead.note(result)
        self._finish(attempt, result)
        was_first = worker.attempts[0] == attempt.key
        self._host.pool.take(worker, attempt.key)
        state = self._host.environments.get(attempt.environment)
        if not was_first or self.ahead.go_on(worker, attempt.key, state):
            worker.post(AttemptRecorded(job=attempt.job, attempt=attempt.attempt, next_follows=True))
            return
        is_light = attempt.assignment is not None and attempt.assignment.source is None and not result.artifacts
        takes_next = state is not None and is_light and self._host.pool.take_back(worker, state)
        worker.post(AttemptRecorded(job=attempt.job, attempt=attempt.attempt, next_follows=takes_next))
        self._free(attempt.key)
        worker.link.flush()  # it waits for this, perhaps for its next attempt too

    def worker_ended(self, worker: Worker) -> None:
        """A worker is dead, and all it made; an attempt that it still had is the infrastructure's fault."""
        for state in self._host.environments.values():
            if worker.id in state.idle:
                state.idle.remove(worker.id)
                self._host.pool.refill(state)
        keys, worker.attempts = worker.attempts, []
        for place, key in enumerate(keys):
            attempt = self._host.attempts.get(key)
            if attempt is None or attempt.result is not None:
                continue
            if place == 0:
                self._end_dead(worker, attempt)
            else:
                self.start_again(attempt)

    def _end_dead(self, worker: Worker, attempt: Attempt) -> None:
        attempt.worker = ""
        attempt.collected = None
        attempt.log_path = self._host.outbox.take_log(*attempt.key, log_file(worker.place, *attempt.key))
        outcome, reason = attempt.cancelled or (Outcome.INFRA, "its worker died")
        self._end_soon(attempt, outcome, reason)

    # What the master wants of a running attempt.

    def cancel(self, message: Cancel) -> None:
        """End an attempt: its worker does it, and is killed when it does not."""
        attempt = self._host.attempts.get((message.job, message.attempt))
        if attempt is None or attempt.result is not None:
            return
        attempt.cancelled = (Outcome(message.outcome), message.reason)
        if self.slots.withdraw(attempt):
            self._tasks.create_task(
                self._end_without_worker(attempt, *attempt.cancelled), name=f"cancel {message.job}.{message.attempt}"
            )
            return
        worker = self._host.pool.workers.get(attempt.worker)
        if worker is not None:
            worker.post(message)
            self._tasks.create_task(self._insist(attempt, worker), name=f"cancel {message.job}.{message.attempt}")

    async def _insist(self, attempt: Attempt, worker: Worker) -> None:
        try:
            async with asyncio.timeout(attempt.limits.grace_s + CANCEL_SLACK_S):
                await worker.died.wait()
        except TimeoutError:
            if attempt.key in worker.attempts:
                log.warning("job=%d attempt=%d does not end: its worker is killed", attempt.job, attempt.attempt)
                await self._host.pool.end(worker)

    async def forget(self, job: int, number: int) -> None:
        """The master has it, or wants to hear no more of it: nothing of the attempt is kept."""
        attempt = self._host.attempts.pop((job, number), None)
        if attempt is None:
            return
        attempt.cancelled = attempt.cancelled or (Outcome.CANCELLED, "it was given up by the master")
        self._starts.pop(attempt.key, None)
        self.slots.withdraw(attempt)
        worker = self._host.pool.workers.get(attempt.worker)
        if worker is not None and len(worker.attempts) > 1:  # the others in it are wanted
            worker.post(Cancel(job=job, attempt=number, outcome=Outcome.CANCELLED, reason=attempt.cancelled[1]))
            self._tasks.create_task(self._insist(attempt, worker), name=f"end of {job}.{number}")
        else:
            if worker is not None:
                worker.attempts.clear()
                await self._host.pool.end(worker)
            self._free(attempt.key)
        attempt.close()
        self._host.ledger.recorded(job, number)
        artifacts = attempt.result is None or attempt.collected is not None or bool(attempt.result.artifacts)
        if attempt.log_bytes or artifacts:
            self._host.outbox.forget(job, number, artifacts=artifacts)
