"""What carries a link's bytes: a pair in memory, a stream socket, a WebSocket."""

import asyncio
import socket
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp import ClientSession, ClientWebSocketResponse
    from aiohttp.web import WebSocketResponse

BUFFER_BYTES = 1 << 20
MESSAGE_BYTES = 8 << 20
"""More than a WebSocket message of ours ever has."""


class MemoryTransport:
    """One end of a pair inside one process."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._incoming: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._closed = False
        self._other: MemoryTransport | None = None

    @property
    def may_send_now(self) -> bool:
        return not self._closed and self._other is not None and not self._other._closed

    def send_now(self, data: bytes) -> None:
        assert self._other is not None
        self._other._incoming.append(data)
        self._other._ready.set()

    async def send(self, data: bytes) -> None:
        other = self._other
        if self._closed or other is None or other._closed:
            raise ConnectionResetError(f"{self.peer} is gone")
        other._incoming.append(data)  # bounded: links send no more than their window
        other._ready.set()

    async def receive(self) -> bytes:
        while not self._incoming:
            if self._closed:
                return b""
            self._ready.clear()
            await self._ready.wait()
        return self._incoming.popleft()

    async def close(self) -> None:
        self._closed = True
        self._ready.set()
        if self._other is not None:
            self._other._closed = True
            self._other._ready.set()


def memory_pair(first: str, second: str) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends; each is named after the peer it leads to."""
    one, two = MemoryTransport(second), MemoryTransport(first)
    one._other, two._other = two, one
    return one, two


class StreamTransport(asyncio.Protocol):
    """A connected stream socket. Reading pauses while more than 1 MiB waits."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._incoming: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._ready = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False
        self._paused = False
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def over(cls, connection: socket.socket, peer: str) -> "StreamTransport":
        """Takes the socket over."""
        connection.setblocking(False)
        _, protocol = await asyncio.get_running_loop().create_connection(lambda: cls(peer), sock=connection)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        self._incoming.append(data)
        self._waiting_bytes += len(data)
        self._ready.set()
        if self._waiting_bytes > BUFFER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._ready.set()
        self._writable.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._ready.set()
        return False

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    @property
    def may_send_now(self) -> bool:
        return not self._ended and self._transport is not None and self._writable.is_set()

    def send_now(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def send(self, data: bytes) -> None:
        if self._ended or self._transport is None:
            raise ConnectionResetError(f"{self.peer} is gone")
        self._transport.write(data)
        await self._writable.wait()

    async def receive(self) -> bytes:
        while not self._incoming:
            if self._ended:
                return b""
            self._ready.clear()
            await self._ready.wait()
        data = self._incoming.popleft()
        self._waiting_bytes -= len(data)
        if self._paused and self._waiting_bytes <= BUFFER_BYTES // 2 and self._transport is not None:
            self._paused = False
            if not self._ended:
                self._transport.resume_reading()
        return data

    async def close(self) -> None:
        self._ended = True
        self._ready.set()
        if self._transport is not None:
            stalled = self._paused or not self._writable.is_set()  # close() would wait for the peer to read
            self._transport.abort() if stalled else self._transport.close()


async def open_websocket(
    session: "ClientSession", url: str, *, context: "SSLContext", name: str | None = None, limit_s: float = 10.0
) -> "ClientWebSocketResponse":
    """A WebSocket over mutual TLS; ConnectionError says in words why there is none. name: that of the certificate."""
    import aiohttp

    from biruda.trust.tls import inner_error, words_of

    try:
        async with asyncio.timeout(limit_s):
            return await session.ws_connect(
                url, ssl=context, server_hostname=name, max_msg_size=MESSAGE_BYTES, compress=0
            )
    except TimeoutError:
        raise ConnectionError(f"no answer within {limit_s:g} s") from None
    except aiohttp.WSServerHandshakeError as error:
        reason = error.headers.get("Biruda-Reason") if error.headers else None
        raise ConnectionError(reason or f"it answers HTTP {error.status}") from None
    except (aiohttp.ClientError, OSError) as error:
        inner = inner_error(error)
        if inner is not None:
            raise ConnectionError(words_of(inner)) from None
        if isinstance(error, aiohttp.ServerDisconnectedError):
            raise ConnectionError("it closed the connection; its log says why") from None
        refused = getattr(error, "os_error", error)
        raise ConnectionError((getattr(refused, "strerror", None) or str(refused)).lower()) from None


class WebSocketTransport:
    """An aiohttp WebSocket of either side; its messages are pieces of the byte stream."""

    def __init__(self, websocket: "WebSocketResponse | ClientWebSocketResponse", peer: str) -> None:
        self.peer = peer
        self._websocket = websocket

    may_send_now = False  # aiohttp's frames are sent by a coroutine

    def send_now(self, data: bytes) -> None:
        raise AssertionError("a WebSocket is sent to with send()")

    async def send(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), BUFFER_BYTES):
                await self._websocket.send_bytes(data[start : start + BUFFER_BYTES])
        except RuntimeError as error:  # aiohttp's way to say that the socket is closing
            raise ConnectionResetError(f"{self.peer} is gone") from error

    async def receive(self) -> bytes:
        from aiohttp import WSMsgType

        while True:
            message = await self._websocket.receive()
            if message.type is WSMsgType.BINARY:
                if message.data:
                    data: bytes = message.data
                    return data
            elif message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return b""

    async def close(self) -> None:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(2):
                await self._websocket.close()
