"""An asyncio link: one numbered session over one transport after another.

A link that is cut keeps what was not acknowledged and sends it again when the next connection stands; a link that is
stalled is closed after SILENCE_S and so becomes one that is cut; a gap, a truncated or an oversized frame closes the
connection with a PeerError, and the next one carries on after the last good frame. A duplicate is dropped.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from biruda.errors import PeerError
from biruda.frames import DataFrame, DataHeader, Frame, FrameParser, FrameType, MessageFrame, Session, pack
from biruda.messages import PROTOCOL

PING_S = 10.0
"""An idle link says something this often, unless its `ping_s` says otherwise."""

SILENCE_S = 35.0
"""A connection that was silent for so long is given up."""

HANDSHAKE_S = 10.0

RETRY_S = 1.0
"""Between two tries of what has to be done before something is sent."""


class Transport(Protocol):
    """Bytes in order, both ways. receive() gives b"" when the peer has ended it."""

    peer: str

    @property
    def may_send_now(self) -> bool:
        """Whether send_now() may be called: there is room, and nobody waits for it."""

    def send_now(self, data: bytes) -> None:
        """Send without waiting."""

    async def send(self, data: bytes) -> None:
        """Returns when the transport has room for more. Raises ConnectionError when it is gone."""

    async def receive(self) -> bytes:
        """The next bytes, at most a few MiB."""

    async def close(self) -> None:
        """May be called twice."""


Handle = Callable[[MessageFrame | DataFrame], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Run:
    """One connection that is being carried."""

    transport: Transport
    reader: "asyncio.Task[None] | None" = None
    handling: bool = False  # an item is being handled: that nothing is read now is not the peer's silence
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Link:
    """Numbered frames to one peer. post() never blocks; send_data() waits for credit.

    With lazy_acks, acknowledgements go with what is sent anyway, or when a part of the window is used up: on one host a
    frame of its own would cost both sides more than what it tells is worth. before_sending is called whenever something
    is about to leave; while it raises OSError nothing does.
    """

    def __init__(
        self, session_id: str, name: str, *, lazy_acks: bool = False, before_sending: Callable[[], None] | None = None
    ) -> None:
        self._lazy_acks = lazy_acks
        self._before_sending = before_sending
        self.session_id = session_id
        self.name = name
        self.session = Session()
        self.connected = False
        self.last_heard_s = 0.0  # of the loop's clock
        self._ping_s = PING_S
        self._pace = asyncio.Event()  # the time between pings has changed
        self._outgoing: list[bytes] = []
        self._flush_is_due = False
        self._is_sending = False  # the writer waits for room
        self._wake = asyncio.Event()
        self._credit = asyncio.Event()
        self._run: _Run | None = None
        self._early = b""  # what came right behind a WELCOME

    def reset(self) -> None:
        """Forget the session: the peer does not know it any more."""
        self.session = Session()
        self._credit.set()

    def ping_every(self, seconds: float) -> None:
        """Be heard at least so often, from now on: the peer counts on it."""
        self._ping_s = seconds
        self._pace.set()

    def post(self, payload: bytes) -> None:
        """Send a control message, now or when the link stands again."""
        self._write(self.session.message(payload))

    @property
    def credit_bytes(self) -> int:
        """How much data may be posted now: 0 while the link is down."""
        return self.session.credit_bytes if self.connected else 0

    def post_data(self, header: DataHeader, payload: bytes | memoryview) -> None:
        """Send a piece of data; the caller has looked at credit_bytes."""
        self._write(self.session.data(header, payload))

    async def send_data(self, header: DataHeader, payload: bytes | memoryview) -> None:
        """Send a piece of data as soon as there is credit for it."""
        while self.credit_bytes <= 0:
            self._credit.clear()
            await self._credit.wait()
        self.post_data(header, payload)

    async def credit(self) -> None:
        """Wait until something may have changed about credit_bytes."""
        self._credit.clear()
        await self._credit.wait()

    def _write(self, frame: bytes) -> None:
        if self.connected:
            self._outgoing.append(frame)
            if not self._flush_is_due:  # with what else is posted in this turn of the loop
                self._flush_is_due = True
                asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        self.flush()

    def flush(self) -> None:
        """Send what was posted now, not with the rest of this turn of the loop."""
        run = self._run
        if run is None or not self._outgoing:
            return
        if self._is_sending or not run.transport.may_send_now:
            self._wake.set()
            return
        try:
            data = self._take_outgoing()
        except OSError:  # what has to be done before cannot be done now: the writer tries again
            self._wake.set()
            return
        run.transport.send_now(data)

    def _take_outgoing(self) -> bytes:
        if self._before_sending is not None:
            self._before_sending()
        if self.session.ack_due:
            self._outgoing.append(self.session.ack())
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    async def _taken_outgoing(self) -> bytes:
        while True:
            try:
                return self._take_outgoing()
            except OSError:
                await asyncio.sleep(RETRY_S)

    async def run(
        self,
        transport: Transport,
        peer_received: int,
        handle: Handle,
        *,
        keepalive: bool = True,
        opened: Callable[[], None] | None = None,
    ) -> None:
        """Carry the session over this transport until it ends. handle() runs for one item after the other.

        opened() is called as soon as the link stands. Raises a group with a PeerError when the peer broke the protocol,
        or with what handle() raised; returns when the transport ended. A run that is still going on for this link is
        ended first, its handle() cancelled: the item that it was at comes again.
        """
        run = _Run(transport)
        early, self._early = self._early, b""
        try:
            await self.end()
            self._run = run
            self._outgoing = self.session.resume(peer_received)
            self._is_sending = False
            self._wake.set()
            self.connected = True
            self._credit.set()
            self.last_heard_s = asyncio.get_running_loop().time()
            if opened is not None:
                opened()
            await self._carry(run, handle, early, keepalive=keepalive)
        except* ConnectionError:
            pass
        finally:
            if self._run is run:
                self._run = None
                self.connected = False
                self._outgoing = []
            run.ended.set()
            await transport.close()

    async def _carry(self, run: _Run, handle: Handle, early: bytes, *, keepalive: bool) -> None:
        """Read, write and ping, until the reader ends or one of them fails.

        None of the tasks raises: until Python 3.13 a task group cancels its parent for that, and where the parent waits
        for its end already, never takes it back; and a cancellation that comes at the same moment is lost.
        """
        parts: list[asyncio.Task[None]] = []
        failures: list[Exception] = []

        async def part(work: Callable[[], Awaitable[None]]) -> None:
            try:
                await work()
            except Exception as error:  # raised again below
                failures.append(error)
                end_all()

        def end_all() -> None:
            for task in parts:
                task.cancel()

        async with asyncio.TaskGroup() as tasks:
            parts.append(tasks.create_task(part(lambda: self._write_all(run.transport)), name=f"{self.name} writer"))
            if keepalive:
                parts.append(tasks.create_task(part(lambda: self._keep_alive(run)), name=f"{self.name} pings"))
            run.reader = tasks.create_task(part(lambda: self._read_all(run, handle, early)), name=f"{self.name} reader")
            run.reader.add_done_callback(lambda _: end_all())
            parts.append(run.reader)
        if failures:
            raise ExceptionGroup(f"{self.name} broke", failures)

    async def end(self) -> None:
        """End the run that is going on, if there is one: on return its handle() is not running any more."""
        while self._run is not None:
            run = self._run
            if run.reader is not None:
                run.reader.cancel()
            await run.ended.wait()

    async def close(self) -> None:
        """End the connection, if there is one; what came before is still handled."""
        if self._run is not None:
            await self._run.transport.close()

    async def _read_all(self, run: _Run, handle: Handle, data: bytes) -> None:
        transport = run.transport
        parser = FrameParser()
        session = self.session
        loop = asyncio.get_running_loop()
        while data := data or await transport.receive():
            run.handling = True
            for frame in parser.feed(data):
                await self._take(frame, session, handle)
            if session.ack_due and not self._lazy_acks:
                self._write(session.ack())
            data = b""
            run.handling = False
            self.last_heard_s = loop.time()
        if parser.pending_bytes:
            raise PeerError(
                f"{transport.peer} ended in the middle of a frame ({parser.pending_bytes} bytes of it came)"
            )

    async def _take(self, frame: Frame, session: Session, handle: Handle) -> None:
        if frame.type is FrameType.ACK:
            session.acknowledged(frame)
            self._credit.set()
        elif frame.type is FrameType.PING:
            self._write(session.ack())
        elif frame.type in (FrameType.MESSAGE, FrameType.DATA):
            item = session.accept(frame)
            if item is None:
                return
            await handle(item)
            if session.handled(item):
                self._write(session.ack())
        else:
            raise PeerError(f"a {frame.type.name} frame in the middle of a session")

    async def _write_all(self, transport: Transport) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._outgoing:
                self._is_sending = True
                await transport.send(await self._taken_outgoing())
                self._is_sending = False

    async def _keep_alive(self, run: _Run) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._pace.clear()
            try:
                async with asyncio.timeout(self._ping_s):
                    await self._pace.wait()
            except TimeoutError:
                pass
            if not run.handling and loop.time() - self.last_heard_s > SILENCE_S:
                await run.transport.close()
                return
            self._write(pack(FrameType.PING))


def new_session_id() -> str:
    return os.urandom(12).hex()


def _greeting(kind: FrameType, values: dict[str, Any]) -> bytes:
    return pack(kind, json.dumps({"protocol": PROTOCOL, **values}, separators=(",", ":")).encode())


async def _receive_greeting(transport: Transport) -> tuple[FrameType, dict[str, Any], bytes]:
    """The first frame's type and values, and what came behind it."""
    came = bytearray()
    frames: list[Frame] = []
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            while not frames:
                data = await transport.receive()
                if not data:
                    raise ConnectionError(f"{transport.peer} closed the connection before it said who it is")
                came += data
                frames = FrameParser().feed(came)
    except TimeoutError:
        raise ConnectionError(f"{transport.peer} did not say who it is within {HANDSHAKE_S:g} s") from None
    try:
        values = json.loads(frames[0].body)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise PeerError(f"{transport.peer} sent a greeting that is no JSON object")
    return frames[0].type, values, bytes(came[len(frames[0].body) + 5 :])


