"""A small synchronous coordinator, and workers to speak with: real processes and threads that run serve()."""

import ctypes
import hashlib
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from biruda.coordinator.spawners.protocol import Incoming
from biruda.errors import PeerError
from biruda.frames import DataFrame, DataHeader, FrameParser, FrameType, Session, pack
from biruda.messages import (
    PROTOCOL,
    Assign,
    Assignment,
    Attach,
    AttemptEnded,
    AttemptRecorded,
    Cancel,
    FromWorker,
    Notice,
    StepEnded,
    StreamsWanted,
    ToWorker,
    WorkerHello,
    decode_from_worker,
    encode,
)
from biruda.model import AttemptResult, Kind, Limits, Recipe, Step
from biruda.worker.opening import Opening
from biruda.worker.serve import preload, serve

NONCE = "nonce of the test"
TIMEOUT_S = 20.0
M = TypeVar("M")

preload()


class Sink:
    """Bytes of one channel: counted and hashed, and kept as long as they are few."""

    def __init__(self, kept_bytes: int = 1 << 20) -> None:
        self.start = self.size = 0
        self.sha256 = hashlib.sha256()
        self.head = bytearray()
        self.pieces = 0
        self.ended_at: int | None = None
        self.job = 0
        self._kept_bytes = kept_bytes

    def add(self, header: DataHeader, payload: memoryview) -> None:
        assert header.offset == self.size, f"offset {header.offset} after {self.size} bytes"
        if not payload:
            self.ended_at = header.offset
            return
        self.pieces += 1
        self.size += len(payload)
        self.sha256.update(payload)
        if len(self.head) < self._kept_bytes:
            self.head += payload[: self._kept_bytes - len(self.head)]


