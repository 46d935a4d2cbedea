"""A link over every transport: cut anywhere, dialled again, and still everything once and in order."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda import link as link_module
from biruda.errors import PeerError
from biruda.frames import DATA_BYTES, WINDOW_BYTES, DataFrame, DataHeader, FrameParser, FrameType, MessageFrame, pack
from biruda.link import Link, Transport, dial, hear, new_session_id, refuse, welcome
from biruda.messages import PROTOCOL
from biruda.transports import StreamTransport, WebSocketTransport, memory_pair

Connect = Callable[[], Awaitable[tuple[Transport, Transport]]]


async def by_memory() -> tuple[Transport, Transport]:
    return memory_pair("dialler", "acceptor")


async def by_socketpair() -> tuple[Transport, Transport]:
    one, two = socket.socketpair()
    return await StreamTransport.over(one, "acceptor"), await StreamTransport.over(two, "dialler")


@asynccontextmanager
async def unix_server(directory: Path) -> AsyncIterator[Connect]:
    path = str(directory / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)

        async def connect() -> tuple[Transport, Transport]:
            one = socket.socket(socket.AF_UNIX)
            one.connect(path)
            two, _ = await asyncio.get_running_loop().sock_accept(listener)
            return await StreamTransport.over(one, "acceptor"), await StreamTransport.over(two, "dialler")

        yield connect


class _Held(WebSocketTransport):
    """The server's end; its HTTP handler stays for as long as it is open."""

    def __init__(self, websocket: web.WebSocketResponse) -> None:
        super().__init__(websocket, "dialler")
        self.closed = asyncio.Event()

    async def close(self) -> None:
        await super().close()
        self.closed.set()


