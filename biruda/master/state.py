"""What the farm remembers of jobs that have not ended, and of hosts."""

from dataclasses import dataclass

from biruda.master import events as ev
from biruda.messages import HostReport
from biruda.model import EnvironmentReport, JobSpec

ClassKey = tuple[tuple[str, str], ...]

AHEAD_S = 0.2
"""Attempts are sent ahead of free slots for so much work."""

AHEAD_MOST = 8
"""At most so many for each slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """No attempt is out."""

    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An attempt was sent to a host. cancelling: the outcome asked for by a cancel, "" for none."""

    placement: ev.Placement
    cancelling: str = ""
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class LiveJob:
    """A job that has not ended."""

    job: int
    spec: JobSpec
    submitted_s: float
    state: Waiting | Placed
    last_attempt: int = 0
    infra_failures: int = 0


@dataclass(slots=True, kw_only=True)
class Host:
    """A coordinator's host. lost_mono_s: since when it has no link; None: it has one."""

    report: HostReport
    running: dict[int, str]  # job -> environment
    lost_mono_s: float | None
    heard_wall_s: float
    last_assigned: int = 0  # a counter, so that equals take turns
    attempt_s: float = 1.0  # how long attempts took lately

    @property
    def connected(self) -> bool:
        return self.lost_mono_s is None

    @property
    def free_slots(self) -> int:
        return max(0, self.report.slots - len(self.running)) if self.connected else 0

    @property
    def room(self) -> int:
        """How many attempts may be sent: to free slots, and ahead of them where attempts are short.

        What is sent ahead waits at its coordinator instead of for a commit and a message; it may wait AHEAD_S.
        """
        ahead = min(AHEAD_MOST, int(AHEAD_S / self.attempt_s)) * self.report.slots
        return max(0, self.report.slots + ahead - len(self.running)) if self.connected else 0

    def environment(self, name: str) -> EnvironmentReport | None:
        return next((item for item in self.report.environments if item.name == name), None)

    def running_in(self, environment: str) -> int:
        return sum(1 for name in self.running.values() if name == environment)
