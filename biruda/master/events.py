"""What happens to the farm, and what it wants done: the two vocabularies of Farm.handle()."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from biruda.messages import HostReport, ToCoordinator
from biruda.model import AttemptResult, EnvironmentReport, JobSpec, Outcome, StepResult


class Instant(NamedTuple):
    """One moment on both clocks: wall for people, monotonic for deadlines; the wall clock may jump."""

    wall_s: float
    mono_s: float


# Events: something happened.


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsSubmitted:
    """Numbered from Farm.next_job in this order."""

    specs: tuple[JobSpec, ...]
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReported:
    """A coordinator said what it is and has. fresh: first of a session, so what it does not list it does not have."""

    report: HostReport
    fresh: bool
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class HostResumed:
    """A link stands again within its session."""

    host: str
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLost:
    """A link is down. Its attempts go on until their lease is over."""

    host: str
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBegan:
    host: str
    job: int
    attempt: int
    source: str | None
    started_s: float
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    host: str
    job: int
    attempt: int
    index: int
    result: StepResult
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFinished:
    """All streams of the attempt are here; result.log says whether they are complete."""

    host: str
    job: int
    attempt: int
    result: AttemptResult
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    job: int
    outcome: Outcome
    reason: str
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequested:
    """A finished job, as the store remembers it, shall run again as its next attempt."""

    job: int
    spec: JobSpec
    last_attempt: int
    submitted_s: float
    at: Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A deadline that Farm.next_deadline_s() named may have come."""

    at: Instant


Event = (
    JobsSubmitted
    | HostReported
    | HostResumed
    | HostLost
    | AttemptBegan
    | StepFinished
    | AttemptFinished
    | CancelRequested
    | RetryRequested
    | Tick
)


# Actions: what must now be done, in this order; what others see only after what is saved is on disk.


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an attempt was sent."""

    attempt: int
    host: str
    environment: EnvironmentReport
    assigned_s: float
    started_s: float | None = None
    source: str | None = None
    steps: tuple[StepResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveQueued:
    """A job waits (again)."""

    job: int
    spec: JobSpec
    submitted_s: float
    last_attempt: int
    infra_failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavePlaced:
    """A job's current attempt was sent to a host, or more is known about it."""

    job: int
    placement: Placement
    cancelling: str
    reason: str = ""  # of the cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveAttempt:
    """An attempt has ended: publish its spool files and keep its record."""

    job: int
    spec: JobSpec
    submitted_s: float
    placement: Placement
    result: AttemptResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFinished:
    """A job has ended. `attempt` is its last one, 0 when it never had one."""

    job: int
    spec: JobSpec
    submitted_s: float
    finished_s: float
    attempt: int
    outcome: Outcome
    exit_status: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveHost:
    """What a host offers, so that a restarted master knows it before it is back."""

    report: HostReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A message for a host; dropped when it has no link: the next report makes it good."""

    host: str
    message: ToCoordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Bytes received for an attempt that is none any more can go."""

    job: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """One entry of the event stream."""

    kind: str
    at_s: float
    job: int = 0
    body: Mapping[str, object] = field(default_factory=dict)


Save = SaveQueued | SavePlaced | SaveAttempt | SaveFinished | SaveHost | Emit
Action = Save | Send | Drop
