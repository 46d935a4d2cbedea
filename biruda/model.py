"""The words of the domain as frozen values. Standard library only: the worker imports this."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

JobId = NewType("JobId", int)
"""Counted by the master from 1."""

AttemptNumber = NewType("AttemptNumber", int)
"""Counted within a job from 1; it is the epoch by which a late message is known."""


class Kind(StrEnum):
    """How a worker is spawned in an environment."""

    THREAD = "thread"
    PROCESS = "process"
    CHROOT = "chroot"
    DOCKER = "docker"
    QEMU = "qemu"
    SSH = "ssh"


class Outcome(StrEnum):
    """How an attempt, and so a job, ended: classified by who must act."""

    PASSED = "passed"
    FAILED = "failed"  # a step said so: the sources' fault
    TIMEOUT = "timeout"  # a total or a silence limit
    CANCELLED = "cancelled"  # a person said so
    PREEMPTED = "preempted"  # the farm said so
    INFRA = "infra"  # worker, coordinator or link died: run again by policy
    ENVIRONMENT = "environment"  # the place could not be made or entered: an administrator's


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command, exact: the worker adds nothing to it.

    With `script`, the text is written to a file of the attempt and its path appended to argv.
    """

    name: str
    argv: tuple[str, ...]
    script: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""  # relative to the work directory; "" is the work directory itself
    limit_s: float | None = None
    silence_s: float | None = None
    always: bool = False  # runs even when an earlier step failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one attempt may use. None: no limit but the environment's."""

    total_s: float | None = None
    silence_s: float | None = None
    grace_s: float = 10.0  # from SIGTERM to SIGKILL
    memory_bytes: int | None = None
    pids: int | None = None
    cpus: float | None = None
    disk_bytes: int | None = None  # of the throw-away layer

    @property
    def narrow(self) -> bool:
        """Whether a worker that is there already has to be held to them."""
        return any(value is not None for value in (self.memory_bytes, self.pids, self.cpus, self.disk_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a worker is told to do."""

    steps: tuple[Step, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()  # glob patterns relative to the work directory; ** crosses directories
    reports: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One request, as it was submitted and lowered to explicit steps."""

    recipe: Recipe
    name: str = ""
    requirements: Mapping[str, str] = field(default_factory=dict)  # arch platform host env kind -> value or glob
    source: str | None = None  # sha256 of the source pack
    worker: str | None = None  # the named worker this job is a start of
    user: str = ""
    priority: int = 0
    retries: int = 2  # how often an `infra` outcome is run again


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did. exit_status is the program's own; signal is set when a signal ended it."""

    name: str
    argv: tuple[str, ...]
    exit_status: int | None
    signal: int | None
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    read_bytes: int = 0
    written_bytes: int = 0
    log_start: int = 0  # offset of the step's first log byte
    note: str = ""  # "time limit of 5 s", "not found", ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogInfo:
    bytes: int
    sha256: str
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One collected file. Its stream is channel 1 + its index in AttemptResult.artifacts."""

    path: str  # relative to the work directory, "/"-separated
    bytes: int
    sha256: str
    report: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """How an attempt ended."""

    outcome: Outcome
    exit_status: int | None  # the first failing step's, 0 when all passed, 128+N for signal N
    steps: tuple[StepResult, ...]
    log: LogInfo
    artifacts: tuple[Artifact, ...] = ()
    reason: str = ""  # one sentence for a person, "" when the steps say it all
    started_s: float = 0.0  # seconds since the epoch
    finished_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an environment is: `--guess-env`'s answer."""

    arch: str  # canonical: amd64 i386 arm64 armhf riscv64 ppc64el s390x ...; "unknown"
    platform: str  # os-release ID + VERSION_ID: debian12, alpine3.19.1, arch; "unknown"
    libc: str = "unknown"  # glibc 2.36, musl, bionic, none
    bits: int = 64
    emulated: bool = False
    evidence: tuple[str, ...] = ()
    content: str = ""  # names what it was read from, where that is no directory: an image's digest


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentReport:
    """One environment of a host, as its coordinator tells the master and users see it."""

    name: str
    kind: Kind
    arch: str
    platform: str
    usable: bool
    problem: str = ""  # why it is not usable and what to do
    warnings: tuple[str, ...] = ()  # a declared value that contradicts the guess
    evidence: tuple[str, ...] = ()
    declared: Mapping[str, str] = field(default_factory=dict)
    guessed: Mapping[str, str] = field(default_factory=dict)
    slots: int | None = None  # None: as many as the host
    spares: int = 0
    emulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KindReport:
    """Whether a host can start workers of a kind: the result of a real self-test."""

    kind: Kind
    usable: bool
    reason: str = ""  # why not, and the one thing that is missing; of a usable one what it does not give
    measured_ms: float = 0.0  # from the request to the worker's hello


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """One named worker that a coordinator offers; (name, arch, platform, host) is unique."""

    name: str
    environment: str
    arch: str
    platform: str
    recipe: Recipe
    source_path: str = ""  # a directory on the coordinator's host, packed when the worker starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a host did in one second."""

    at_s: float
    cpu: float  # 0..1 of all CPUs
    memory_bytes: int
    memory_total_bytes: int
    load1: float
    disk_read_bytes: int
    disk_written_bytes: int
    net_received_bytes: int
    net_sent_bytes: int
    running: int