class Peer:
    """One connection to a worker."""

    def __init__(self, connection: socket.socket, incoming: Incoming | None = None) -> None:
        connection.setblocking(False)
        self.incoming = incoming  # of a stream that carries more than frames
        self.socket = connection
        self.session = Session()
        self.messages: list[FromWorker] = []
        self.channels: dict[int, Sink] = {}
        self.elapsed_ms: list[int] = []
        self.is_closed = False
        self.reads = True  # False: takes nothing from the socket, as a stuck peer
        self.acknowledges = True
        self.is_lazy = False  # True: acknowledges a part of the window only when that is used up, as a coordinator
        self.first_data_at = 0.0
        self._parser = FrameParser()
        self._buffer = memoryview(bytearray(1 << 20))

    @property
    def log(self) -> Sink:
        return self.channels.setdefault(0, Sink())

    def pump(self, timeout_s: float = 0.0) -> None:
        """Take what has come, or comes within the time."""
        if self.is_closed or not self.reads:
            select.select([], [], [], timeout_s)
            return
        if not select.select([self.socket], [], [], timeout_s)[0]:
            return
        try:
            size = self.socket.recv_into(self._buffer)
        except ConnectionResetError:
            size = 0
        if not size:
            self.is_closed = True
            return
        data = self._buffer[:size]
        for frame in self._parser.feed(self.incoming.feed(bytes(data)) if self.incoming is not None else data):
            if frame.type is FrameType.ACK:
                self.session.acknowledged(frame)
            elif frame.type is FrameType.PING:
                self.raw(self.session.ack())
            else:
                item = self.session.accept(frame)
                if item is None:
                    continue
                if isinstance(item, DataFrame):
                    self.first_data_at = self.first_data_at or time.perf_counter()
                    self._sink(item.header).add(item.header, item.payload)
                    self.elapsed_ms.append(item.header.elapsed_ms)
                else:
                    self.messages.append(decode_from_worker(item.payload))
                if self.session.handled(item) and self.acknowledges:
                    self.raw(self.session.ack())
        if self.session.ack_due and self.acknowledges and not self.is_lazy:
            self.raw(self.session.ack())

    def _sink(self, header: DataHeader) -> Sink:
        """That of the attempt which runs now."""
        sink = self.channels.setdefault(header.channel, Sink())
        if sink.job not in (0, header.job):
            sink = self.channels[header.channel] = Sink()
        sink.job = header.job
        return sink

    def raw(self, data: bytes) -> None:
        """Write bytes, whatever they are; a peer that has closed is no error."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                select.select([], [self.socket], [], TIMEOUT_S)
            except (BrokenPipeError, ConnectionResetError):
                return

    def say(self, message: ToWorker) -> None:
        self.raw(self.session.message(encode(message)))

    def until(self, condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
        """Pump until the condition holds."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"not within {timeout_s} s; messages: {self.messages[-5:]}"
            assert not self.is_closed or not self.reads, f"the worker closed the connection; {self.messages[-5:]}"
            self.pump(min(0.05, timeout_s))

    def until_size(self, size: int) -> None:
        """Pump until so much of the log has come."""
        self.until(lambda: self.log.size >= size)

    def until_acknowledged(self) -> None:
        """Pump until the worker has handled all that was said."""
        self.until(lambda: not self.session.kept_frames)

    def next(self, kind: type[M], timeout_s: float = TIMEOUT_S) -> M:
        """The first message of a kind, which is taken out; others stay."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = [message for message in self.messages if isinstance(message, kind)]
            return bool(found)

        self.until(look, timeout_s)
        self.messages.remove(found[0])
        message: M = found[0]
        return message

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.messages if isinstance(message, kind)]

    def attach(self, lease_s: float = 30.0, **variables: str) -> WorkerHello:
        hello = self.next(WorkerHello)
        assert hello.nonce == NONCE
        self.say(Attach(protocol=PROTOCOL, nonce=NONCE, lease_s=lease_s, variables=variables))
        return hello

    def assign(
        self, recipe: Recipe, *, job: int = 7, attempt: int = 1, lease_s: float = 30.0, source: str = ""
    ) -> None:
        assignment = Assignment(
            job=job, attempt=attempt, environment="here", recipe=recipe, lease_s=lease_s, source=source or None
        )
        self.say(Assign(assignments=(assignment,)))

    def send_source(self, tar: bytes, *, job: int = 7, piece: int = 100_000, start: int = 0) -> None:
        for offset in range(start, len(tar), piece):
            self.until(lambda: self.session.credit_bytes > 0)
            self.raw(self.session.data(DataHeader(job, 1, 0, offset), tar[offset : offset + piece]))
        self.raw(self.session.data(DataHeader(job, 1, 0, len(tar)), b""))

    def result(self, timeout_s: float = TIMEOUT_S) -> AttemptResult:
        """The attempt's result; the whole log must have come before it."""
        result = self.next(AttemptEnded, timeout_s).result
        assert result.log.bytes == self.log.size
        if not self.log.start:
            assert result.log.sha256 == self.log.sha256.hexdigest()
        return result

    def run(self, *steps: Step | tuple[str, ...], **recipe: Any) -> AttemptResult:
        """Attach, assign, and wait for the result."""
        self.attach()
        self.assign(recipe_of(*steps, **recipe))
        return self.result()

    def want(self, *streams: tuple[int, int], job: int = 7, attempt: int = 1) -> None:
        for channel, offset in streams:
            sink = self.channels[channel] = Sink()
            sink.start = sink.size = offset
        self.say(StreamsWanted(job=job, attempt=attempt, streams=streams))

    def fetch(self, channel: int, size: int) -> bytes:
        """A whole artifact."""
        self.want((channel, 0))
        self.until(lambda: self.channels[channel].ended_at is not None)
        assert self.channels[channel].ended_at == size
        return bytes(self.channels[channel].head)

    def cancel(self, outcome: str = "cancelled", reason: str = "by the test") -> None:
        self.say(Cancel(job=7, attempt=1, outcome=outcome, reason=reason))

    def record(self, job: int = 7, attempt: int = 1) -> None:
        self.say(AttemptRecorded(job=job, attempt=attempt))

    def step_ends(self) -> list[str]:
        return [message.result.name for message in self.of(StepEnded)]

    def notices(self) -> str:
        return "\n".join(message.text for message in self.of(Notice))

    def wait_closed(self, timeout_s: float = TIMEOUT_S) -> None:
        end = time.monotonic() + timeout_s
        while not self.is_closed:
            assert time.monotonic() < end, "the connection stays open"
            self.pump(0.05)

    def close(self) -> None:
        self.socket.close()


def step(*argv: str, name: str = "check", **fields: Any) -> Step:
    return Step(name=name, argv=argv, **fields)


def shell(text: str, name: str = "check", **fields: Any) -> Step:
    return step("/bin/sh", "-c", text, name=name, **fields)


def python(text: str, name: str = "check", **fields: Any) -> Step:
    return step(sys.executable, "-S", "-c", text, name=name, **fields)


def recipe_of(*steps: Step | tuple[str, ...], grace_s: float = 5.0, **fields: Any) -> Recipe:
    limits = Limits(grace_s=grace_s, total_s=fields.pop("total_s", None), silence_s=fields.pop("silence_s", None))
    whole = tuple(item if isinstance(item, Step) else step(*item) for item in steps)
    return Recipe(steps=whole, limits=limits, **fields)


