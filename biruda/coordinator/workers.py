"""The coordinator's end of one worker: its stream, its process, and what is done when either ends."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from biruda.coordinator.spawners.protocol import Place
from biruda.errors import PeerError
from biruda.frames import DataFrame, MessageFrame
from biruda.link import Link, new_session_id
from biruda.messages import PROTOCOL, Attach, FromWorker, ToWorker, WorkerHello, decode_from_worker, encode
from biruda.transports import StreamTransport

log = logging.getLogger("biruda.coordinator")

HELLO_S = 30.0
RECONNECT_S = 5.0
RECONNECT_STEP_S = 0.05


@dataclass(slots=True)
class Worker:
    """A worker that was spawned or found again."""

    place: Place
    environment: str
    link: Link = field(default_factory=lambda: Link(new_session_id(), "worker", lazy_acks=True))
    hello: WorkerHello | None = None
    greeted: asyncio.Event = field(default_factory=asyncio.Event)
    died: asyncio.Event = field(default_factory=asyncio.Event)
    attempt: tuple[int, int] | None = None
    narrowed: bool = False  # its cgroups have limits of an attempt: it serves no other
    returning: bool = False  # its attempt is over, and it cleans up to serve the next

    @property
    def id(self) -> str:
        return self.place.worker

    def post(self, message: ToWorker) -> None:
        self.link.post(encode(message))


TakeMessage = Callable[[Worker, FromWorker, bytes], Awaitable[None]]
TakeData = Callable[[Worker, DataFrame], Awaitable[None]]


async def serve(
    worker: Worker, connection: socket.socket, pidfd: int, lease_s: float, take: TakeMessage, take_data: TakeData
) -> None:
    """Exchange with a worker until it is dead; a connection that breaks before is made again."""
    loop = asyncio.get_running_loop()
    if pidfd >= 0:
        loop.add_reader(pidfd, _note_death, loop, pidfd, worker)
    first: socket.socket | None = connection
    try:
        while True:
            await _one_connection(worker, first, lease_s, take, take_data)
            if pidfd < 0 or worker.died.is_set():
                return
            first = await _reconnected(worker)
            if first is None:
                return
    finally:
        if pidfd >= 0:
            loop.remove_reader(pidfd)
            os.close(pidfd)


def _note_death(loop: asyncio.AbstractEventLoop, pidfd: int, worker: Worker) -> None:
    loop.remove_reader(pidfd)
    worker.died.set()


async def _one_connection(
    worker: Worker, connection: socket.socket | None, lease_s: float, take: TakeMessage, take_data: TakeData
) -> None:
    if connection is None:
        return
    transport = await StreamTransport.over(connection, f"worker {worker.id}")
    worker.link.reset()

    async def handle(item: MessageFrame | DataFrame) -> None:
        if isinstance(item, DataFrame):
            await take_data(worker, item)
            return
        message = decode_from_worker(item.payload)
        if isinstance(message, WorkerHello):
            _check_hello(worker, message)
            worker.post(Attach(protocol=PROTOCOL, nonce=worker.place.nonce, lease_s=lease_s))
            worker.hello = message
            worker.greeted.set()
        await take(worker, message, item.payload)

    try:
        await worker.link.run(transport, 0, handle, keepalive=False)
    except* PeerError as group:
        for error in group.exceptions:
            log.warning("worker=%s: %s", worker.id, error)


def _check_hello(worker: Worker, hello: WorkerHello) -> None:
    if hello.protocol != PROTOCOL:
        raise PeerError(f"worker {worker.id} speaks protocol {hello.protocol}, this is {PROTOCOL}")
    if (hello.worker, hello.nonce) != (worker.id, worker.place.nonce):
        raise PeerError(f"what answers for worker {worker.id} is not what was spawned")


async def _reconnected(worker: Worker) -> socket.socket | None:
    """A new connection to a living worker's listening socket; None when it is dead or does not answer."""
    try:
        async with asyncio.timeout(RECONNECT_S):
            while not worker.died.is_set():
                try:
                    return connect(worker.place)
                except OSError:
                    await asyncio.sleep(RECONNECT_STEP_S)
    except TimeoutError:
        log.warning("worker=%s is alive but does not answer", worker.id)
    return None


def connect(place: Place) -> socket.socket:
    """Connect to a worker's listening socket; by a short name, as a Unix address has room for 107 bytes only."""
    directory = os.open(place.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/sock")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def open_pidfd(place: Place) -> int:
    """A descriptor that is readable when the place's process has ended. Raises ProcessLookupError when it has."""
    pidfd = os.pidfd_open(place.pid)
    if start_ticks(place.pid) != place.start_ticks:
        os.close(pidfd)
        raise ProcessLookupError(place.pid)
    return pidfd


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot: proc(5), stat field 22; 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
