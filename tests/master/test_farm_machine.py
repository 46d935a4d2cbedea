"""No job is lost or run twice under any order of events: coordinators that restart, links that break, late messages.

The coordinators of this machine do what docs/protocol.md says, and nothing more; everything between them and the farm
may be late, doubled or lost with a session. Now and then the master restarts with what its real store has.
"""

import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from biruda.master import events as ev
from biruda.master import views
from biruda.master.farm import Farm
from biruda.master.runs import run_of
from biruda.master.state import AHEAD_MOST, AHEAD_S, LiveJob, Placed
from biruda.master.store import Published, Store
from biruda.messages import Assign, AttemptRecorded, AttemptReport, Cancel
from biruda.model import EnvironmentReport, JobSpec, Outcome
from tests.fakes import environment, host_report, job_spec, result, step_result, worker

HOSTS = ("h1", "h2", "h3")
ENVIRONMENTS = (
    environment("bookworm"),
    environment("narrow", slots=1),
    environment("alpine", platform="alpine3.20"),
    environment("arm", arch="arm64", platform="debian12"),
    environment("broken", usable=False, problem="gone"),
)
WORKERS = (worker("web", "bookworm"), worker("web", "narrow"))
REQUIREMENTS = (
    {},
    {},
    {},
    {"platform": "debian*"},
    {"arch": "arm64"},
    {"host": "h2"},
    {"env": "narrow"},
    {"env": "nowhere"},
)
LEASE_S = 100.0

hosts = st.sampled_from(HOSTS)
some_environments = st.sampled_from([ENVIRONMENTS, ENVIRONMENTS, ENVIRONMENTS, ENVIRONMENTS[:2], ENVIRONMENTS[2:], ()])
some_slots = st.sampled_from([2, 3, 1, 2, 3, 0])
outcomes = st.sampled_from(
    [Outcome.PASSED, Outcome.PASSED, Outcome.FAILED, Outcome.INFRA, Outcome.PREEMPTED, Outcome.ENVIRONMENT]
)
lengths = st.sampled_from([0.0, 0.01, 5.0])


@dataclass
class Held:
    """An attempt at a coordinator."""

    started: bool = False
    outcome: Outcome | None = None
    length_s: float = 1.0


@dataclass
class Coordinator:
    """One host: what it holds, its link, and what is under way to it in the session."""

    host: str
    slots: int = 1
    environments: tuple[EnvironmentReport, ...] = ()
    linked: bool = False
    has_session: bool = False
    held: dict[tuple[int, int], Held] = field(default_factory=dict)
    unreported: Any = None  # the session's first report, while it is under way
    coming: list[Any] = field(default_factory=list)
    going: list[Any] = field(default_factory=list)

    def report(self) -> Any:
        attempts = tuple(
            AttemptReport(job=job, attempt=attempt, started=held.started, ended=held.outcome is not None)
            for (job, attempt), held in self.held.items()
        )
        return host_report(
            self.host, self.slots, environments=self.environments, workers=WORKERS, attempts=attempts, pid=7
        )

    def take(self) -> None:
        """Do the next thing that the master said."""
        match self.coming.pop(0):
            case Assign(assignments=assignments):
                for item in assignments:
                    self.held.setdefault((item.job, item.attempt), Held())
            case AttemptRecorded(job=job, attempt=attempt):
                self.held.pop((job, attempt), None)
            case Cancel(job=job, attempt=attempt, outcome=outcome):
                if (held := self.held.get((job, attempt))) is not None and held.outcome is None:
                    held.outcome = Outcome(outcome)
                    self.going.append((job, attempt))