@asynccontextmanager
async def websocket_server() -> AsyncIterator[Connect]:
    arrived: asyncio.Queue[_Held] = asyncio.Queue()

    async def serve(request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(max_msg_size=8 << 20)
        await websocket.prepare(request)
        held = _Held(websocket)
        await arrived.put(held)
        await held.closed.wait()
        return websocket

    app = web.Application()
    app.router.add_get("/", serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as session:

        async def connect() -> tuple[Transport, Transport]:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            websocket = await session.ws_connect(url, max_msg_size=8 << 20)
            return WebSocketTransport(websocket, "acceptor"), await arrived.get()

        yield connect
    await runner.cleanup()


@pytest.fixture(params=["memory", "socketpair", "unix", "websocket"])
async def connect(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:
        match request.param:
            case "memory":
                yield by_memory
            case "socketpair":
                yield by_socketpair
            case "unix":
                yield await stack.enter_async_context(unix_server(tmp_path))
            case _:
                yield await stack.enter_async_context(websocket_server())


@dataclass
class Cutting:
    """A transport that carries so many bytes and then breaks in the middle of what is sent."""

    inner: Transport
    left: int
    peer: str = "cutting"

    async def send(self, data: bytes) -> None:
        if len(data) > self.left:
            if self.left:
                await self.inner.send(data[: self.left])
            self.left = 0
            await self.inner.close()
            raise ConnectionResetError("cut")
        self.left -= len(data)
        await self.inner.send(data)

    async def receive(self) -> bytes:
        return await self.inner.receive()

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class Side:
    """A link and what was handled at its end."""

    link: Link
    handled: list[bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, item: MessageFrame | DataFrame) -> None:
        if isinstance(item, DataFrame):
            self.handled.append(b"data %d %d " % (item.header.channel, item.header.offset) + bytes(item.payload))
        else:
            self.handled.append(item.payload)
        self.changed.set()

    async def has(self, count: int) -> list[bytes]:
        async with asyncio.timeout(10):
            while len(self.handled) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.handled


class Acceptor:
    """What the master does: one link for each session, which goes on over its connections."""

    def __init__(self) -> None:
        self.sides: dict[str, Side] = {}

    async def serve(self, transport: Transport) -> None:
        hello = await hear(transport)
        name = hello["session"]
        fresh = name not in self.sides
        side = self.sides.setdefault(name, Side(Link(name, "acceptor")))
        await welcome(transport, side.link, fresh=fresh)
        await side.link.run(transport, 0 if fresh else hello["received"], side.handle)


async def dialled(side: Side, transport: Transport) -> None:
    received, _ = await dial(transport, side.link, {"host": "here"})
    await side.link.run(transport, received, side.handle)


async def through(work: Awaitable[None]) -> None:
    """A connection to its end, whatever ends it."""
    with suppress(ConnectionError, PeerError):
        try:
            await work
        except BaseExceptionGroup as group:
            rest = group.split((ConnectionError, PeerError))[1]
            if rest is not None:
                raise rest from None


def dialler() -> Side:
    return Side(Link(new_session_id(), "dialler"))


# Carrying.


async def test_messages_and_data_go_both_ways(connect: Connect) -> None:
    one, acceptor = dialler(), Acceptor()
    two = await established(connect, one, acceptor)
    one.link.post(b"before it stands")
    mine, theirs = await connect()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(acceptor.serve(theirs))
        tasks.create_task(dialled(one, mine))
        await two.has(2)
        two.link.post(b"answer")
        await two.link.send_data(DataHeader(1, 1, 0, 5), b"bytes")
        await one.link.send_data(DataHeader(2, 1, 3, 7), bytes(DATA_BYTES))
        assert await one.has(2) == [b"answer", b"data 0 5 bytes"]
        assert await two.has(3) == [b"first", b"before it stands", b"data 3 7 " + bytes(DATA_BYTES)]
        await one.link.close()
    assert not one.link.connected
    assert not two.link.connected
    assert one.link.credit_bytes == two.link.credit_bytes == 0


async def test_nothing_leaves_before_what_has_to_be_done_before(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "RETRY_S", 0.01)
    fails = 3
    done: list[int] = []

    def before() -> None:
        if len(done) < fails:
            done.append(0)
            raise OSError("no space left")
        done.append(1)

    one = Side(Link(new_session_id(), "dialler", before_sending=before))
    acceptor = Acceptor()
    mine, theirs = await connect()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(acceptor.serve(theirs))
        tasks.create_task(dialled(one, mine))
        async with asyncio.timeout(10):
            while not one.link.connected:
                await asyncio.sleep(0)
        one.link.post(b"first")
        one.link.post(b"second")
        assert await acceptor.sides[one.link.session_id].has(2) == [b"first", b"second"]
        assert done[: fails + 1] == [0] * fails + [1]
        await one.link.close()


@dataclass
class Breaking(Cutting):
    """A transport that cannot be written to, and of which nothing more comes."""

    async def send(self, data: bytes) -> None:
        await asyncio.sleep(0)
        raise ConnectionResetError("broken")

    async def receive(self) -> bytes:
        await asyncio.Event().wait()
        return b""


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_who_carries_a_link_is_cancelled_by_others_only(is_cancelled: bool) -> None:
    """A connection that breaks while something is written ends like any other, and a cancel at that moment counts."""
    inner, _ = await by_memory()
    side = dialler()
    went_on = False

    async def redial() -> None:
        nonlocal went_on
        this = asyncio.current_task()
        assert this is not None
        side.link.post(b"first")
        if is_cancelled:
            asyncio.get_running_loop().call_soon(this.cancel)
        await side.link.run(Breaking(inner, 0), 0, side.handle)
        assert not this.cancelling()
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        went_on = True

    task = asyncio.get_running_loop().create_task(redial())
    await asyncio.wait([task])
    assert task.cancelled() == is_cancelled
    assert went_on != is_cancelled


async def test_what_came_right_behind_the_welcome_is_not_lost() -> None:
    """A byte stream may give both in one piece."""
    mine, theirs = await by_socketpair()
    one, two = dialler(), Side(Link("s", "acceptor"))
    two.link.post(b"early")
    async with asyncio.TaskGroup() as tasks:

        async def serve() -> None:
            hello = await hear(theirs)
            assert hello["host"] == "here"
            greeting = link_module._greeting(FrameType.WELCOME, {"received": 0, "fresh": True})
            await theirs.send(greeting + b"".join(two.link.session.resume(0)) + pack(FrameType.PING)[:3])
            await theirs.send(pack(FrameType.PING)[3:])

        tasks.create_task(serve())
        tasks.create_task(through(dialled(one, mine)))
        assert await one.has(1) == [b"early"]
        await theirs.close()


async def exchange(connect: Connect, cuts: list[tuple[int, int, int]]) -> None:
    """One session over connections that carry so many bytes forth and back, while both sides go on speaking."""
    one, acceptor = dialler(), Acceptor()
    two = await established(connect, one, acceptor)
    sent: tuple[list[bytes], list[bytes]] = (list(two.handled), [])
    for forth, back, count in cuts:
        mine, theirs = await connect()
        for number in range(count):
            for side, said in zip((one, two), sent, strict=True):
                said.append(b"data %d %d " % (len(said), number) + bytes(number * 30))
                side.link.post_data(DataHeader(1, 1, len(said) - 1, number), bytes(number * 30))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(through(acceptor.serve(Cutting(theirs, back))))
            tasks.create_task(through(dialled(one, Cutting(mine, forth))))
            for _ in range(8):
                await asyncio.sleep(0)
            await mine.close()
    mine, theirs = await connect()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(through(acceptor.serve(theirs)))
        tasks.create_task(through(dialled(one, mine)))
        assert await two.has(len(sent[0])) == sent[0]
        assert await one.has(len(sent[1])) == sent[1]
        await mine.close()


async def established(connect: Connect, one: Side, acceptor: Acceptor) -> Side:
    """The acceptor's side, after a first connection that went well."""
    mine, theirs = await connect()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(acceptor.serve(theirs))
        received, fresh = await dial(mine, one.link, {})
        assert (received, fresh) == (0, True)
        one.link.post(b"first")
        tasks.create_task(one.link.run(mine, received, one.handle))
        await acceptor.sides[one.link.session_id].has(1)
        await one.link.close()
    return acceptor.sides[one.link.session_id]


async def test_a_connection_cut_in_the_middle_of_frames_loses_and_doubles_nothing(connect: Connect) -> None:
    places = [0, 1, 50, 110, 111, 118, 130, 150, 151, 200, 400]
    await exchange(connect, [(place, places[-number], number % 4) for number, place in enumerate(places)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 3)), max_size=8))
async def test_any_cuts_at_all_lose_and_double_nothing(cuts: list[tuple[int, int, int]]) -> None:
    await exchange(by_memory, cuts)


# Sessions.


async def test_both_begin_anew_when_the_acceptor_forgot() -> None:
    one, acceptor = dialler(), Acceptor()
    await established(by_memory, one, acceptor)
    one.link.post(b"never acknowledged: of the old session")
    acceptor.sides.clear()
    mine, theirs = await by_memory()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(acceptor.serve(theirs))
        received, fresh = await dial(mine, one.link, {})
        assert (received, fresh) == (0, True)
        assert one.link.session.kept_frames == 0
        one.link.post(b"new")
        tasks.create_task(one.link.run(mine, received, one.handle))
        assert await acceptor.sides[one.link.session_id].has(1) == [b"new"]
        await mine.close()


async def test_a_refusal_says_why_and_what_to_do() -> None:
    mine, theirs = await by_socketpair()
    async with asyncio.TaskGroup() as tasks:

        async def serve() -> None:
            await hear(theirs)
            await refuse(theirs, "the name is taken", "take another")

        tasks.create_task(serve())
        with pytest.raises(PeerError, match="refused this coordinator: the name is taken") as refused:
            await dial(mine, Link("s", "x"), {})
    assert refused.value.hint == "take another"
    await mine.close()


async def test_another_protocol_is_refused_on_both_sides() -> None:
    mine, theirs = await by_memory()
    await mine.send(pack(FrameType.HELLO, b'{"protocol":99,"session":"s","received":0}'))
    with pytest.raises(PeerError, match="speaks protocol 99"):
        await hear(theirs)
    (answer,) = FrameParser().feed(await mine.receive())
    assert answer.type is FrameType.REFUSE
    assert b"protocol 99" in answer.body
    mine, theirs = await by_memory()
    await theirs.send(pack(FrameType.WELCOME, b'{"protocol":99,"received":0,"fresh":false}'))
    with pytest.raises(PeerError, match="speaks protocol 99"):
        await dial(mine, Link("s", "x"), {})


GOOD = b'{"protocol":%d,"session":"s","received":0}' % PROTOCOL


@pytest.mark.parametrize(
    "greeting",
    [
        pack(FrameType.PING),
        pack(FrameType.WELCOME, GOOD),
        pack(FrameType.HELLO, b"[]"),
        pack(FrameType.HELLO, b"\xff"),
        pack(FrameType.HELLO, b"[" * 100_000),
        pack(FrameType.HELLO, b'{"protocol":%d,"session":1,"received":0}' % PROTOCOL),
        pack(FrameType.HELLO, b'{"protocol":%d,"session":"s","received":true}' % PROTOCOL),
        pack(FrameType.HELLO, b'{"protocol":%d,"session":"s"}' % PROTOCOL),
        pack(FrameType.HELLO, GOOD) + b"more",
        b"\0\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_a_wrong_hello_is_a_peer_error(greeting: bytes) -> None:
    mine, theirs = await by_memory()
    await mine.send(greeting)
    with pytest.raises(PeerError):
        await hear(theirs)


@pytest.mark.parametrize(
    "greeting",
    [
        pack(FrameType.HELLO, GOOD),
        pack(FrameType.WELCOME, b"{}"),
        pack(FrameType.WELCOME, b'{"protocol":%d,"received":"1","fresh":false}' % PROTOCOL),
        pack(FrameType.WELCOME, b'{"protocol":%d,"received":1,"fresh":0}' % PROTOCOL),
    ],
)
async def test_a_wrong_welcome_is_a_peer_error(greeting: bytes) -> None:
    mine, theirs = await by_memory()
    await theirs.send(greeting)
    with pytest.raises(PeerError):
        await dial(mine, Link("s", "x"), {})


async def test_who_says_nothing_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "HANDSHAKE_S", 0.01)
    mine, theirs = await by_memory()
    with pytest.raises(ConnectionError, match="did not say who it is"):
        await hear(theirs)
    with pytest.raises(ConnectionError, match="did not say who it is"):
        await dial(mine, Link("s", "x"), {})
    await theirs.close()
    mine, theirs = await by_memory()
    await theirs.close()
    with pytest.raises(ConnectionError):
        await hear(mine)


# One connection that goes wrong, and the next.


@asynccontextmanager
async def raw_peer(side: Side) -> AsyncIterator[Transport]:
    """A running link, and the other end of its transport in the test's hand."""
    mine, theirs = await by_memory()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(side.link.run(mine, 0, side.handle))
        yield theirs
        await theirs.close()


@pytest.mark.parametrize(
    ("sent", "match"),
    [
        (pack(FrameType.MESSAGE, (3).to_bytes(8, "big") + b"x"), "frames between them are missing"),
        (pack(FrameType.ACK, (1).to_bytes(8, "big")), "acknowledged frame 1"),
        (pack(FrameType.WELCOME, b"{}"), "in the middle of a session"),
        (b"\0\0\0\x09\x06\0\0", "in the middle of a frame"),
        (b"\xff\xff\xff\xff\x06", "are allowed"),
        (b"\0\0\0\x01\x63", "unknown type"),
    ],
)
async def test_a_broken_protocol_closes_the_connection_and_the_next_carries_on(sent: bytes, match: str) -> None:
    side = Side(Link("s", "x"))
    good = pack(FrameType.MESSAGE, (1).to_bytes(8, "big") + b"good")
    with pytest.raises(BaseExceptionGroup) as broken:
        async with raw_peer(side) as peer:
            await peer.send(good)
            await side.has(1)
            await peer.send(sent)
            await peer.close()
            await asyncio.Event().wait()
    inner: BaseException = broken.value
    while isinstance(inner, BaseExceptionGroup):
        assert len(inner.exceptions) == 1
        inner = inner.exceptions[0]
    assert isinstance(inner, PeerError)
    assert match in str(inner)
    assert not side.link.connected
    async with raw_peer(side) as peer:
        await peer.send(good + pack(FrameType.MESSAGE, (2).to_bytes(8, "big") + b"next"))
        assert await side.has(2) == [b"good", b"next"]


async def test_a_peer_that_asks_for_what_is_no_longer_kept_leaves_the_link_usable() -> None:
    side = Side(Link("s", "x"))
    mine, theirs = await by_memory()
    with pytest.raises(PeerError, match="acknowledged frame 5"):
        await side.link.run(mine, 5, side.handle)
    assert not side.link.connected
    assert await theirs.receive() == b""
    async with raw_peer(side) as peer:
        await peer.send(pack(FrameType.MESSAGE, (1).to_bytes(8, "big") + b"x"))
        await side.has(1)


async def test_an_item_cancelled_in_the_middle_of_its_handling_comes_again() -> None:
    one, two = dialler(), Side(Link("s", "acceptor"))
    one.link.post(b"first")
    one.link.post(b"second")
    begun = asyncio.Event()

    async def stuck(item: MessageFrame | DataFrame) -> None:
        if item.seq == 2:
            begun.set()
            await asyncio.Event().wait()
        await two.handle(item)

    mine, theirs = await by_memory()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(two.link.run(theirs, 0, stuck))
        tasks.create_task(one.link.run(mine, 0, one.handle))
        await begun.wait()
        running.cancel()
    assert two.handled == [b"first"]
    mine, theirs = await by_memory()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(two.link.run(theirs, one.link.session.received, two.handle))
        tasks.create_task(one.link.run(mine, two.link.session.received, one.handle))
        assert await two.has(2) == [b"first", b"second"]
        await mine.close()


async def test_a_second_connection_ends_the_first_before_it_carries_anything() -> None:
    """Whoever is cut off may not notice for long; his next connection must not have two items handled at once."""
    one, two = dialler(), Side(Link("s", "acceptor"))
    one.link.post(b"first")
    one.link.post(b"second")
    begun, at_work = asyncio.Event(), 0

    async def slow(item: MessageFrame | DataFrame) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        try:
            if not begun.is_set():
                begun.set()
                await asyncio.Event().wait()
            await two.handle(item)
        finally:
            at_work -= 1

    first, theirs = await by_memory()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(two.link.run(theirs, 0, slow))
        tasks.create_task(one.link.run(first, 0, one.handle))
        await begun.wait()
        mine, theirs = await by_memory()
        tasks.create_task(two.link.run(theirs, one.link.session.received, slow))
        tasks.create_task(one.link.run(mine, two.link.session.received, one.handle))
        assert await two.has(2) == [b"first", b"second"]
        assert two.link.connected
        assert await first.receive() == b""
        await mine.close()
    assert two.handled == [b"first", b"second"]


async def test_an_error_of_handle_is_raised_and_the_item_comes_again() -> None:
    one, two = dialler(), Side(Link("s", "acceptor"))
    one.link.post(b"x")

    async def broken(item: MessageFrame | DataFrame) -> None:
        raise LookupError("a bug")

    mine, theirs = await by_memory()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.link.run(mine, 0, one.handle))
        with pytest.raises(BaseExceptionGroup) as group:
            await two.link.run(theirs, 0, broken)
        assert group.group_contains(LookupError, match="a bug")
    assert two.link.session.received == 0


# Credit.


async def test_a_stalled_reader_bounds_the_sender(connect: Connect) -> None:
    one, acceptor = dialler(), Acceptor()
    mine, theirs = await connect()
    gate, sent = asyncio.Event(), 0
    piece = bytes(DATA_BYTES)
    wanted = 40

    async def send_all() -> None:
        nonlocal sent
        for number in range(wanted):
            await one.link.send_data(DataHeader(1, 1, 0, number), piece)
            sent += 1
            assert one.link.session.credit_bytes > -len(piece)

    handle = Side.handle

    async def stalled(self: Side, item: MessageFrame | DataFrame) -> None:
        await gate.wait()
        await handle(self, item)

    Side.handle = stalled  # type: ignore[method-assign]
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(acceptor.serve(theirs))
            tasks.create_task(dialled(one, mine))
            tasks.create_task(send_all())
            async with asyncio.timeout(5):
                while one.link.credit_bytes > 0 or not one.link.connected:
                    await asyncio.sleep(0)
                for _ in range(100):
                    await asyncio.sleep(0)
            assert sent * DATA_BYTES == WINDOW_BYTES
            gate.set()
            two = acceptor.sides[one.link.session_id]
            await two.has(wanted)
            assert one.link.session.kept_frames <= WINDOW_BYTES // DATA_BYTES
            await one.link.close()
    finally:
        Side.handle = handle  # type: ignore[method-assign]
    assert two.handled == [b"data 0 %d " % number + piece for number in range(wanted)]


async def test_without_a_connection_there_is_no_credit() -> None:
    link = Link("s", "x")
    assert link.credit_bytes == 0
    link.post_data(DataHeader(1, 1, 0, 0), b"kept all the same")
    assert link.session.kept_frames == 1
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(link.send_data(DataHeader(1, 1, 0, 1), b"x"))
        await asyncio.sleep(0)
        assert not waiting.done()
        side = Side(link)
        async with raw_peer(side) as peer:
            await waiting
            await peer.close()


# Silence.


async def pings(peer: Transport, count: int) -> None:
    parser, seen = FrameParser(), 0
    async with asyncio.timeout(5):
        while seen < count:
            data = await peer.receive()
            assert data
            seen += sum(frame.type is FrameType.PING for frame in parser.feed(data))


async def test_a_silent_peer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PING_S", 0.005)
    monkeypatch.setattr(link_module, "SILENCE_S", 0.02)
    side = Side(Link("s", "x"))
    mine, theirs = await by_memory()
    async with asyncio.timeout(5):
        await side.link.run(mine, 0, side.handle)
    assert not side.link.connected
    await theirs.close()


async def test_a_slow_handler_is_not_the_peers_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "PING_S", 0.005)
    monkeypatch.setattr(link_module, "SILENCE_S", 0.02)
    side = Side(Link("s", "x"))
    gate = asyncio.Event()

    async def slow(item: MessageFrame | DataFrame) -> None:
        await gate.wait()
        await side.handle(item)

    mine, theirs = await by_memory()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(side.link.run(mine, 0, slow))
        await theirs.send(pack(FrameType.MESSAGE, (1).to_bytes(8, "big") + b"x"))
        await pings(theirs, 10)
        assert side.link.connected
        gate.set()
        await side.has(1)
        await theirs.close()


