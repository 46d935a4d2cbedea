"""Every message between roles, both directions, and PROTOCOL, their version.

The same messages run on both hops, master to coordinator and coordinator to worker: a coordinator hands on what it is
told and stores what comes back. `encode` gives the JSON of a MESSAGE frame, `decode_*` its value; what does not fit is
a PeerError. A repeated message does no harm.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from biruda.convert import decode as convert_decode
from biruda.convert import encode as convert_encode
from biruda.errors import PeerError
from biruda.model import AttemptResult, EnvironmentReport, Facts, KindReport, Recipe, Sample, StepResult, WorkerReport

PROTOCOL = 2
"""Both ends of a link must name the same number in HELLO and WELCOME."""


# Master -> coordinator, and where marked (W) coordinator -> worker.


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One attempt to run."""

    job: int
    attempt: int
    environment: str
    recipe: Recipe
    name: str = ""
    worker: str | None = None
    source: str | None = None
    source_path: str = ""  # of a named worker: a directory on the coordinator's host
    lease_s: float = 3600.0  # how long it goes on without contact


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """(W) Run these, a worker one after the other. Answered by AttemptStarted for each, or AttemptEnded."""

    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """(W) End an attempt: TERM, grace, KILL. Answered by AttemptEnded. outcome is cancelled or preempted."""

    job: int
    attempt: int
    outcome: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unassign:
    """(to a worker) Do not begin it. Answered by Unassigned, or not at all where it has begun."""

    job: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsWanted:
    """(W) Send these channels of an attempt from these offsets: after a new session, a gap, or for artifacts."""

    job: int
    attempt: int
    streams: tuple[tuple[int, int], ...]  # (channel, offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecorded:
    """(W) The attempt's result and streams are safe with the sender: forget it."""

    job: int
    attempt: int
    next_follows: bool = False  # to a worker: the sender counts it as idle, so it need not say that it is


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOffered:
    """Answer to SourceWanted: the recipe of a source pack follows on job 0, channel `transfer`; 0 bytes: not held."""

    digest: str
    transfer: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunksEnd:
    """All bytes of the chunks asked for have been sent on job 0, channel `transfer`."""

    transfer: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesWanted:
    """Send samples every second, or stop."""

    wanted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCommand:
    """Answered by CommandDone. action: reload (read the configuration of environments again), probe, remove."""

    request: int
    action: str
    environment: str = ""