async def dial(transport: Transport, link: Link, who: dict[str, Any]) -> tuple[int, bool]:
    """Greet an accepting side. Gives what it has received, and whether the session is new to it (then link is reset).

    Raises PeerError when it refuses, with its reason; ConnectionError when it does not answer.
    """
    await transport.send(
        _greeting(FrameType.HELLO, {"session": link.session_id, "received": link.session.received, **who})
    )
    kind, values, link._early = await _receive_greeting(transport)
    if kind is FrameType.REFUSE:
        raise PeerError(
            f"{transport.peer} refused this coordinator: {values.get('reason')}", hint=str(values.get("hint", ""))
        )
    if kind is not FrameType.WELCOME or values.get("protocol") != PROTOCOL:
        raise PeerError(f"{transport.peer} speaks protocol {values.get('protocol')}, this is {PROTOCOL}")
    received, fresh = values.get("received"), values.get("fresh")
    if type(received) is not int or type(fresh) is not bool:
        raise PeerError(f"{transport.peer} sent a WELCOME without `received` or `fresh`")
    if fresh:
        link.reset()
        received = 0
    return received, fresh


async def hear(transport: Transport) -> dict[str, Any]:
    """The HELLO of a dialling side, with `protocol`, `session` and `received` checked; ConnectionError without one."""
    kind, values, more = await _receive_greeting(transport)
    if more:
        raise PeerError(f"{transport.peer} sent more than its greeting")
    if kind is not FrameType.HELLO:
        raise PeerError(f"{transport.peer} began with {kind.name} where HELLO was due")
    if values.get("protocol") != PROTOCOL:
        await refuse(
            transport,
            f"it speaks protocol {values.get('protocol')}, the master {PROTOCOL}",
            "run the same version on both",
        )
        raise PeerError(f"{transport.peer} speaks protocol {values.get('protocol')}, this is {PROTOCOL}")
    if type(values.get("session")) is not str or type(values.get("received")) is not int:
        raise PeerError(f"{transport.peer} sent a HELLO without `session` or `received`")
    return values


async def welcome(transport: Transport, link: Link, *, fresh: bool) -> None:
    """Answer a HELLO: the session goes on, or begins."""
    await transport.send(_greeting(FrameType.WELCOME, {"received": link.session.received, "fresh": fresh}))


async def refuse(transport: Transport, reason: str, hint: str) -> None:
    """Answer a HELLO with a refusal and end the connection."""
    await transport.send(_greeting(FrameType.REFUSE, {"reason": reason, "hint": hint}))
    await transport.close()