@dataclass
class Worker:
    """A worker that runs, and the first connection to it."""

    opening: Opening
    directory: Path
    peer: Peer
    pid: int = 0  # 0: a thread
    peers: list[Peer] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def work(self) -> Path:
        return Path(self.opening.work)

    def connect(self) -> Peer:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(self.directory / "sock"))
        peer = Peer(connection)
        self.peers.append(peer)
        return peer

    def wait_ended(self, timeout_s: float = TIMEOUT_S) -> None:
        """The worker has ended, with status 0."""
        if not self.pid:
            assert self.ended.wait(timeout_s), "the thread does not end"
            return
        assert wait_until(lambda: is_zombie(self.pid), timeout_s), "the process does not end"
        status = os.waitpid(self.pid, 0)[1]
        self.pid = -1
        assert status == 0, f"status {status}: {self.stderr}"

    @property
    def stderr(self) -> str:
        path = self.directory / "stderr"
        return path.read_text() if path.exists() else ""

    def rss_bytes(self) -> int:
        """Memory of its own: anonymous pages only."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for peer in (self.peer, *self.peers):
            peer.close()
        if self.pid > 0:
            kill_tree(self.pid)
        elif self.pid == 0:
            self.ended.wait(TIMEOUT_S)
        shutil.rmtree(self.directory, ignore_errors=True)


def opening_of(directory: Path, **fields: Any) -> Opening:
    values: dict[str, Any] = {
        "worker": "w1",
        "nonce": NONCE,
        "kind": Kind.PROCESS,
        "work": str(directory / "work"),
        "lease_s": 30.0,
        "room_path": str(directory / "log"),
        "subreaper": sys.platform == "linux",
    }
    return Opening(**(values | fields))


def start_process(*, in_child: Callable[[], None] | None = None, listens: bool = True, **fields: Any) -> Worker:
    """A worker as a forked child, as the zygote of the `process` kind makes it."""
    directory = Path(tempfile.mkdtemp(prefix="biruda-test-"))
    opening = opening_of(directory, **fields)
    ours, theirs = socket.socketpair()
    listener = _listener(directory) if listens else None
    pid = os.fork()
    if pid == 0:
        _be_worker(in_child, ours, theirs, listener, opening, directory)
    theirs.close()
    if listener is not None:
        listener.close()
    return Worker(opening, directory, Peer(ours), pid)


def _be_worker(
    in_child: Callable[[], None] | None,
    ours: socket.socket,
    theirs: socket.socket,
    listener: socket.socket | None,
    opening: Opening,
    directory: Path,
) -> None:
    try:
        ours.close()
        stderr = os.open(directory / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(stderr, 1)
        os.dup2(stderr, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if opening.subreaper:
            prctl(36, 1)
        if in_child is not None:
            in_child()
        serve(theirs, listener, opening)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def start_thread(**fields: Any) -> Worker:
    """A worker as a thread of this process."""
    directory = Path(tempfile.mkdtemp(prefix="biruda-test-"))
    opening = opening_of(directory, **({"kind": Kind.THREAD, "subreaper": False} | fields))
    ours, theirs = socket.socketpair()
    worker = Worker(opening, directory, Peer(ours))

    def run() -> None:
        serve(theirs, None, opening)
        worker.ended.set()

    threading.Thread(target=run, name="worker", daemon=True).start()
    return worker


def _listener(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "sock"))
    listener.listen(8)
    return listener


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def wait_until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the condition holds within the time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= end:
            return False
        select.select([], [], [], 0.005)
    return True


def stat_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_zombie(pid: int) -> bool:
    return stat_of(pid)[:1] == ["Z"]


def is_dead(pid: int) -> bool:
    return stat_of(pid)[:1] in ([], ["Z"], ["X"])


def marked(mark: str) -> list[int]:
    """The living processes whose command line has the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "cmdline").read_bytes().decode(errors="replace") and not is_dead(int(path.name)):
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return [pid for pid in found if pid != os.getpid()]


def kill_tree(pid: int) -> None:
    """End what a failed test left: the worker and its descendants, by number."""
    waiting = [pid]
    found = []
    while waiting:
        found.append(waiting.pop())
        children = Path(f"/proc/{found[-1]}/task/{found[-1]}/children")
        waiting += [int(number) for number in children.read_text().split()] if children.exists() else []
    for number in found:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(pid, 0)


@contextmanager
def refused(peer: Peer) -> Iterator[None]:
    """What is said inside makes the worker close this connection."""
    yield
    try:
        peer.wait_closed()
    except PeerError:
        pass


def ping() -> bytes:
    return pack(FrameType.PING)