class FarmMachine(RuleBasedStateMachine):
    jobs: Bundle[int] = Bundle("jobs")
    ended: Bundle[int] = Bundle("ended")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.store = Store(Path(self.directory.name) / "master.db")
        self.farm = Farm(lease_s=LEASE_S)
        self.now_s = 1000.0
        self.coordinators = {host: Coordinator(host) for host in HOSTS}
        self.saves: list[ev.Save] = []
        self.next_event = 1
        self.specs: dict[int, JobSpec] = {}
        self.finishes: dict[int, int] = {}  # job -> how often it finished
        self.allowed: dict[int, int] = {}  # job -> how often it was asked for
        self.past: list[ev.Event] = []
        self.dying = False  # the master: what it says now is not heard

    def teardown(self) -> None:
        try:
            self.all_comes_to_rest()
        finally:
            self.store.close()
            self.directory.cleanup()

    @property
    def at(self) -> ev.Instant:
        return ev.Instant(1e9 + self.now_s, self.now_s)

    # The shell around the farm.

    def handle(self, *events: ev.Event) -> None:
        live_before = set(self.farm.jobs)
        next_job = self.farm.next_job
        running = {host: dict(state.running) for host, state in self.farm.hosts.items()}
        actions = self.farm.handle(*events)
        self.past += events
        live_before |= set(range(next_job, self.farm.next_job))
        live_before |= {event.job for event in events if isinstance(event, ev.RetryRequested)}
        for action in actions:
            match action:
                case ev.SaveFinished(job=job):
                    assert job in live_before, f"job {job} was finished, and was not alive"
                    live_before.discard(job)
                    self.finishes[job] = self.finishes.get(job, 0) + 1
                case ev.SaveQueued(job=job) | ev.SavePlaced(job=job) | ev.SaveAttempt(job=job):
                    assert job in live_before
                case ev.Send(host=host, message=message):
                    if self.coordinators[host].has_session and not self.dying:
                        self.coordinators[host].coming.append(message)
        self.farm.leaving.clear()
        self.saves += [action for action in actions if not isinstance(action, ev.Send | ev.Drop)]
        self.check_capacity(running)

    def check_capacity(self, before: dict[str, dict[int, str]]) -> None:
        for name, host in self.farm.hosts.items():
            was = before.get(name, {})
            new = {job: place for job, place in host.running.items() if was.get(job) != place}
            if not new:
                continue
            assert host.connected, f"something was placed on {name}, which is away"
            slots = host.report.slots
            ahead = min(AHEAD_MOST, int(AHEAD_S / host.attempt_s)) * slots
            assert len(host.running) <= slots + ahead
            for place in set(new.values()):
                offer = host.environment(place)
                assert offer is not None
                assert offer.usable
                assert offer.slots is None or host.running_in(place) <= offer.slots

    def flush(self) -> None:
        """Commit, as the service does: records instead of SaveAttempt."""
        rows: list[Any] = []
        for save in self.saves:
            if isinstance(save, ev.SaveAttempt):
                record = views.attempt_record(save, [])
                rows.append(
                    Published(save.job, save.placement.attempt, orjson.dumps(record), b"", run_of(save, [], 0.0))
                )
            else:
                rows.append(save)
        self.store.apply(rows, self.next_event)
        self.next_event += sum(isinstance(save, ev.Emit) for save in self.saves)
        self.saves.clear()

    # Users.

    @rule(
        target=jobs,
        requirements=st.lists(st.sampled_from(REQUIREMENTS), min_size=1, max_size=5),
        priority=st.integers(-1, 1),
        retries=st.integers(0, 1),
    )
    def submit(self, requirements: list[dict[str, str]], priority: int, retries: int) -> Any:
        specs = [replace(job_spec(**item), priority=priority, retries=retries) for item in requirements]
        first = self.farm.next_job
        self.handle(ev.JobsSubmitted(specs=tuple(specs), at=self.at))
        for number, spec in enumerate(specs, start=first):
            self.specs[number] = spec
            self.allowed[number] = 1
        return multiple(*range(first, first + len(specs)))

    @rule(job=jobs, outcome=st.sampled_from([Outcome.CANCELLED, Outcome.PREEMPTED]))
    def cancel(self, job: int, outcome: Outcome) -> None:
        if outcome is Outcome.PREEMPTED and not self.is_placed(job):
            return
        self.handle(ev.CancelRequested(job=job, outcome=outcome, reason="so it was wanted", at=self.at))

    @rule(job=jobs)
    def retry(self, job: int) -> None:
        if job not in self.farm.jobs:
            self.flush()
            known = self.store.job_spec(job)
            assert known is not None
            spec, last_attempt, submitted_s = known
            self.allowed[job] += 1
            event = ev.RetryRequested(
                job=job, spec=spec, last_attempt=last_attempt, submitted_s=submitted_s, at=self.at
            )
            self.handle(event)
            self.handle(event)

    # Coordinators.

    @initialize(target=jobs, slots=st.integers(1, 3), count=st.integers(1, 6))
    def two_hosts_are_there(self, slots: int, count: int) -> Any:
        for host in HOSTS[:2]:
            self.coordinators[host].slots, self.coordinators[host].environments = slots, ENVIRONMENTS
            self.begin_a_session(self.coordinators[host])
            self.report_arrives(host)
        numbers = self.submit([{}] * count, 0, 1)
        self.everybody_starts()
        return numbers

    @rule(host=hosts, slots=some_slots, environments=some_environments, lost=st.data(), noticed=st.booleans())
    def restart_a_coordinator(
        self, host: str, slots: int, environments: tuple[EnvironmentReport, ...], lost: st.DataObject, noticed: bool
    ) -> None:
        """It may have lost anything. Its report is under way; what the master sends before may arrive before."""
        coordinator = self.coordinators[host]
        if coordinator.held:
            for key in lost.draw(st.lists(st.sampled_from(sorted(coordinator.held)), unique=True)):
                del coordinator.held[key]
        coordinator.slots, coordinator.environments = slots, environments
        if noticed:
            self.handle(ev.HostLost(host=host, at=self.at))
        self.begin_a_session(coordinator)

    def begin_a_session(self, coordinator: Coordinator) -> None:
        coordinator.linked = coordinator.has_session = True
        coordinator.coming.clear()
        coordinator.going = [key for key, held in coordinator.held.items() if held.outcome is not None]
        coordinator.unreported = coordinator.report()

    @rule(target=jobs, host=hosts)
    def work_comes_before_its_report(self, host: str) -> Any:
        """To the master the coordinator is still the one that it was."""
        self.begin_a_session(self.coordinators[host])
        numbers = self.submit([{}, {}, {}], 1, 1)
        self.receive(host, 9)
        self.report_arrives(host)
        return numbers

    @rule(host=hosts)
    def report_arrives(self, host: str) -> None:
        coordinator = self.coordinators[host]
        if coordinator.linked and coordinator.unreported is not None:
            report, coordinator.unreported = coordinator.unreported, None
            self.handle(ev.HostReported(report=report, fresh=True, at=self.at))

    @rule(host=hosts, slots=some_slots, environments=some_environments)
    def report_a_change(self, host: str, slots: int, environments: tuple[EnvironmentReport, ...]) -> None:
        coordinator = self.coordinators[host]
        if coordinator.linked and coordinator.unreported is None:
            coordinator.slots, coordinator.environments = slots, environments
            self.handle(ev.HostReported(report=coordinator.report(), fresh=False, at=self.at))

    @rule(host=hosts)
    def lose_the_link(self, host: str) -> None:
        self.coordinators[host].linked = False
        self.handle(ev.HostLost(host=host, at=self.at))

    @rule(host=hosts)
    def be_away_for_longer_than_the_lease(self, host: str) -> None:
        self.lose_the_link(host)
        self.time_passes(LEASE_S)
        self.everybody_works(Outcome.PASSED, 1.0)
        self.resume(host)

    @rule(host=hosts)
    def resume(self, host: str) -> None:
        coordinator = self.coordinators[host]
        if coordinator.has_session and not coordinator.linked:
            coordinator.linked = True
            self.handle(ev.HostResumed(host=host, at=self.at))

    @rule(host=hosts, count=st.integers(1, 5))
    def receive(self, host: str, count: int) -> None:
        coordinator = self.coordinators[host]
        for _ in range(count):
            if coordinator.linked and coordinator.coming:
                coordinator.take()

    @rule(host=hosts, count=st.integers(1, 3))
    def start(self, host: str, count: int) -> None:
        coordinator = self.coordinators[host]
        self.receive(host, 9)
        new = [key for key, held in coordinator.held.items() if not held.started and held.outcome is None]
        for key in new[:count]:
            if coordinator.linked and coordinator.unreported is None:
                coordinator.held[key].started = True
                self.handle(self.began(host, *key))

    def began(self, host: str, job: int, attempt: int) -> ev.Event:
        return ev.AttemptBegan(host=host, job=job, attempt=attempt, source=None, started_s=self.now_s, at=self.at)

    @rule(host=hosts, count=st.integers(1, 3), outcome=outcomes, length_s=lengths, told=st.booleans())
    def end(self, host: str, count: int, outcome: Outcome, length_s: float, told: bool) -> None:
        coordinator = self.coordinators[host]
        running = [key for key, held in coordinator.held.items() if held.outcome is None and held.started]
        for key in running[:count]:
            coordinator.held[key].outcome = outcome
            coordinator.held[key].length_s = length_s
            coordinator.going.append(key)
        if told:
            self.send_ends(host)

    @rule(host=hosts)
    def send_ends(self, host: str) -> None:
        coordinator = self.coordinators[host]
        while coordinator.linked and coordinator.going and coordinator.unreported is None:
            job, attempt = coordinator.going.pop(0)
            if (job, attempt) in coordinator.held:
                self.handle(self.finished(host, job, attempt, coordinator.held[job, attempt]))

    @rule(outcome=outcomes, length_s=lengths)
    def everybody_works(self, outcome: Outcome, length_s: float) -> None:
        for host in HOSTS:
            self.start(host, 2)
            self.end(host, 1, outcome, length_s, True)

    @rule()
    def everybody_starts(self) -> None:
        for name in HOSTS:
            self.start(name, 9)

    def finished(self, host: str, job: int, attempt: int, held: Held) -> ev.Event:
        assert held.outcome is not None
        given = result(held.outcome, started_s=1.0, finished_s=1.0 + held.length_s)
        return ev.AttemptFinished(host=host, job=job, attempt=attempt, result=given, at=self.at)

    # Time, and what comes late.

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.handle(ev.Tick(at=self.at))
        deadline = self.farm.next_deadline_s()
        assert deadline is None or deadline > self.now_s, "a Tick that is due again at once would spin"

    @rule(host=hosts, number=st.integers(1, 12), back=st.integers(0, 3), outcome=outcomes, kind=st.integers(0, 2))
    def something_late_comes(self, host: str, number: int, back: int, outcome: Outcome, kind: int) -> None:
        """About an attempt that is not the current one, or of a host that has not got it."""
        live = self.farm.jobs.get(number)
        attempt = (live.last_attempt if live is not None else 1) - back
        at_work = live.state.placement if live is not None and isinstance(live.state, Placed) else None
        if at_work is not None and (at_work.host, at_work.attempt) == (host, attempt):
            return
        assert not self.farm.is_current(host, number, attempt)
        events: list[ev.Event] = [
            self.finished(host, number, attempt, Held(True, outcome)),
            self.began(host, number, attempt),
            ev.StepFinished(host=host, job=number, attempt=attempt, index=0, result=step_result(), at=self.at),
        ]
        before = self.snapshot(self.farm)
        actions = self.farm.handle(events[kind])
        assert all(isinstance(action, ev.Send) for action in actions if not isinstance(action, ev.Emit | ev.SavePlaced))
        assert self.snapshot(self.farm) == before

    @precondition(lambda self: self.past)
    @rule(choice=st.integers(0, 999))
    def something_comes_twice(self, choice: int) -> None:
        event = self.past[-1 - choice % min(len(self.past), 20)]
        if isinstance(event, ev.AttemptFinished | ev.AttemptBegan | ev.StepFinished):
            held = self.coordinators[event.host].held.get((event.job, event.attempt))
            unsaid = held is None or (isinstance(event, ev.AttemptFinished) and held.outcome is None)
            if unsaid and self.farm.is_current(event.host, event.job, event.attempt):
                return  # nobody could have said that
            self.handle(replace(event, at=self.at))

    # All that can be said, in any order, at once.

    @rule(draw=st.data(), outcome=outcomes, some=st.integers(0, 3))
    def everything_comes_at_once(self, draw: st.DataObject, outcome: Outcome, some: int) -> None:
        """One batch of the master: no order among its events is sure, and any may come twice."""
        events: list[ev.Event] = [ev.Tick(at=self.at)]
        for host in HOSTS:
            self.receive(host, 9)
            events += self.all_that_can_be_said(self.coordinators[host], outcome)
        placed = sorted(job for job in self.farm.jobs if self.is_placed(job))[:some]
        events += [
            ev.CancelRequested(job=job, outcome=Outcome.CANCELLED, reason="at once", at=self.at) for job in placed
        ]
        twice = draw.draw(st.lists(st.sampled_from(events), max_size=4))
        self.handle(*draw.draw(st.permutations([*events, *twice])))

    def all_that_can_be_said(self, coordinator: Coordinator, outcome: Outcome) -> list[ev.Event]:
        """Of every attempt: that it began, two steps, that it ended."""
        if not coordinator.linked or coordinator.unreported is not None:
            return []
        events: list[ev.Event] = [ev.HostResumed(host=coordinator.host, at=self.at)]
        for (job, attempt), held in coordinator.held.items():
            held.started, held.outcome = True, held.outcome or outcome
            about = {"host": coordinator.host, "job": job, "attempt": attempt, "at": self.at}
            events += [
                self.began(coordinator.host, job, attempt),
                ev.StepFinished(index=0, result=step_result("one"), **about),
                ev.StepFinished(index=1, result=step_result("two"), **about),
                self.finished(coordinator.host, job, attempt, held),
            ]
        return events

    # The master restarts.

    @rule()
    def restart_the_master(self) -> None:
        self.flush()
        self.start_again()

    @rule(draw=st.data(), outcome=outcomes, jobs=st.integers(0, 2))
    def the_master_dies_before_it_says_what_it_did(self, draw: st.DataObject, outcome: Outcome, jobs: int) -> None:
        """What it was told is on disk, and nobody has heard what follows."""
        self.dying = True
        if jobs:
            self.submit([{}] * jobs, 0, 1)
        self.everything_comes_at_once(draw, outcome, 2)
        self.dying = False
        self.restart_the_master()

    @rule(draw=st.data(), outcome=outcomes)
    def the_master_dies_before_it_writes(self, draw: st.DataObject, outcome: Outcome) -> None:
        """It was told and thought about it; nothing of that is left."""
        self.flush()
        before = self.snapshot(self.farm)
        finishes = dict(self.finishes)
        self.dying = True
        self.everything_comes_at_once(draw, outcome, 2)
        self.dying = False
        self.saves.clear()
        self.finishes = finishes
        self.start_again(before)

    def start_again(self, expected: Any = None) -> None:
        """A new process, with what is in the store."""
        self.store.close()
        self.store = Store(Path(self.directory.name) / "master.db")
        again = Farm(lease_s=LEASE_S, next_job=self.store.next_job())
        again.restore(self.store.live_jobs(), self.store.hosts(), self.at)
        again.check()
        assert self.snapshot(again) == (expected or self.snapshot(self.farm))
        assert self.store.last_event == self.next_event - 1
        assert {name: replace(host.report, attempts=()) for name, host in self.farm.hosts.items()} == {
            name: host.report for name, host in again.hosts.items()
        }
        self.farm = again
        for coordinator in self.coordinators.values():
            coordinator.linked = coordinator.has_session = False

    @staticmethod
    def snapshot(farm: Farm) -> Any:
        def state(live: LiveJob) -> Any:
            if not isinstance(live.state, Placed):
                return "waiting"
            placement = replace(live.state.placement, steps=())  # they come again with the result
            return placement, live.state.cancelling, live.state.reason

        jobs = {
            live.job: (live.spec, live.submitted_s, live.last_attempt, live.infra_failures, state(live))
            for live in farm.jobs.values()
        }
        return farm.next_job, jobs, {name: dict(host.running) for name, host in farm.hosts.items()}

    # What must hold.

    def is_placed(self, job: int) -> bool:
        live = self.farm.jobs.get(job)
        return live is not None and isinstance(live.state, Placed)

    @invariant()
    def the_farm_is_sound(self) -> None:
        self.farm.check()

    @invariant()
    def no_job_is_lost_or_finished_twice(self) -> None:
        for job, allowed in self.allowed.items():
            done = self.finishes.get(job, 0)
            assert done == allowed - (job in self.farm.jobs), f"job {job}: {done} of {allowed}"
        assert set(self.farm.jobs) <= set(self.allowed)

    def all_comes_to_rest(self) -> None:
        """Everybody is connected and works: what can run is run to its end, and nobody holds what is nobody's."""
        for coordinator in self.coordinators.values():
            coordinator.slots = max(1, coordinator.slots)
            coordinator.environments = ENVIRONMENTS
            if coordinator.has_session:
                self.resume(coordinator.host)
            else:
                self.begin_a_session(coordinator)
            self.report_arrives(coordinator.host)
            self.handle(ev.HostReported(report=coordinator.report(), fresh=False, at=self.at))
        self.everything_arrives()
        for _ in range(4 * sum(self.allowed.values()) + 10):
            for coordinator in self.coordinators.values():
                for key, held in list(coordinator.held.items()):
                    if held.outcome is None:
                        held.started, held.outcome = True, Outcome.PASSED
                        self.handle(self.began(coordinator.host, *key))
                    self.handle(self.finished(coordinator.host, *key, held))
            self.everything_arrives()
        waiting = {job for job, live in self.farm.jobs.items() if live.spec.requirements != {"env": "nowhere"}}
        assert waiting == set()
        for coordinator in self.coordinators.values():
            assert coordinator.held == {}

    def everything_arrives(self) -> None:
        """When all that was said has been heard, what runs anywhere is what the farm thinks runs there."""
        for coordinator in self.coordinators.values():
            while coordinator.coming:
                coordinator.take()
        for host, coordinator in self.coordinators.items():
            for (job, attempt), held in coordinator.held.items():
                assert held.outcome is not None or self.farm.is_current(host, job, attempt), f"job {job} runs twice"


def test_no_order_of_events_loses_a_job_or_runs_it_twice() -> None:
    run_state_machine_as_test(
        FarmMachine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.slow
def test_no_order_of_events_loses_a_job_or_runs_it_twice_in_long_lives() -> None:
    run_state_machine_as_test(
        FarmMachine,
        settings=settings(
            max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
