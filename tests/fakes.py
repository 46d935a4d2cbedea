"""Small working stand-ins, and values of any type of ours."""

import asyncio
import dataclasses
import hashlib
import types
import typing
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

from biruda.errors import BirudaError
from biruda.frames import DATA_BYTES, DataFrame, DataHeader, MessageFrame
from biruda.link import Link, dial, new_session_id
from biruda.master.service import Master
from biruda.master.sources import Sources
from biruda.master.spool import Spool
from biruda.master.store import Store
from biruda.messages import (
    Assign,
    Assignment,
    AttemptEnded,
    AttemptRecorded,
    AttemptReport,
    AttemptStarted,
    CommandDone,
    EnvironmentCommand,
    HostReport,
    StreamsWanted,
    ToCoordinator,
    ToMaster,
    decode_to_coordinator,
    encode,
)
from biruda.model import (
    Artifact,
    AttemptResult,
    EnvironmentReport,
    JobSpec,
    Kind,
    LogInfo,
    Outcome,
    Recipe,
    Step,
    StepResult,
    WorkerReport,
)
from biruda.transports import MemoryTransport, memory_pair

T = TypeVar("T")

WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type annotation: of our dataclasses every field, also those with a default."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, typing.NewType):
        return values(kind.__supertype__)
    if origin is types.UnionType:
        return st.one_of([values(item) for item in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(item) for item in arguments))
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(st.text(max_size=8), values(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{item.name: values(hints[item.name]) for item in dataclasses.fields(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    simple = {str: st.text(max_size=12), int: WHOLE, float: NUMBER, bool: st.booleans(), types.NoneType: st.none()}
    return simple[kind]


# Values of the farm.


def environment(name: str = "bookworm", **fields: Any) -> EnvironmentReport:
    given = {"kind": Kind.PROCESS, "arch": "amd64", "platform": "debian12", "usable": True}
    return EnvironmentReport(name=name, **{**given, **fields})


def recipe(*words: str) -> Recipe:
    return Recipe(steps=(Step(name="main", argv=words or ("true",)),))


def worker(name: str, environment: str = "bookworm", **fields: Any) -> WorkerReport:
    given = {"arch": "amd64", "platform": "debian12", "recipe": recipe("run", name)}
    return WorkerReport(name=name, environment=environment, **{**given, **fields})


def host_report(host: str = "h1", slots: int = 2, **fields: Any) -> HostReport:
    given: dict[str, Any] = {"arch": "amd64", "platform": "debian12", "pid": 1, "version": "0"}
    given["environments"] = (environment(),)
    return HostReport(host=host, slots=slots, **{**given, **fields})


def job_spec(**requirements: str) -> JobSpec:
    return JobSpec(recipe=recipe(), name="job", requirements=requirements)


def log_info(data: bytes = b"", *, complete: bool = True) -> LogInfo:
    return LogInfo(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), complete=complete)


def result(outcome: Outcome = Outcome.PASSED, log: bytes = b"", **fields: Any) -> AttemptResult:
    status = {Outcome.PASSED: 0, Outcome.FAILED: 1}.get(outcome)
    given = {"exit_status": status, "steps": (), "log": log_info(log), "started_s": 1000.0, "finished_s": 1001.0}
    return AttemptResult(outcome=outcome, **{**given, **fields})


def artifact(path: str, content: bytes = b"", **fields: Any) -> Artifact:
    given = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Artifact(path=path, **{**given, **fields})


def step_result(name: str = "main", exit_status: int | None = 0) -> StepResult:
    return StepResult(
        name=name, argv=("true",), exit_status=exit_status, signal=None, wall_s=0.1, cpu_s=0.1, peak_rss_bytes=1
    )


# A master and its coordinators.


@asynccontextmanager
async def running_master(home: Path, *, store: type[Store] = Store, lease_s: float = 3600.0) -> AsyncIterator[Master]:
    """A real master at work in a directory."""
    home.mkdir(exist_ok=True)
    opened = store(home / "master.db")
    try:
        sources = Sources(home / "sources", 1 << 30)
        async with Master(opened, Spool(home / "spool"), lease_s=lease_s, sources=sources).running() as master:
            yield master
    finally:
        opened.close()


@dataclasses.dataclass
class FakeAttempt:
    """What a coordinator holds of an attempt; sent: log bytes given to the master, None: it has to ask first."""

    assignment: Assignment | None
    log: bytearray = dataclasses.field(default_factory=bytearray)
    sent: int | None = 0
    started: bool = False
    result: AttemptResult | None = None
    artifacts: list[bytes] = dataclasses.field(default_factory=list)


class FakeCoordinator:
    """Says and does what docs/protocol.md demands of a coordinator; its attempts do what the test tells them.

    The link is a real one over a pair in memory. Nothing in it survives a cut but what the session keeps.
    """

    def __init__(self, host: str = "h1", slots: int = 2, *, instance: str = "", **report: Any) -> None:
        self.host, self.slots, self.instance = host, slots, instance or f"instance of {host}"
        self.fields = report
        self.link = Link(new_session_id(), f"link of {host}")
        self.attempts: dict[tuple[int, int], FakeAttempt] = {}
        self.heard: list[ToCoordinator] = []
        self.data: dict[int, bytearray] = {}  # by transfer
        self.problem = ""  # what it answers to commands
        self.sent_bytes = 0
        self.changed = asyncio.Event()

    # Connections.

    @asynccontextmanager
    async def connected(self, master: Master) -> AsyncIterator[None]:
        """One connection; when the block is left it is cut, and both sides have noticed."""
        mine, theirs = memory_pair(self.host, "the master")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(master, theirs))
            received, fresh = await dial(mine, self.link, {"host": self.host, "instance": self.instance})
            if fresh:
                self.begin_session()
            running = tasks.create_task(quietly(self.link.run(mine, received, self.handle, opened=self.pump)))
            while not self.link.connected and not running.done():
                await asyncio.sleep(0)
            try:
                yield
            finally:
                await mine.close()

    def begin_session(self) -> None:
        for attempt in self.attempts.values():
            attempt.sent = None
        self.tell(self.report())
        for key, attempt in self.attempts.items():
            if attempt.result is not None:
                self.tell(AttemptEnded(job=key[0], attempt=key[1], result=attempt.result))

    def report(self) -> HostReport:
        attempts = [
            AttemptReport(job=job, attempt=attempt, started=held.started, ended=held.result is not None)
            for (job, attempt), held in self.attempts.items()
        ]
        return host_report(self.host, self.slots, **{"attempts": tuple(attempts), **self.fields})

    def tell(self, message: ToMaster) -> None:
        self.link.post(encode(message))

    async def handle(self, item: MessageFrame | DataFrame) -> None:
        if isinstance(item, DataFrame):
            self.data.setdefault(item.header.channel, bytearray())[item.header.offset :] = item.payload
        else:
            self.obey(decode_to_coordinator(item.payload))
        self.changed.set()

    def obey(self, message: ToCoordinator) -> None:
        self.heard.append(message)
        match message:
            case Assign(assignments=assignments):
                for item in assignments:
                    self.attempts.setdefault((item.job, item.attempt), FakeAttempt(item))
            case AttemptRecorded(job=job, attempt=attempt):
                self.attempts.pop((job, attempt), None)
            case StreamsWanted(job=job, attempt=attempt, streams=streams):
                held = self.attempts.get((job, attempt))
                for channel, offset in streams if held is not None else ():
                    self.send_stream(job, attempt, channel, offset)
            case EnvironmentCommand(request=request):
                self.tell(CommandDone(request=request, problem=self.problem))
            case _:
                pass

    def send_stream(self, job: int, attempt: int, channel: int, offset: int) -> None:
        held = self.attempts[job, attempt]
        if channel == 0:
            held.sent = offset
            self.pump()
        elif channel <= len(held.artifacts):
            self.link.post_data(DataHeader(job, attempt, channel, offset), held.artifacts[channel - 1][offset:])

    def pump(self) -> None:
        """Send what is owed of logs, as far as there is credit."""
        for (job, attempt), held in self.attempts.items():
            while held.sent is not None and held.sent < len(held.log) and self.link.credit_bytes > 0:
                piece = bytes(held.log[held.sent : held.sent + DATA_BYTES])
                self.link.post_data(DataHeader(job, attempt, 0, held.sent), piece)
                held.sent += len(piece)
                self.sent_bytes += len(piece)

    # What its attempts do.

    def start(self, job: int, attempt: int = 1) -> None:
        self.attempts[job, attempt].started = True
        self.tell(AttemptStarted(job=job, attempt=attempt, at_s=1000.0))

    def print(self, job: int, data: bytes, attempt: int = 1) -> None:
        self.attempts[job, attempt].log += data
        self.pump()

    def send_piece(self, job: int, offset: int, data: bytes, elapsed_ms: int) -> None:
        """Log bytes that came at some time."""
        self.link.post_data(DataHeader(job, 1, 0, offset, elapsed_ms), data)
        self.attempts[job, 1].sent = offset + len(data)

    def end(
        self,
        job: int,
        outcome: Outcome = Outcome.PASSED,
        attempt: int = 1,
        artifacts: Mapping[str, bytes] | None = None,
        **fields: Any,
    ) -> None:
        held = self.attempts[job, attempt]
        held.artifacts = list((artifacts or {}).values())
        listed = tuple(artifact(path, content) for path, content in (artifacts or {}).items())
        held.result = dataclasses.replace(result(outcome, bytes(held.log), artifacts=listed), **fields)
        self.tell(AttemptEnded(job=job, attempt=attempt, result=held.result))

    # What a test waits for.

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until something that was said made it true."""
        async with asyncio.timeout(10):
            while not is_true():
                self.changed.clear()
                await self.changed.wait()

    async def assigned(self, job: int, attempt: int = 1) -> Assignment:
        await self.until(lambda: (job, attempt) in self.attempts)
        assignment = self.attempts[job, attempt].assignment
        assert assignment is not None
        return assignment

    async def recorded(self, job: int, attempt: int = 1) -> None:
        await self.until(lambda: AttemptRecorded(job=job, attempt=attempt) in self.heard)

    def heard_of(self, kind: type[T]) -> list[T]:
        return [message for message in self.heard if isinstance(message, kind)]


async def serve(master: Master, transport: MemoryTransport) -> None:
    """As the daemon does with its coordinator in the same process."""
    try:
        await master.hosts.serve(transport)
    except* (BirudaError, ConnectionError):
        pass


async def quietly(work: Any) -> None:
    try:
        await work
    except* (BirudaError, ConnectionError):
        pass