async def test_a_ping_is_answered() -> None:
    side = Side(Link("s", "x"))
    async with raw_peer(side) as peer:
        await peer.send(pack(FrameType.PING))
        assert await peer.receive() == pack(FrameType.ACK, bytes(8))


# Transports.


async def test_bytes_come_in_order_and_end_with_the_connection(connect: Connect) -> None:
    mine, theirs = await connect()
    pieces = [bytes([number]) * size for number, size in enumerate((1, 10, 5000, 3 << 20))]
    got = bytearray()

    async def read() -> None:
        while data := await theirs.receive():
            got.extend(data)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        for piece in pieces:
            await mine.send(piece)
        while len(got) < sum(map(len, pieces)):
            await asyncio.sleep(0)
        await mine.close()
    assert bytes(got) == b"".join(pieces)
    await mine.close()
    await theirs.close()
    await theirs.close()
    with pytest.raises(ConnectionError):
        await mine.send(b"x")
    assert await mine.receive() == b""


async def test_a_peer_that_does_not_read_stops_the_writer_and_can_be_closed() -> None:
    mine, theirs = await by_socketpair()
    assert isinstance(mine, StreamTransport)
    async with asyncio.TaskGroup() as tasks:

        async def write() -> None:
            with suppress(ConnectionError):
                while True:
                    await mine.send(bytes(1 << 20))

        writer = tasks.create_task(write())
        while mine._writable.is_set():
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not writer.done()
        await mine.close()  # its bytes will never be read: it does not wait for that
        await writer
    assert mine._transport is not None
    assert mine._transport.is_closing()
    assert mine._transport.get_write_buffer_size() == 0
    await theirs.close()
