"""All the master knows of jobs and hosts, and what follows from each event. No I/O, no clock, no await."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import assert_never

from biruda.master import events as ev
from biruda.master.matching import misfits
from biruda.master.state import ClassKey, Host, LiveJob, Placed, Waiting
from biruda.messages import Assign, Assignment, AttemptRecorded, Cancel, HostReport
from biruda.model import AttemptResult, EnvironmentReport, JobSpec, LogInfo, Outcome, StepResult, WorkerReport

_CHANGES_NO_PLACE = (ev.HostLost, ev.AttemptBegan, ev.StepFinished)
"""Nothing can be placed after these that could not be before."""


class Farm:
    """The one truth while the process lives; changes only in handle()."""

    def __init__(self, *, lease_s: float = 3600.0, next_job: int = 1) -> None:
        self.lease_s = lease_s
        self.next_job = next_job
        self.jobs: dict[int, LiveJob] = {}
        self.leaving: dict[int, LiveJob] = {}  # ended, and perhaps not yet on disk: whoever commits clears it
        self.hosts: dict[str, Host] = {}
        self._waiting: dict[
            ClassKey, list[tuple[int, int]]
        ] = {}  # heaps of (-priority, job); may hold jobs that moved on
        self._turn = 0

    # What happened.

    def handle(self, *events: ev.Event) -> list[ev.Action]:
        """Take events in, one after the other; what may start now is decided once, after the last.

        The actions are to be carried out in their order.
        """
        actions: list[ev.Action] = []
        frees_room = False
        for event in events:
            actions += self._take(event)
            frees_room = frees_room or not isinstance(event, _CHANGES_NO_PLACE)
        if frees_room:
            actions += self._dispatch(events[-1].at)
        return actions

    def _take(self, event: ev.Event) -> list[ev.Action]:
        match event:
            case ev.JobsSubmitted():
                return self._submit(event)
            case ev.HostReported():
                return self._report(event)
            case ev.HostResumed():
                return self._resume(event)
            case ev.HostLost():
                return self._lose_link(event)
            case ev.AttemptBegan():
                return self._begin(event)
            case ev.StepFinished():
                return self._step(event)
            case ev.AttemptFinished():
                return self._finish_attempt(event)
            case ev.CancelRequested():
                return self._cancel(event)
            case ev.RetryRequested():
                return self._retry(event)
            case ev.Tick():
                return self._expire(event.at)
            case _:
                assert_never(event)

    def next_deadline_s(self) -> float | None:
        """When a Tick is due, on the monotonic clock; None: nothing can expire."""
        lost = [host.lost_mono_s for host in self.hosts.values() if host.lost_mono_s is not None and host.running]
        return min(lost) + self.lease_s if lost else None

    def restore(self, jobs: Iterable[LiveJob], hosts: Iterable[HostReport], at: ev.Instant) -> None:
        """Begin with what a store remembers: placed attempts wait for their host to come back and be adopted."""
        for report in hosts:
            self.hosts[report.host] = Host(report=report, running={}, lost_mono_s=at.mono_s, heard_wall_s=at.wall_s)
        for job in jobs:
            self.jobs[job.job] = job
            match job.state:
                case Waiting():
                    self._enqueue(job)
                case Placed(placement=placement):
                    host = self.hosts.get(placement.host)
                    if host is None:
                        report = HostReport(
                            host=placement.host, arch="unknown", platform="unknown", slots=0, pid=0, version=""
                        )
                        host = self.hosts[placement.host] = Host(
                            report=report, running={}, lost_mono_s=at.mono_s, heard_wall_s=at.wall_s
                        )
                    host.running[job.job] = placement.environment.name
                case _:
                    assert_never(job.state)

    def _submit(self, event: ev.JobsSubmitted) -> list[ev.Action]:
        actions: list[ev.Action] = []
        waiting = Waiting(since_s=event.at.wall_s)  # one for all: there may be a million of them
        for spec in event.specs:
            job = LiveJob(job=self.next_job, spec=spec, submitted_s=event.at.wall_s, state=waiting)
            self.next_job += 1
            self.jobs[job.job] = job
            actions += self._queue(job, event.at)
        return actions

    def _queue(self, job: LiveJob, at: ev.Instant) -> list[ev.Action]:
        if not isinstance(job.state, Waiting):
            job.state = Waiting(since_s=at.wall_s)
        self._enqueue(job)
        return [
            ev.SaveQueued(
                job=job.job,
                spec=job.spec,
                submitted_s=job.submitted_s,
                last_attempt=job.last_attempt,
                infra_failures=job.infra_failures,
            ),
            ev.Emit(kind="job.queued", at_s=at.wall_s, job=job.job, body={"name": job.spec.name}),
        ]

    def _enqueue(self, job: LiveJob) -> None:
        heapq.heappush(self._waiting.setdefault(self._key(job), []), (-job.spec.priority, job.job))

    @staticmethod
    def _key(job: LiveJob) -> ClassKey:
        return tuple(sorted(job.spec.requirements.items()))

    def _report(self, event: ev.HostReported) -> list[ev.Action]:
        report, at = event.report, event.at
        host = self.hosts.get(report.host)
        kind = "host.changed" if host is not None and host.connected and not event.fresh else "host.connected"
        if host is None:
            host = self.hosts[report.host] = Host(report=report, running={}, lost_mono_s=None, heard_wall_s=at.wall_s)
        host.report, host.lost_mono_s, host.heard_wall_s = report, None, at.wall_s
        actions: list[ev.Action] = [
            ev.Emit(kind=kind, at_s=at.wall_s, body={"host": report.host, "slots": report.slots})
        ]
        actions.append(ev.SaveHost(report=replace(report, attempts=())))
        if event.fresh:
            actions += self._reconcile(host, report, at)
        return actions

    def _reconcile(self, host: Host, report: HostReport, at: ev.Instant) -> list[ev.Action]:
        """Adopt what the host still has, run again what it has not, make it forget what is nobody's."""
        actions: list[ev.Action] = []
        held = {(item.job, item.attempt): item for item in report.attempts}
        for number in list(host.running):
            job, placed = self._placed(number)
            here = held.pop((number, placed.placement.attempt), None)
            if here is None and placed.placement.started_s is None:
                # Sent while the report was on its way, it may still arrive.
                actions.append(self._forget(report.host, number, placed.placement.attempt))
                actions += self._withdraw(job, placed, at)
            elif here is None:
                actions += self._lose_attempt(job, placed, at, f"{report.host} came back without it")
            else:
                if here.started and placed.placement.started_s is None:  # what said so was lost with a session
                    actions += self._started(job, placed, at.wall_s, here.source, at)
                if placed.cancelling and not here.ended:
                    actions.append(self._cancel_message(number, placed, report.host))
        actions += [
            ev.Send(host=report.host, message=AttemptRecorded(job=job, attempt=attempt)) for job, attempt in held
        ]
        return actions

    def _withdraw(self, job: LiveJob, placed: Placed, at: ev.Instant) -> list[ev.Action]:
        """An attempt that never began: it does not count against the job."""
        self._leave_host(job, placed)
        actions: list[ev.Action] = [ev.Drop(job=job.job, attempt=placed.placement.attempt)]
        if placed.cancelling:
            return [*actions, *self._finish(job, Outcome(placed.cancelling), None, placed.reason, at)]
        return [*actions, *self._queue(job, at)]

    def _lose_attempt(self, job: LiveJob, placed: Placed, at: ev.Instant, reason: str) -> list[ev.Action]:
        result = AttemptResult(
            outcome=Outcome.INFRA,
            exit_status=None,
            steps=placed.placement.steps,
            log=LogInfo(bytes=0, sha256="", complete=False),
            reason=reason,
            started_s=placed.placement.started_s or placed.placement.assigned_s,
            finished_s=at.wall_s,
        )
        return self._end_attempt(job, placed, result, at)

    def _resume(self, event: ev.HostResumed) -> list[ev.Action]:
        host = self.hosts.get(event.host)
        if host is None or host.connected:
            return []
        host.lost_mono_s, host.heard_wall_s = None, event.at.wall_s
        return [ev.Emit(kind="host.connected", at_s=event.at.wall_s, body={"host": event.host})]

    def _lose_link(self, event: ev.HostLost) -> list[ev.Action]:
        host = self.hosts.get(event.host)
        if host is None or not host.connected:
            return []
        host.lost_mono_s, host.heard_wall_s = event.at.mono_s, event.at.wall_s
        return [
            ev.Emit(kind="host.lost", at_s=event.at.wall_s, body={"host": event.host, "jobs": sorted(host.running)})
        ]

    def _begin(self, event: ev.AttemptBegan) -> list[ev.Action]:
        current = self._current(event.host, event.job, event.attempt)
        if current is None:
            return [self._forget(event.host, event.job, event.attempt)]
        job, placed = current
        if placed.placement.started_s is not None:
            return []
        return self._started(job, placed, event.started_s, event.source, event.at)

    def _started(
        self, job: LiveJob, placed: Placed, started_s: float, source: str | None, at: ev.Instant
    ) -> list[ev.Action]:
        placed, emit = self._note_start(job, placed, started_s, source, at)
        return [self._save(job.job, placed), emit]

    @staticmethod
    def _note_start(
        job: LiveJob, placed: Placed, started_s: float, source: str | None, at: ev.Instant
    ) -> tuple[Placed, ev.Emit]:
        placement = replace(placed.placement, started_s=started_s, source=source or job.spec.source)
        job.state = placed = replace(placed, placement=placement)
        body = {"attempt": placement.attempt, "host": placement.host, "environment": placement.environment.name}
        return placed, ev.Emit(kind="job.started", at_s=at.wall_s, job=job.job, body=body)

    def _step(self, event: ev.StepFinished) -> list[ev.Action]:
        current = self._current(event.host, event.job, event.attempt)
        if current is None or event.index != len(current[1].placement.steps):
            return []
        job, placed = current
        placement = replace(placed.placement, steps=(*placed.placement.steps, event.result))
        job.state = replace(placed, placement=placement)
        return [self._step_ended(job.job, event.index, event.result, event.at)]

    @staticmethod
    def _step_ended(job: int, index: int, result: StepResult, at: ev.Instant) -> ev.Emit:
        body = {"index": index, "name": result.name, "exit_status": result.exit_status}
        return ev.Emit(kind="job.step", at_s=at.wall_s, job=job, body=body)

    def _finish_attempt(self, event: ev.AttemptFinished) -> list[ev.Action]:
        current = self._current(event.host, event.job, event.attempt)
        if current is None:
            return [self._forget(event.host, event.job, event.attempt)]
        job, placed = current
        untold: list[ev.Action] = []  # of a short attempt only the result is told
        if placed.placement.started_s is None and event.result.steps:
            placed, emit = self._note_start(job, placed, event.result.started_s, None, event.at)
            untold.append(emit)
        seen = len(placed.placement.steps)
        untold += [
            self._step_ended(job.job, index, step, event.at)
            for index, step in enumerate(event.result.steps[seen:], start=seen)
        ]
        return [
            *untold,
            *self._end_attempt(job, placed, event.result, event.at),
            self._forget(event.host, event.job, event.attempt),
        ]

    def _end_attempt(self, job: LiveJob, placed: Placed, result: AttemptResult, at: ev.Instant) -> list[ev.Action]:
        self._leave_host(job, placed)
        if placed.placement.started_s is not None:
            host = self.hosts[placed.placement.host]
            host.attempt_s = 0.7 * host.attempt_s + 0.3 * max(0.001, result.finished_s - result.started_s)
        again = result.outcome in (Outcome.INFRA, Outcome.PREEMPTED)
        if again and placed.cancelling:
            result = replace(result, outcome=Outcome(placed.cancelling), reason=placed.reason)
            again = result.outcome is Outcome.PREEMPTED
        actions: list[ev.Action] = [
            ev.SaveAttempt(
                job=job.job, spec=job.spec, submitted_s=job.submitted_s, placement=placed.placement, result=result
            )
        ]
        if again:
            job.infra_failures += result.outcome is Outcome.INFRA
            if job.infra_failures <= job.spec.retries:
                return [*actions, *self._queue(job, at)]
        return [*actions, *self._finish(job, result.outcome, result.exit_status, result.reason, at)]

    def _finish(
        self, job: LiveJob, outcome: Outcome, exit_status: int | None, reason: str, at: ev.Instant
    ) -> list[ev.Action]:
        self.leaving[job.job] = self.jobs.pop(job.job)
        return [
            ev.SaveFinished(
                job=job.job,
                spec=job.spec,
                submitted_s=job.submitted_s,
                finished_s=at.wall_s,
                attempt=job.last_attempt,
                outcome=outcome,
                exit_status=exit_status,
                reason=reason,
            ),
            ev.Emit(
                kind="job.finished",
                at_s=at.wall_s,
                job=job.job,
                body={"outcome": outcome.value, "exit_status": exit_status, "attempt": job.last_attempt},
            ),
        ]

    def _cancel(self, event: ev.CancelRequested) -> list[ev.Action]:
        job = self.jobs.get(event.job)
        if job is None:
            return []
        match job.state:
            case Waiting():
                return self._finish(job, event.outcome, None, event.reason, event.at)
            case Placed() as placed:
                if placed.cancelling in (event.outcome, Outcome.CANCELLED):
                    return []
                placed = replace(placed, cancelling=event.outcome.value, reason=event.reason)
                job.state = placed
                return [
                    self._save(job.job, placed),
                    ev.Emit(kind="job.cancelling", at_s=event.at.wall_s, job=job.job, body={"reason": event.reason}),
                    self._cancel_message(job.job, placed, placed.placement.host),
                ]
            case _:
                assert_never(job.state)

    @staticmethod
    def _save(job: int, placed: Placed) -> ev.SavePlaced:
        return ev.SavePlaced(job=job, placement=placed.placement, cancelling=placed.cancelling, reason=placed.reason)

    def _cancel_message(self, job: int, placed: Placed, host: str) -> ev.Send:
        message = Cancel(
            job=job, attempt=placed.placement.attempt, outcome=placed.cancelling, reason=placed.reason or "cancelled"
        )
        return ev.Send(host=host, message=message)

    def _retry(self, event: ev.RetryRequested) -> list[ev.Action]:
        if event.job in self.jobs:
            return []
        job = LiveJob(
            job=event.job,
            spec=event.spec,
            submitted_s=event.submitted_s,
            state=Waiting(since_s=event.at.wall_s),
            last_attempt=event.last_attempt,
        )
        self.jobs[job.job] = job
        return self._queue(job, event.at)

    def _expire(self, at: ev.Instant) -> list[ev.Action]:
        actions: list[ev.Action] = []
        for host in self.hosts.values():
            if host.lost_mono_s is None or at.mono_s < host.lost_mono_s + self.lease_s:
                continue
            for number in list(host.running):
                job, placed = self._placed(number)
                reason = f"no contact with {host.report.host} for {self.lease_s:g} s"
                actions += self._lose_attempt(job, placed, at, reason)
                actions.append(self._forget(host.report.host, number, placed.placement.attempt))
        return actions

    # What is true.

    def _placed(self, number: int) -> tuple[LiveJob, Placed]:
        job = self.jobs[number]
        assert isinstance(job.state, Placed)
        return job, job.state

    def _current(self, host: str, number: int, attempt: int) -> tuple[LiveJob, Placed] | None:
        """The job, if this attempt of it is the one that is out, and at that host."""
        job = self.jobs.get(number)
        if job is None or not isinstance(job.state, Placed):
            return None
        placement = job.state.placement
        return (job, job.state) if (placement.host, placement.attempt) == (host, attempt) else None

    def is_current(self, host: str, number: int, attempt: int) -> bool:
        """Whether a host may speak about this attempt; a late message of an older one is refused."""
        return self._current(host, number, attempt) is not None

    def _leave_host(self, job: LiveJob, placed: Placed) -> None:
        self.hosts[placed.placement.host].running.pop(job.job, None)

    @staticmethod
    def _forget(host: str, job: int, attempt: int) -> ev.Send:
        return ev.Send(host=host, message=AttemptRecorded(job=job, attempt=attempt))

    # Where the next job runs.

    def _dispatch(self, at: ev.Instant) -> list[ev.Action]:
        actions: list[ev.Action] = []
        orders: dict[str, list[Assignment]] = {}
        if any(host.free_slots for host in self.hosts.values()):
            actions += self._take_back(at)
        heads = self._heads() if any(host.room for host in self.hosts.values()) else []
        while heads:
            _, key = heapq.heappop(heads)
            best = self._best_host(key)
            if best is None:
                continue  # nothing for this class; room only shrinks from here on
            heap = self._waiting[key]
            job = self.jobs[heapq.heappop(heap)[1]]
            host, environment = best
            actions += self._place(job, host, environment, at)
            orders.setdefault(host.report.host, []).append(self._assignment(job, host))
            if self._skip_gone(heap):
                heapq.heappush(heads, (heap[0], key))
        actions += [ev.Send(host=host, message=Assign(assignments=tuple(sent))) for host, sent in orders.items()]
        return actions

    def _take_back(self, at: ev.Instant) -> list[ev.Action]:
        """Where slots are free and nobody waits for them, take back what waits ahead of slots elsewhere."""
        if self._heads():
            return []
        actions: list[ev.Action] = []
        for host in self.hosts.values():
            for number in sorted(host.running)[host.report.slots :][::-1]:
                job, placed = self._placed(number)
                if host.connected and placed.placement.started_s is None and self._fits_elsewhere(job, host):
                    actions.append(self._forget(host.report.host, number, placed.placement.attempt))
                    actions += self._withdraw(job, placed, at)
        return actions

    def _fits_elsewhere(self, job: LiveJob, here: Host) -> bool:
        best = self._best_host(self._key(job), free_only=True)
        return best is not None and best[0] is not here

    def _heads(self) -> list[tuple[tuple[int, int], ClassKey]]:
        """A heap of the job that is next in each class."""
        heads: list[tuple[tuple[int, int], ClassKey]] = []
        for key, heap in list(self._waiting.items()):
            if self._skip_gone(heap):
                heads.append((heap[0], key))
            else:
                del self._waiting[key]
        heapq.heapify(heads)
        return heads

    def _skip_gone(self, heap: list[tuple[int, int]]) -> bool:
        """Whether the heap still has a job that waits; then that is its first."""
        while heap and not self._is_waiting(heap[0][1]):
            heapq.heappop(heap)
        return bool(heap)

    def _is_waiting(self, number: int) -> bool:
        job = self.jobs.get(number)
        return job is not None and isinstance(job.state, Waiting)

    def _best_host(self, key: ClassKey, *, free_only: bool = False) -> tuple[Host, EnvironmentReport] | None:
        """Of what fits and has room: the host with the smallest part of its slots in use, then the longest idle."""
        requirements = dict(key)
        best: tuple[tuple[float, int], Host, EnvironmentReport] | None = None
        for host in self.hosts.values():
            if not (host.free_slots if free_only else host.room):
                continue
            rank = (len(host.running) / host.report.slots, host.last_assigned)
            if best is not None and rank >= best[0]:
                continue
            for environment in host.report.environments:
                if environment.usable and not misfits(requirements, host.report.host, environment, host.report.workers):
                    limit = environment.slots
                    if limit is None or host.running_in(environment.name) < limit:
                        best = (rank, host, environment)
                        break
        return (best[1], best[2]) if best is not None else None

    def _place(self, job: LiveJob, host: Host, environment: EnvironmentReport, at: ev.Instant) -> list[ev.Action]:
        self._turn += 1
        host.last_assigned = self._turn
        host.running[job.job] = environment.name
        job.last_attempt += 1
        placement = ev.Placement(
            attempt=job.last_attempt, host=host.report.host, environment=environment, assigned_s=at.wall_s
        )
        job.state = placed = Placed(placement=placement)
        body = {"attempt": job.last_attempt, "host": host.report.host, "environment": environment.name}
        return [
            self._save(job.job, placed),
            ev.Emit(kind="job.assigned", at_s=at.wall_s, job=job.job, body=body),
        ]

    def _assignment(self, job: LiveJob, host: Host) -> Assignment:
        assert isinstance(job.state, Placed)
        environment = job.state.placement.environment.name
        worker = next(
            (item for item in host.report.workers if (item.name, item.environment) == (job.spec.worker, environment)),
            None,
        )
        return Assignment(
            job=job.job,
            attempt=job.last_attempt,
            environment=environment,
            recipe=worker.recipe if worker is not None else job.spec.recipe,
            name=job.spec.name,
            worker=job.spec.worker,
            source=job.spec.source,
            source_path=worker.source_path if worker is not None and job.spec.source is None else "",
            lease_s=self.lease_s,
        )

    # What a person may ask.

    def offers(self) -> Iterator[tuple[Host, EnvironmentReport]]:
        """Every environment of every host, connected or not."""
        for host in self.hosts.values():
            for environment in host.report.environments:
                yield host, environment

    def workers(self) -> Iterator[tuple[Host, WorkerReport]]:
        """Every named worker of every host."""
        for host in self.hosts.values():
            for worker in host.report.workers:
                yield host, worker

    def running_count(self) -> int:
        """How many attempts have begun."""
        states = [self._placed(number)[1] for host in self.hosts.values() for number in host.running]
        return sum(1 for state in states if state.placement.started_s is not None)

    def knows(self, host: str) -> bool:
        """Whether a host is connected and has said what it offers."""
        return host in self.hosts and self.hosts[host].connected

    def can_ever_fit(self, spec: JobSpec) -> bool:
        """Whether some known environment fits, usable now or not."""
        return any(
            not misfits(spec.requirements, host.report.host, offer, host.report.workers)
            for host, offer in self.offers()
        )

    def check(self) -> None:
        """AssertionError when what must always hold does not. For tests."""
        out = [(job.job, job.state) for job in self.jobs.values() if isinstance(job.state, Placed)]
        for number, state in out:
            assert self.hosts[state.placement.host].running.get(number) == state.placement.environment.name
            assert state.placement.attempt == self.jobs[number].last_attempt
        assert sum(len(host.running) for host in self.hosts.values()) == len(out)
        queued = {number for heap in self._waiting.values() for _, number in heap}
        for job in self.jobs.values():
            assert isinstance(job.state, Placed) or job.job in queued, f"job {job.job} is lost"
            assert job.job < self.next_job
