"""The coordinator's end of one worker: its stream, its process, and what is done when either ends."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import InitVar, dataclass, field

from biruda.coordinator.spawners.protocol import HOST_KINDS, Incoming, Place, Spawned
from biruda.errors import PeerError
from biruda.frames import DataFrame, MessageFrame
from biruda.link import PING_S, Link, new_session_id
from biruda.messages import PROTOCOL, Attach, FromWorker, ToWorker, WorkerHello, decode_from_worker, encode
from biruda.model import Kind
from biruda.transports import StreamTransport

log = logging.getLogger("biruda.coordinator")

HELLO_S = 30.0
RECONNECT_S = 5.0
RECONNECT_STEP_S = 0.05

MOST_FAULTS = 5
"""So often a worker's connection may break by its own fault and be made again."""

HEARD_PARTS = 4
"""On a wire, which shows no end of a connection, the coordinator is heard so often within a lease."""


@dataclass(slots=True)
class Worker:
    """A worker that was spawned or found again."""

    place: Place
    environment: str
    before_sending: InitVar[Callable[[], None]]
    link: Link = field(init=False)
    hello: WorkerHello | None = None
    greeted: asyncio.Event = field(default_factory=asyncio.Event)
    died: asyncio.Event = field(default_factory=asyncio.Event)
    attempts: list[tuple[int, int]] = field(default_factory=list)  # the first one runs, the others wait in it
    lease_s: float = 60.0  # how long it goes on without contact
    faults: int = 0  # how often it broke the protocol
    said: str = ""  # its standard error's last words, where its stream carries them
    narrowed: bool = False  # its cgroups have limits of an attempt: it serves no other
    returning: bool = False  # its attempt is over, and it cleans up to serve the next

    def __post_init__(self, before_sending: Callable[[], None]) -> None:
        self.link = Link(new_session_id(), "worker", lazy_acks=True, before_sending=before_sending)

    @property
    def id(self) -> str:
        return self.place.worker

    @property
    def writes_its_log(self) -> bool:
        """False where the worker cannot see the attempt's file: then the coordinator writes what comes."""
        return self.place.kind in HOST_KINDS and not self.place.permanent

    @property
    def takes_more(self) -> bool:
        """Whether attempts can wait in it: it is used again, and their logs are files of their own."""
        return self.place.kind is Kind.PROCESS and not self.place.permanent and not self.narrowed

    def post(self, message: ToWorker) -> None:
        self.link.post(encode(message))

    def hold(self, lease_s: float) -> None:
        """From now on it goes on for so long without contact."""
        self.lease_s = lease_s
        if not self.writes_its_log:
            self.link.ping_every(min(PING_S, lease_s / HEARD_PARTS))


TakeMessage = Callable[[Worker, FromWorker, bytes], Awaitable[None]]
TakeData = Callable[[Worker, DataFrame], Awaitable[None]]
Reach = Callable[[Place], Awaitable[Spawned]]


async def serve(worker: Worker, spawned: Spawned, attach: Reach, take: TakeMessage, take_data: TakeData) -> None:
    """Exchange with a worker until it is dead; a connection that breaks before is made again."""
    loop = asyncio.get_running_loop()
    pidfd = spawned.pidfd
    if pidfd >= 0:
        loop.add_reader(pidfd, _note_death, loop, pidfd, worker)
    now: Spawned | None = spawned
    try:
        while now is not None:
            await _one_connection(worker, now, take, take_data)
            if pidfd < 0 or worker.died.is_set():
                return
            if worker.faults > MOST_FAULTS:
                log.error("worker=%s breaks the protocol again and again: it is given up", worker.id)
                return
            now = await _reconnected(worker, attach)
    finally:
        if pidfd >= 0:
            loop.remove_reader(pidfd)
            os.close(pidfd)


def _note_death(loop: asyncio.AbstractEventLoop, pidfd: int, worker: Worker) -> None:
    loop.remove_reader(pidfd)
    worker.died.set()


class _Filtered(StreamTransport):
    """A stream that carries more than frames."""

    def __init__(self, peer: str, incoming: Incoming) -> None:
        super().__init__(peer)
        self._filter = incoming

    def data_received(self, data: bytes) -> None:
        frames = self._filter.feed(data)
        if frames:
            super().data_received(frames)

    async def close(self) -> None:
        if self.may_send_now and self._filter.farewell:
            self.send_now(self._filter.farewell)
        await super().close()


async def _transport(worker: Worker, spawned: Spawned) -> StreamTransport:
    peer, incoming = f"worker {worker.id}", spawned.incoming
    if incoming is None:
        return await StreamTransport.over(spawned.connection, peer)
    spawned.connection.setblocking(False)
    loop = asyncio.get_running_loop()
    _, transport = await loop.create_connection(lambda: _Filtered(peer, incoming), sock=spawned.connection)
    return transport


async def _one_connection(worker: Worker, spawned: Spawned, take: TakeMessage, take_data: TakeData) -> None:
    transport = await _transport(worker, spawned)
    worker.link.reset()

    async def handle(item: MessageFrame | DataFrame) -> None:
        if isinstance(item, DataFrame):
            await take_data(worker, item)
            return
        message = decode_from_worker(item.payload)
        if isinstance(message, WorkerHello):
            _check_hello(worker, message, spawned.arch)
            worker.post(Attach(protocol=PROTOCOL, nonce=worker.place.nonce, lease_s=worker.lease_s))
            worker.hello = message
            worker.greeted.set()
        await take(worker, message, item.payload)

    try:
        await worker.link.run(transport, 0, handle, keepalive=not worker.writes_its_log)
    except* PeerError as group:
        for error in group.exceptions:
            log.warning("worker=%s: %s", worker.id, error)
            if worker.hello is None:  # no other connection will be better
                worker.said, worker.faults = str(error), MOST_FAULTS
        worker.faults += 1
    finally:
        if spawned.incoming is not None and spawned.incoming.said:
            log.warning("worker=%s says: %s", worker.id, spawned.incoming.said)
            worker.said = worker.said or spawned.incoming.said


def hang_up(spawned: Spawned) -> None:
    """Tell a worker that cannot see it that nobody is there any more; without an attempt it then ends."""
    if spawned.incoming is not None:
        with suppress(OSError):  # it is closed already
            spawned.connection.send(spawned.incoming.farewell)


def _check_hello(worker: Worker, hello: WorkerHello, arch: str) -> None:
    if hello.protocol != PROTOCOL:
        raise PeerError(f"worker {worker.id} speaks protocol {hello.protocol}, this is {PROTOCOL}")
    if (hello.worker, hello.nonce) != (worker.id, worker.place.nonce):
        raise PeerError(f"what answers for worker {worker.id} is not what was spawned")
    if arch and hello.arch and hello.arch != arch:
        raise PeerError(f"the worker executable for {arch} was made for {hello.arch}")


async def _reconnected(worker: Worker, attach: Reach) -> Spawned | None:
    """A new connection to a living worker; None when it is dead or does not answer."""
    try:
        async with asyncio.timeout(RECONNECT_S):
            while not worker.died.is_set():
                try:
                    found = await attach(worker.place)
                except OSError:
                    await asyncio.sleep(RECONNECT_STEP_S)
                    continue
                if found.pidfd >= 0:
                    os.close(found.pidfd)  # its end is watched already
                return found
    except TimeoutError:
        log.warning("worker=%s is alive but does not answer", worker.id)
    return None
