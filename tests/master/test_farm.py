"""What the farm decides: where the next job runs, what happens when hosts come and go, and what it says about it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from biruda.errors import NotFound
from biruda.master import events as ev
from biruda.master import explaining, named
from biruda.master.farm import Farm
from biruda.master.requests import Ambiguous, WorkerSelection
from biruda.master.state import AHEAD_MOST, Placed, Waiting
from biruda.messages import Assign, Assignment, AttemptRecorded, AttemptReport, Cancel
from biruda.model import AttemptResult, JobSpec, Kind, Outcome
from tests.fakes import environment, host_report, job_spec, recipe, result, step_result, worker

T = TypeVar("T")


class Story:
    """A farm and the clock, told what happens in a line each; the last actions are at hand."""

    def __init__(self, **settings: Any) -> None:
        self.farm = Farm(**settings)
        self.now_s = 1000.0
        self.actions: list[ev.Action] = []

    @property
    def at(self) -> ev.Instant:
        return ev.Instant(self.now_s + 1e9, self.now_s)

    def handle(self, event: ev.Event) -> list[ev.Action]:
        self.actions = self.farm.handle(event)
        self.farm.check()
        return self.actions

    def submit(self, *specs: JobSpec) -> list[int]:
        first = self.farm.next_job
        self.handle(ev.JobsSubmitted(specs=specs, at=self.at))
        return list(range(first, self.farm.next_job))

    def report(self, *, fresh: bool = True, attempts: Sequence[AttemptReport] = (), **fields: Any) -> None:
        report = host_report(**fields, attempts=tuple(attempts))
        self.handle(ev.HostReported(report=report, fresh=fresh, at=self.at))

    def lose(self, host: str = "h1") -> None:
        self.handle(ev.HostLost(host=host, at=self.at))

    def resume(self, host: str = "h1") -> None:
        self.handle(ev.HostResumed(host=host, at=self.at))

    def begin(self, job: int, attempt: int = 1, host: str = "h1") -> None:
        began = ev.AttemptBegan(host=host, job=job, attempt=attempt, source=None, started_s=self.now_s, at=self.at)
        self.handle(began)

    def end(self, job: int, attempt: int = 1, host: str = "h1", given: AttemptResult | None = None) -> None:
        given = given or result()
        self.handle(ev.AttemptFinished(host=host, job=job, attempt=attempt, result=given, at=self.at))

    def cancel(self, job: int, outcome: Outcome = Outcome.CANCELLED, reason: str = "enough") -> None:
        self.handle(ev.CancelRequested(job=job, outcome=outcome, reason=reason, at=self.at))

    def tick(self, seconds: float) -> None:
        self.now_s += seconds
        self.handle(ev.Tick(at=self.at))

    # What came of it.

    def of(self, kind: type[T]) -> list[T]:
        return [action for action in self.actions if isinstance(action, kind)]

    def told(self, host: str = "h1") -> list[Any]:
        """The messages for a host."""
        return [send.message for send in self.of(ev.Send) if send.host == host]

    def assigned(self) -> dict[tuple[int, int], tuple[str, str]]:
        """(job, attempt) -> (host, environment) of what was just sent out."""
        return {
            (item.job, item.attempt): (send.host, item.environment)
            for send in self.of(ev.Send)
            if isinstance(send.message, Assign)
            for item in send.message.assignments
        }

    def finished(self) -> dict[int, Outcome]:
        return {save.job: save.outcome for save in self.of(ev.SaveFinished)}

    def kinds(self) -> list[str]:
        return [emit.kind for emit in self.of(ev.Emit)]

    def is_placed(self, job: int) -> bool:
        return isinstance(self.farm.jobs[job].state, Placed)


def held(job: int, attempt: int = 1, *, started: bool = True, ended: bool = False) -> AttemptReport:
    return AttemptReport(job=job, attempt=attempt, started=started, ended=ended)


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def placed() -> Story:
    """Job 1 is on h1, and has not begun."""
    story = Story()
    story.report()
    story.submit(job_spec())
    return story


@pytest.fixture
def begun(placed: Story) -> Story:
    """Job 1 runs on h1."""
    placed.begin(1)
    return placed


# Placing.


def test_a_job_waits_for_a_host_and_goes_to_it(story: Story) -> None:
    (job,) = story.submit(job_spec())
    assert isinstance(story.farm.jobs[job].state, Waiting)
    assert story.kinds() == ["job.queued"]
    story.report()
    assert story.assigned() == {(1, 1): ("h1", "bookworm")}
    assert story.kinds() == ["host.connected", "job.assigned"]


def test_what_is_saved_comes_before_what_is_sent(placed: Story) -> None:
    order = [type(action) for action in placed.actions]
    assert order.index(ev.SaveQueued) < order.index(ev.SavePlaced) < order.index(ev.Send)


def test_an_assignment_has_all_that_the_host_needs(story: Story) -> None:
    story.farm.lease_s = 77.0
    story.report()
    spec = replace(job_spec(arch="amd64"), name="n", source="digest", recipe=recipe("make", "check"))
    story.submit(spec)
    (message,) = story.told()
    assert message.assignments == (
        Assignment(
            job=1,
            attempt=1,
            environment="bookworm",
            recipe=spec.recipe,
            name="n",
            source="digest",
            lease_s=77.0,
        ),
    )


def test_ten_jobs_spread_evenly_over_two_equal_hosts(story: Story) -> None:
    story.report(host="h1", slots=10)
    story.report(host="h2", slots=10)
    story.submit(*[job_spec()] * 10)
    hosts = [save.placement.host for save in story.of(ev.SavePlaced)]
    assert sorted(hosts) == ["h1"] * 5 + ["h2"] * 5
    assert hosts[0] != hosts[1]


def test_the_host_with_the_smallest_part_of_its_slots_in_use_is_next(story: Story) -> None:
    story.report(host="small", slots=2)
    story.report(host="large", slots=6)
    story.submit(*[job_spec()] * 4)
    assert sorted(host for host, _ in story.assigned().values()) == ["large"] * 3 + ["small"]


def test_equals_take_turns(story: Story) -> None:
    story.report(host="h1", slots=1)
    story.report(host="h2", slots=1)
    taken = []
    for number in range(1, 5):
        story.submit(job_spec())
        ((host, _),) = story.assigned().values()
        taken.append(host)
        story.begin(number, host=host)
        story.now_s += 1
        story.end(number, host=host)
    assert taken in (["h1", "h2", "h1", "h2"], ["h2", "h1", "h2", "h1"])


def test_no_more_than_the_slots_are_used(story: Story) -> None:
    story.report(slots=2)
    jobs = story.submit(*[job_spec()] * 5)
    assert [job for job in jobs if story.is_placed(job)] == jobs[:2]
    story.begin(1)
    story.end(1)
    assert story.assigned() == {(3, 1): ("h1", "bookworm")}


def test_a_host_without_slots_gets_nothing(story: Story) -> None:
    story.report(slots=0)
    story.submit(job_spec())
    assert story.assigned() == {}


def test_slots_of_an_environment_bound_it(story: Story) -> None:
    narrow, wide = environment("narrow", slots=1), environment("wide", platform="alpine3.20")
    story.report(slots=4, environments=(narrow, wide))
    story.submit(*[job_spec(env="narrow")] * 3, job_spec(env="wide"))
    assert story.assigned() == {(1, 1): ("h1", "narrow"), (4, 1): ("h1", "wide")}
    story.begin(1)
    story.end(1)
    assert story.assigned() == {(2, 1): ("h1", "narrow")}


@pytest.mark.parametrize(
    ("requirements", "environments"),
    [
        ({}, {"bookworm", "alpine", "legacy"}),
        ({"arch": "amd64"}, {"bookworm", "alpine"}),
        ({"platform": "debian*"}, {"bookworm", "legacy"}),
        ({"platform": "debian*", "arch": "amd64"}, {"bookworm"}),
        ({"env": "alp*", "host": "h?"}, {"alpine"}),
        ({"kind": "chroot"}, {"legacy"}),
        ({"platform": "DEBIAN*"}, set()),
        ({"host": "h"}, set()),
        ({"platform": "debian[67]"}, {"legacy"}),
    ],
)
def test_requirements_choose_among_environments(requirements: dict[str, str], environments: set[str]) -> None:
    offers = (
        environment("bookworm"),
        environment("alpine", platform="alpine3.20"),
        environment("legacy", platform="debian7", arch="i386", kind=Kind.CHROOT),
    )
    fitting = set()
    for offer in offers:
        story = Story()
        story.report(environments=(offer,))
        story.submit(job_spec(**requirements))
        fitting |= {name for _, name in story.assigned().values()}
        assert story.farm.can_ever_fit(job_spec(**requirements)) == bool(story.assigned())
    assert fitting == environments


def test_an_environment_that_cannot_be_used_gets_nothing(story: Story) -> None:
    story.report(environments=(environment(usable=False, problem="no root tree"),))
    story.submit(job_spec())
    assert story.assigned() == {}
    assert story.farm.can_ever_fit(job_spec())
    story.report(fresh=False)
    assert story.kinds()[0] == "host.changed"
    assert story.assigned() == {(1, 1): ("h1", "bookworm")}


def test_a_higher_priority_goes_first_and_equals_in_their_order(story: Story) -> None:
    specs = [replace(job_spec(), priority=priority) for priority in (0, 5, -1, 5, 0)]
    story.submit(*specs)
    story.report(slots=1)
    order = []
    for _ in specs:
        ((job, attempt),) = story.assigned()
        order.append(job)
        story.begin(job, attempt)
        story.end(job, attempt)
    assert order == [2, 4, 1, 5, 3]


def test_priority_and_order_hold_over_jobs_that_ask_for_different_things(story: Story) -> None:
    any_of, here = job_spec(), job_spec(host="h1")
    story.submit(replace(any_of, priority=9), any_of, replace(here, priority=5), here, any_of)
    story.report(slots=3)
    assert set(story.assigned()) == {(1, 1), (3, 1), (2, 1)}
    story.report(slots=4, fresh=False)
    assert set(story.assigned()) == {(4, 1)}


def test_a_job_that_fits_nothing_holds_up_nobody(story: Story) -> None:
    story.submit(replace(job_spec(env="nowhere"), priority=100), job_spec())
    story.report()
    assert story.assigned() == {(2, 1): ("h1", "bookworm")}


# Short attempts are sent ahead of slots.


def test_short_attempts_are_sent_ahead_and_long_ones_are_not(story: Story) -> None:
    story.report(slots=1)
    story.submit(*[job_spec()] * 60)
    for job in range(1, 41):
        story.begin(job)
        story.end(job, given=result(started_s=1.0, finished_s=1.01))
        assert len(story.farm.hosts["h1"].running) <= 1 + AHEAD_MOST
    assert len(story.farm.hosts["h1"].running) == 1 + AHEAD_MOST
    for job in range(41, 50):
        story.begin(job)
        story.end(job, given=result(started_s=1.0, finished_s=61.0))
    story.begin(50)
    story.end(50, given=result(started_s=1.0, finished_s=61.0))
    assert len(story.farm.hosts["h1"].running) <= 1


def test_attempts_of_no_length_at_all_are_survived(story: Story) -> None:
    """A clock that was set back gives such times."""
    story.report(slots=1)
    for job in range(1, 3000):
        story.submit(job_spec())
        story.begin(job)
        story.end(job, given=result(started_s=5.0, finished_s=1.0))
    assert story.farm.hosts["h1"].room == 1 + AHEAD_MOST


def test_what_waits_ahead_moves_to_a_host_with_free_slots(story: Story) -> None:
    story.report(slots=1)
    story.submit(*[job_spec()] * 30)
    for job in range(1, 26):
        story.begin(job)
        story.end(job, given=result(started_s=1.0, finished_s=1.001))
    ahead = sorted(story.farm.hosts["h1"].running)
    assert len(ahead) == 5
    story.begin(ahead[0])
    story.report(host="h2", slots=2)
    moved = {job for (job, _), (host, _) in story.assigned().items() if host == "h2"}
    assert len(moved) == 2
    assert ahead[0] not in moved
    forgotten = {message.job for message in story.told("h1") if isinstance(message, AttemptRecorded)}
    assert moved <= forgotten


def test_what_holds_a_slot_is_not_moved(story: Story) -> None:
    story.report(host="h1", slots=4)
    story.submit(*[job_spec()] * 3)
    story.report(host="h2", slots=4)
    story.tick(1)
    assert set(story.farm.hosts["h1"].running) == {1, 2, 3}
    assert story.assigned() == {}


# How attempts end.


@pytest.mark.parametrize(
    "outcome", [Outcome.PASSED, Outcome.FAILED, Outcome.TIMEOUT, Outcome.ENVIRONMENT, Outcome.CANCELLED]
)
def test_an_outcome_ends_the_job(begun: Story, outcome: Outcome) -> None:
    begun.end(1, given=result(outcome, reason="so it was"))
    (attempt,) = begun.of(ev.SaveAttempt)
    assert attempt.result.outcome is outcome
    (save,) = begun.of(ev.SaveFinished)
    assert (save.outcome, save.reason, save.attempt) == (outcome, "so it was", 1)
    assert begun.farm.jobs == {}
    assert begun.told() == [AttemptRecorded(job=1, attempt=1)]


def test_the_host_forgets_an_attempt_after_it_is_saved(begun: Story) -> None:
    begun.end(1)
    order = [type(action) for action in begun.actions]
    assert order.index(ev.SaveAttempt) < order.index(ev.SaveFinished) < order.index(ev.Send)


def test_what_the_infrastructure_broke_runs_again_as_often_as_was_asked_for(story: Story) -> None:
    story.report()
    story.submit(replace(job_spec(), retries=2))
    for attempt in (1, 2, 3):
        story.begin(1, attempt)
        story.end(1, attempt, given=result(Outcome.INFRA, reason="its worker died"))
        assert len(story.of(ev.SaveAttempt)) == 1
        assert story.finished() == ({1: Outcome.INFRA} if attempt == 3 else {})
        assert story.assigned() == ({} if attempt == 3 else {(1, attempt + 1): ("h1", "bookworm")})


def test_a_preempted_job_runs_again_and_that_does_not_count(story: Story) -> None:
    story.report()
    story.submit(replace(job_spec(), retries=0))
    for attempt in range(1, 5):
        story.begin(1, attempt)
        story.end(1, attempt, given=result(Outcome.PREEMPTED))
        assert story.assigned() == {(1, attempt + 1): ("h1", "bookworm")}
    story.end(1, 5, given=result(Outcome.INFRA))
    assert story.finished() == {1: Outcome.INFRA}


@pytest.mark.parametrize(("job", "attempt", "host"), [(1, 2, "h1"), (1, 1, "h2"), (2, 1, "h1"), (1, 0, "h1")])
def test_who_speaks_about_what_he_has_not_is_told_to_forget_it(begun: Story, job: int, attempt: int, host: str) -> None:
    before = begun.farm.jobs[1].state
    begun.end(job, attempt, host)
    assert begun.actions == [ev.Send(host=host, message=AttemptRecorded(job=job, attempt=attempt))]
    begun.begin(job, attempt, host)
    assert begun.actions == [ev.Send(host=host, message=AttemptRecorded(job=job, attempt=attempt))]
    assert begun.farm.jobs[1].state == before
    assert not begun.farm.is_current(host, job, attempt)
    assert begun.farm.is_current("h1", 1, 1)


def test_a_repeated_message_does_no_harm(begun: Story) -> None:
    begun.begin(1)
    assert begun.actions == []
    begun.end(1)
    begun.end(1)
    assert begun.actions == [ev.Send(host="h1", message=AttemptRecorded(job=1, attempt=1))]


def test_steps_count_in_their_order_once(begun: Story) -> None:
    def step(index: int) -> None:
        event = ev.StepFinished(host="h1", job=1, attempt=1, index=index, result=step_result(f"s{index}"), at=begun.at)
        begun.handle(event)

    step(0)
    assert begun.kinds() == ["job.step"]
    for index in (0, 2):
        step(index)
        assert begun.actions == []
    step(1)
    state = begun.farm.jobs[1].state
    assert isinstance(state, Placed)
    assert [item.name for item in state.placement.steps] == ["s0", "s1"]


def test_the_start_is_remembered_with_what_the_environment_is(begun: Story) -> None:
    state = begun.farm.jobs[1].state
    assert isinstance(state, Placed)
    (save,) = begun.of(ev.SavePlaced)
    assert save.placement == state.placement
    assert begun.kinds() == ["job.started"]


# Cancelling.


def test_a_waiting_job_is_cancelled_at_once(story: Story) -> None:
    story.submit(job_spec())
    story.cancel(1)
    (save,) = story.of(ev.SaveFinished)
    assert (save.outcome, save.reason, save.attempt, save.exit_status) == (Outcome.CANCELLED, "enough", 0, None)
    story.report()
    assert story.assigned() == {}


def test_a_placed_job_is_cancelled_by_its_host(begun: Story) -> None:
    begun.cancel(1)
    assert begun.told() == [Cancel(job=1, attempt=1, outcome="cancelled", reason="enough")]
    assert begun.kinds() == ["job.cancelling"]
    begun.cancel(1, reason="again")
    assert begun.actions == []
    begun.end(1, given=result(Outcome.CANCELLED, reason="enough"))
    assert begun.finished() == {1: Outcome.CANCELLED}


def test_a_job_that_ends_before_its_cancel_arrives_keeps_its_own_outcome(begun: Story) -> None:
    begun.cancel(1)
    begun.end(1, given=result(Outcome.FAILED))
    assert begun.finished() == {1: Outcome.FAILED}


def test_a_cancelled_job_is_not_run_again_when_its_worker_died_of_it(begun: Story) -> None:
    begun.cancel(1)
    begun.end(1, given=result(Outcome.INFRA))
    (save,) = begun.of(ev.SaveFinished)
    assert (save.outcome, save.reason) == (Outcome.CANCELLED, "enough")


def test_a_preempted_job_can_still_be_cancelled_for_good(begun: Story) -> None:
    begun.cancel(1, Outcome.PREEMPTED, "somebody else")
    begun.cancel(1, Outcome.PREEMPTED, "somebody else")
    assert begun.actions == []
    begun.cancel(1)
    assert [message.outcome for message in begun.told()] == ["cancelled"]
    begun.end(1, given=result(Outcome.PREEMPTED))
    assert begun.finished() == {1: Outcome.CANCELLED}


def test_a_cancel_waits_for_a_host_that_is_away(begun: Story) -> None:
    begun.lose()
    begun.cancel(1)
    begun.report(attempts=[held(1)])
    assert Cancel(job=1, attempt=1, outcome="cancelled", reason="enough") in begun.told()
    begun.lose()
    begun.report(attempts=[held(1, ended=True)])
    assert not any(isinstance(message, Cancel) for message in begun.told())


def test_a_cancelled_job_whose_host_never_comes_back_ends_with_the_lease(begun: Story) -> None:
    begun.lose()
    begun.cancel(1)
    begun.tick(begun.farm.lease_s + 1)
    (save,) = begun.of(ev.SaveFinished)
    assert (save.outcome, save.reason) == (Outcome.CANCELLED, "enough")


def test_a_cancelled_job_that_never_began_ends_when_its_host_comes_without_it(placed: Story) -> None:
    placed.lose()
    placed.cancel(1)
    placed.report()
    assert placed.finished() == {1: Outcome.CANCELLED}
    assert placed.of(ev.SaveAttempt) == []


def test_what_does_not_exist_or_has_ended_is_not_cancelled(begun: Story) -> None:
    begun.cancel(99)
    assert begun.actions == []
    begun.end(1)
    begun.cancel(1)
    assert begun.actions == []


# Retrying.


def test_a_retry_is_the_next_attempt_of_the_same_job(begun: Story) -> None:
    begun.end(1, given=result(Outcome.FAILED))
    event = ev.RetryRequested(job=1, spec=job_spec(), last_attempt=1, submitted_s=5.0, at=begun.at)
    begun.handle(event)
    assert begun.assigned() == {(1, 2): ("h1", "bookworm")}
    assert begun.farm.jobs[1].submitted_s == 5.0
    begun.handle(event)
    assert begun.actions == []


def test_a_job_that_was_cancelled_while_it_waited_and_is_retried_is_placed_once(story: Story) -> None:
    story.submit(job_spec())
    story.cancel(1)
    story.handle(ev.RetryRequested(job=1, spec=job_spec(), last_attempt=0, submitted_s=5.0, at=story.at))
    story.report(slots=4)
    assert story.assigned() == {(1, 1): ("h1", "bookworm")}
    assert sorted(story.farm.hosts["h1"].running) == [1]


# Hosts that come and go.


def test_losing_the_link_ends_nothing(begun: Story) -> None:
    begun.lose()
    assert begun.kinds() == ["host.lost"]
    assert begun.is_placed(1)
    begun.submit(job_spec())
    assert begun.assigned() == {}
    begun.resume()
    assert begun.kinds()[0] == "host.connected"
    assert begun.assigned() == {(2, 1): ("h1", "bookworm")}


def test_a_lease_ends_after_its_time_without_contact(begun: Story) -> None:
    assert begun.farm.next_deadline_s() is None
    begun.lose()
    assert begun.farm.next_deadline_s() == begun.now_s + begun.farm.lease_s
    begun.tick(begun.farm.lease_s - 1)
    assert begun.is_placed(1)
    begun.tick(1)
    (save,) = begun.of(ev.SaveAttempt)
    assert save.result.outcome is Outcome.INFRA
    assert "no contact with h1 for 3600 s" in save.result.reason
    assert not begun.is_placed(1)
    assert begun.farm.next_deadline_s() is None


def test_who_returns_after_the_lease_is_told_to_forget_what_runs_elsewhere(begun: Story) -> None:
    begun.lose()
    begun.tick(begun.farm.lease_s)
    assert begun.told() == [AttemptRecorded(job=1, attempt=1)]  # kept in its session until it is back
    begun.report(host="h2")
    assert begun.assigned() == {(1, 2): ("h2", "bookworm")}
    begun.report(attempts=[held(1)])
    assert begun.told() == [AttemptRecorded(job=1, attempt=1)]
    assert begun.farm.is_current("h2", 1, 2)


def test_a_fresh_report_adopts_what_is_still_there(begun: Story) -> None:
    begun.lose()
    begun.report(attempts=[held(1)])
    assert begun.told() == []
    assert begun.kinds() == ["host.connected"]
    assert begun.farm.is_current("h1", 1, 1)


def test_a_start_that_was_never_heard_of_is_known_from_the_report(placed: Story) -> None:
    """Or its loss would not count, and its log would be dropped."""
    placed.lose()
    placed.report(attempts=[held(1, started=True)])
    assert placed.kinds() == ["host.connected", "job.started"]
    assert placed.farm.running_count() == 1
    placed.begin(1)
    assert placed.actions == []
    placed.lose()
    placed.report()
    assert [save.result.outcome for save in placed.of(ev.SaveAttempt)] == [Outcome.INFRA]
    assert placed.of(ev.Drop) == []


def test_what_a_host_lost_runs_again(begun: Story) -> None:
    begun.lose()
    begun.report()
    (save,) = begun.of(ev.SaveAttempt)
    assert (save.result.outcome, save.result.reason) == (Outcome.INFRA, "h1 came back without it")
    assert begun.assigned() == {(1, 2): ("h1", "bookworm")}
    assert begun.farm.jobs[1].infra_failures == 1


def test_what_never_began_runs_again_and_that_does_not_count(placed: Story) -> None:
    placed.lose()
    placed.report()
    assert placed.of(ev.SaveAttempt) == []
    assert placed.of(ev.Drop) == [ev.Drop(job=1, attempt=1)]
    assert placed.assigned() == {(1, 2): ("h1", "bookworm")}
    assert placed.farm.jobs[1].infra_failures == 0
    # The assignment may be on its way all the same: it is recalled before the next one.
    assert placed.told()[0] == AttemptRecorded(job=1, attempt=1)


def test_a_host_forgets_what_is_nobodys(story: Story) -> None:
    story.report(attempts=[held(7), held(8, 2, ended=True)])
    assert story.told() == [AttemptRecorded(job=7, attempt=1), AttemptRecorded(job=8, attempt=2)]


def test_a_report_that_is_not_the_first_takes_nothing_away(begun: Story) -> None:
    begun.report(fresh=False, environments=())
    assert begun.is_placed(1)
    assert begun.kinds() == ["host.changed"]


def test_a_report_is_kept_without_its_attempts(story: Story) -> None:
    story.report(attempts=[held(7)])
    (save,) = story.of(ev.SaveHost)
    assert save.report.attempts == ()


def test_events_of_unknown_hosts_are_nothing(story: Story) -> None:
    story.lose("h9")
    assert story.actions == []
    story.resume("h9")
    assert story.actions == []


def test_fewer_slots_than_attempts_are_not_an_error(story: Story) -> None:
    story.report(slots=4)
    story.submit(*[job_spec()] * 4)
    story.report(slots=1, fresh=False)
    story.begin(1)
    story.end(1)
    assert story.assigned() == {}
    assert len(story.farm.hosts["h1"].running) == 3


# A new master.


def test_a_restored_farm_waits_for_its_hosts_and_adopts(begun: Story) -> None:
    begun.submit(job_spec(env="elsewhere"))
    state = begun.farm.jobs[1].state
    after = Story(next_job=begun.farm.next_job)
    after.farm.restore(begun.farm.jobs.values(), [host_report()], after.at)
    after.farm.check()
    assert after.farm.jobs[1].state == state
    assert not after.farm.hosts["h1"].connected
    assert after.farm.next_deadline_s() == after.now_s + after.farm.lease_s
    after.report(attempts=[held(1)], environments=(environment(), environment("elsewhere")))
    assert set(after.assigned()) == {(2, 1)}
    after.end(1)
    assert after.finished() == {1: Outcome.PASSED}


def test_a_placed_job_of_a_host_that_nobody_remembers_is_kept(begun: Story) -> None:
    after = Story(next_job=2)
    after.farm.restore(begun.farm.jobs.values(), [], after.at)
    after.farm.check()
    after.report(attempts=[held(1)])
    assert after.farm.is_current("h1", 1, 1)


# Why.


def why(story: Story, job: int = 1) -> str:
    sentence, _ = explaining.why(story.farm, story.farm.jobs[job])
    return sentence


def test_why_nobody_is_there(story: Story) -> None:
    story.submit(job_spec())
    assert why(story) == "no coordinator has connected yet: start one with biruda up or biruda coordinator"


def test_why_nothing_fits(story: Story) -> None:
    story.report(environments=(environment(), environment("alpine", platform="alpine3.20")))
    story.submit(job_spec(platform="debian7", arch="i386"))
    sentence, rows = explaining.why(story.farm, story.farm.jobs[1])
    assert sentence == "no environment fits platform=debian7,arch=i386"
    assert [(offer.name, fits, reason) for _, offer, fits, reason in rows] == [
        ("bookworm", False, "platform = debian12, not debian7; arch = amd64, not i386"),
        ("alpine", False, "platform = alpine3.20, not debian7; arch = amd64, not i386"),
    ]


@pytest.mark.parametrize("slots", [1, 2])
def test_why_all_is_taken(story: Story, slots: int) -> None:
    story.report(slots=slots)
    jobs = story.submit(*[job_spec()] * (slots + 2))
    holders = ", ".join(map(str, jobs[:slots]))
    slots_are = "all 2 slots of h1 are" if slots == 2 else "the only slot of h1 is"
    jobs_are = f"jobs {holders}" if slots == 2 else f"job {holders}"
    assert why(story, jobs[-1]) == (
        f"every environment that fits anything is taken or away: {slots_are} held by {jobs_are}"
    )


def test_why_an_environment_is_full(story: Story) -> None:
    story.report(slots=9, environments=(environment(slots=2),))
    story.submit(*[job_spec()] * 3)
    assert why(story, 3).endswith("all 2 slots of bookworm on h1 are held")


def test_why_a_host_is_away_or_an_environment_broken(story: Story) -> None:
    broken = environment("broken", usable=False, problem="its root tree is gone")
    story.report(environments=(environment(), broken))
    story.lose()
    story.submit(job_spec(), job_spec(env="broken"))
    assert why(story).endswith(
        "is taken or away: h1 has no contact; broken on h1 cannot be used: its root tree is gone"
    )
    assert why(story, 2).endswith("broken on h1 cannot be used: its root tree is gone")


def test_why_others_are_first(story: Story) -> None:
    story.report(slots=1)
    story.submit(*[job_spec()] * 4)
    story.farm.hosts["h1"].report = host_report(slots=3)  # as in the moment before its jobs are placed
    assert why(story, 2) == "it is next"
    assert why(story, 3).endswith(": 1 job is before it")
    assert why(story, 4).endswith(": 2 jobs are before it")


def test_why_it_does_not_wait(begun: Story) -> None:
    assert why(begun) == "it does not wait: attempt 1 is on h1 in bookworm"


def test_why_it_waits_where_it_was_sent(placed: Story) -> None:
    assert why(placed) == "attempt 1 was sent to h1 in bookworm: it begins when a slot there is free"


# Named workers.


ARM = {"arch": "arm64", "platform": "debian12"}


@pytest.fixture
def offers() -> Story:
    """`web` on two hosts of one system and on a third of another; `db` on one."""
    story = Story()
    for host in ("h1", "h2"):
        story.report(host=host, slots=4, workers=(worker("web", source_path="/src"),))
    story.report(host="h3", environments=(environment("arm", **ARM),), workers=(worker("web", "arm", **ARM),))
    story.report(host="h1", slots=4, fresh=False, workers=(worker("web", source_path="/src"), worker("db")))
    return story


def started(story: Story, name: str, **wanted: Any) -> list[tuple[str, str]]:
    specs = named.start_specs(story.farm, name, WorkerSelection(**wanted), "somebody", 2)
    story.submit(*specs)
    return list(story.assigned().values())


def test_a_name_of_one_worker_starts_it(offers: Story) -> None:
    assert started(offers, "db") == [("h1", "bookworm")]
    (spec,) = [job.spec for job in offers.farm.jobs.values()]
    assert (spec.name, spec.worker, spec.user, spec.recipe) == ("db", "db", "somebody", recipe("run", "db"))


def test_a_name_on_two_systems_is_refused_with_the_candidates(offers: Story) -> None:
    with pytest.raises(Ambiguous, match="2 systems") as refused:
        started(offers, "web")
    found = {(item["name"], item["arch"], item["platform"], item["host"]) for item in refused.value.candidates}
    assert found == {
        ("web", "amd64", "debian12", "h1"),
        ("web", "amd64", "debian12", "h2"),
        ("web", "arm64", "debian12", "h3"),
    }
    assert "--arch" in refused.value.hint


def test_with_the_arch_it_goes_to_the_least_loaded_host(offers: Story) -> None:
    assert started(offers, "web", arch="arm64") == [("h3", "arm")]
    hosts = [started(offers, "web", arch="amd64")[0][0] for _ in range(6)]
    assert sorted(hosts) == ["h1"] * 3 + ["h2"] * 3


def test_with_a_host_it_goes_there(offers: Story) -> None:
    assert [started(offers, "web", host="h2") for _ in range(3)] == [[("h2", "bookworm")]] * 3


def test_all_starts_each_of_them(offers: Story) -> None:
    assert sorted(started(offers, "web", all=True)) == [("h1", "bookworm"), ("h2", "bookworm"), ("h3", "arm")]


def test_a_start_runs_what_that_host_says_and_packs_its_directory(offers: Story) -> None:
    started(offers, "web", host="h1")
    (message,) = offers.told("h1")
    (assignment,) = message.assignments
    assert (assignment.worker, assignment.source_path, assignment.source) == ("web", "/src", None)


def test_a_worker_runs_only_where_it_is_offered(story: Story) -> None:
    story.report(host="h1", slots=1, workers=(worker("web"),))
    story.report(host="h2", slots=5)
    for _ in range(3):
        story.submit(*named.start_specs(story.farm, "web", WorkerSelection(), "u", 2))
    assert set(story.farm.hosts["h2"].running) == set()
    assert len(story.farm.hosts["h1"].running) == 1
    _, rows = explaining.why(story.farm, story.farm.jobs[3])
    assert [(host.report.host, fits, reason) for host, _, fits, reason in rows][1] == (
        "h2",
        False,
        "bookworm has no worker web",
    )


@pytest.mark.parametrize(
    ("name", "wanted", "message", "hint"),
    [
        ("wbe", {}, "there is no worker 'wbe'", "did you mean web?"),
        ("zzz", {}, "there is no worker 'zzz'", "there are db, web"),
        ("web", {"arch": "riscv64"}, "no worker 'web' fits", "web on h3 (arm64 debian12)"),
        ("db", {"host": "h2"}, "no worker 'db' fits", "db on h1 (amd64 debian12)"),
    ],
)
def test_what_is_not_there_is_not_found(
    offers: Story, name: str, wanted: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(NotFound) as refused:
        started(offers, name, **wanted)
    assert str(refused.value) == message
    assert hint in refused.value.hint


def test_a_farm_without_workers_says_so(story: Story) -> None:
    with pytest.raises(NotFound) as refused:
        started(story, "web")
    assert "add a [[worker]]" in refused.value.hint


def test_stopping_finds_what_runs_and_what_waits(offers: Story) -> None:
    for _ in range(9):
        started(offers, "web", arch="amd64")
    started(offers, "web", host="h2")
    running = named.running_jobs(offers.farm, "web", WorkerSelection())
    assert running == list(range(1, 11))
    on_h2 = named.running_jobs(offers.farm, "web", WorkerSelection(host="h2"))
    assert set(on_h2) == {*offers.farm.hosts["h2"].running, 10}  # the last one waits for h2
    started(offers, "web", arch="arm64")
    with pytest.raises(Ambiguous, match="runs on 2 systems"):
        named.running_jobs(offers.farm, "web", WorkerSelection())
    assert named.running_jobs(offers.farm, "web", WorkerSelection(arch="arm64")) == [11]
    assert len(named.running_jobs(offers.farm, "web", WorkerSelection(all=True))) == 11
    assert named.running_jobs(offers.farm, "db", WorkerSelection()) == []


def kinds_of_a_life(story: Story) -> Iterable[str]:
    story.report()
    yield from story.kinds()
    story.submit(job_spec())
    yield from story.kinds()
    story.begin(1)
    yield from story.kinds()
    story.handle(ev.StepFinished(host="h1", job=1, attempt=1, index=0, result=step_result(), at=story.at))
    yield from story.kinds()
    story.cancel(1)
    yield from story.kinds()
    story.report(fresh=False)
    yield from story.kinds()
    story.lose()
    yield from story.kinds()
    story.resume()
    story.end(1)
    yield from story.kinds()


def test_the_kinds_of_events_are_those_of_the_docs() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "api.md").read_text().split())
    listed = set(text.partition("Kinds of events: `")[2].partition("`")[0].split())
    assert set(kinds_of_a_life(Story())) == listed - {"notice"}