# Coordinator -> master.


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    """An attempt that the sender holds."""

    job: int
    attempt: int
    started: bool
    ended: bool
    source: str | None = None  # the digest, where the coordinator packed the source itself


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """First message of a new session, and again whenever it changes: what this host is, offers and runs."""

    host: str
    arch: str
    platform: str
    slots: int
    pid: int
    version: str
    environments: tuple[EnvironmentReport, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
    kinds: tuple[KindReport, ...] = ()  # those that were looked at by now
    attempts: tuple[AttemptReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """An attempt's worker is there and its first step is about to run."""

    job: int
    attempt: int
    at_s: float
    source: str | None = None  # the digest, where the coordinator packed the source itself


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """(from the worker too)"""

    job: int
    attempt: int
    index: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """(from the worker too)"""

    job: int
    attempt: int
    index: int
    result: StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """(from the worker too) Repeated in every new session until AttemptRecorded."""

    job: int
    attempt: int
    result: AttemptResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWanted:
    """Send the recipe of this source pack. Answered by SourceOffered."""

    digest: str
    transfer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunksWanted:
    """Send these chunks of a pack on job 0, channel `transfer`, as one chunk stream. Answered by ChunksEnd."""

    digest: str
    transfer: int
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandDone:
    """Answer to EnvironmentCommand; problem is "" when it was done."""

    request: int
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One sentence for the event stream: an outbox that is full, an environment that stopped working."""

    text: str
    job: int = 0


# Worker -> coordinator only.


@dataclass(frozen=True, slots=True, kw_only=True)
class Unassigned:
    """It had not begun, and is not here any more."""

    job: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHello:
    """First message on every connection: who answers, where it landed, and what it holds."""

    protocol: int
    worker: str
    nonce: str
    pid: int
    facts: Facts | None = None  # None where the coordinator knows them already
    job: int = 0  # 0: idle
    attempt: int = 0
    log_start: int = 0  # bytes before it are released
    log_end: int = 0
    steps: tuple[StepResult, ...] = ()
    ended: bool = False
    awaits_source: bool = False  # its source pack has not come as a whole
    arch: str = ""  # what an injected worker was built for
    boot_id: str = ""  # of the kernel that an injected worker runs on
    others: tuple[tuple[int, int], ...] = ()  # (job, attempt) of those that wait here, or ended and are told again


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdle:
    """A worker that is used again has removed everything of its last attempt."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Coordinator -> worker, its first message on a new connection: who speaks, and how long to wait without it."""

    protocol: int
    nonce: str
    lease_s: float
    variables: Mapping[str, str] = field(default_factory=dict)


ToCoordinator = (
    Assign | Cancel | StreamsWanted | AttemptRecorded | SourceOffered | ChunksEnd | SamplesWanted | EnvironmentCommand
)
ToMaster = (
    HostReport
    | AttemptStarted
    | StepStarted
    | StepEnded
    | AttemptEnded
    | SourceWanted
    | ChunksWanted
    | Samples
    | CommandDone
    | Notice
)
ToWorker = Attach | Assign | Unassign | Cancel | StreamsWanted | AttemptRecorded
FromWorker = WorkerHello | WorkerIdle | Unassigned | StepStarted | StepEnded | AttemptEnded | Notice


def _by_name(union: Any) -> dict[str, type]:
    return {member.__name__: member for member in union.__args__}


_TO_COORDINATOR = _by_name(ToCoordinator)
_TO_MASTER = _by_name(ToMaster)
_TO_WORKER = _by_name(ToWorker)
_FROM_WORKER = _by_name(FromWorker)


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode(message: ToCoordinator | ToMaster | ToWorker | FromWorker) -> bytes:
    """The JSON body of a MESSAGE frame."""
    name = type(message).__name__
    orjson = sys.modules.get("orjson")  # several times faster where a role has loaded it; a worker never does
    if orjson is not None:
        try:
            fields: bytes = orjson.dumps(message)
        except TypeError:  # a lone surrogate from a file name, a mapping that is no dict
            pass
        else:
            return b'%b%b"type":"%b"}' % (fields[:-1], b"," if len(fields) > 2 else b"", name.encode())
    builtins = convert_encode(message)
    builtins["type"] = name
    return _to_json(builtins).encode("utf-8", "surrogatepass")


def _builtins(payload: bytes) -> Any:
    orjson = sys.modules.get("orjson")
    if orjson is not None:
        try:
            return orjson.loads(payload)
        except ValueError:
            pass  # broken, or it has lone surrogates
    builtins = json.loads(payload.decode("utf-8", "surrogatepass"))
    return _cleaned(builtins) if b"\xed" in payload or b"\\u" in payload else builtins


def _cleaned(value: Any) -> Any:
    """Lone surrogates, which stand for bytes that are no UTF-8, replaced: no file, database or page can hold them."""
    if type(value) is str:
        return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
    if type(value) is list:
        return [_cleaned(item) for item in value]
    if type(value) is dict:
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    return value


def _decode(payload: bytes, known: Mapping[str, type]) -> Any:
    try:
        builtins = _builtins(payload)
        name = builtins.pop("type")
        kind = known[name]
        return convert_decode(kind, builtins)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise PeerError(f"a message that is none of {', '.join(known)}: {error!s:.500}") from None


def decode_to_coordinator(payload: bytes) -> ToCoordinator:
    """What a master says to a coordinator; PeerError where it is nothing it may say."""
    message: ToCoordinator = _decode(payload, _TO_COORDINATOR)
    return message


def decode_to_master(payload: bytes) -> ToMaster:
    """What a coordinator says to its master; PeerError where it is nothing it may say."""
    message: ToMaster = _decode(payload, _TO_MASTER)
    return message


def decode_to_worker(payload: bytes) -> ToWorker:
    """What a coordinator says to a worker; PeerError where it is nothing it may say."""
    message: ToWorker = _decode(payload, _TO_WORKER)
    return message


def decode_from_worker(payload: bytes) -> FromWorker:
    """What a worker says to its coordinator; PeerError where it is nothing it may say."""
    message: FromWorker = _decode(payload, _FROM_WORKER)
    return message
