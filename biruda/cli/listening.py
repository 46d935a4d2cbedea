"""A coordinator that listens on one interface: the master dials it, shows its certificate, and gets the same frames."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import WSMessage, WSMsgType, web

from biruda.config.values import Address
from biruda.coordinator import interface
from biruda.coordinator.credentials import Credentials, new_request
from biruda.errors import BirudaError, PeerError
from biruda.link import Transport
from biruda.transports import MESSAGE_BYTES, WebSocketTransport
from biruda.trust import tls
from biruda.trust.acceptor import Complaints, accepting

if TYPE_CHECKING:
    from biruda.coordinator.service import Dial

log = logging.getLogger("biruda")

ANSWER_S: Final = 10.0


class _Given(WebSocketTransport):
    """A connection of the master that the coordinator carries; its handler stays until that has ended."""

    def __init__(self, websocket: web.WebSocketResponse, peer: str) -> None:
        super().__init__(websocket, peer)
        self.ended = asyncio.Event()

    async def close(self) -> None:
        await super().close()
        self.ended.set()


class _Door:
    """Where the newest connection of the master waits until the coordinator takes it."""

    def __init__(self, credentials: Credentials, host: str, complaints: Complaints) -> None:
        self.credentials = credentials
        self.host = host
        self.complaints = complaints
        self.context = tls.listening(credentials.own, credentials.authority)
        self._waiting: asyncio.Queue[_Given] = asyncio.Queue()  # of one at most: give() empties it first
        self._current: _Given | None = None

    async def give(self, transport: _Given) -> None:
        """Hand a connection over; one that is still there is given up for it."""
        while not self._waiting.empty():
            await self._waiting.get_nowait().close()
        if self._current is not None:
            await self._current.close()
        self._waiting.put_nowait(transport)

    async def take(self) -> Transport:
        """The master's next connection."""
        while True:
            transport = await self._waiting.get()
            if not transport.ended.is_set():  # else the master has given up waiting
                self._current = transport
                return transport


DOOR = web.AppKey("door", _Door)
routes = web.RouteTableDef()


@asynccontextmanager
async def listening(home: Path, address: Address, host: str) -> "AsyncIterator[Dial]":
    """What the coordinator calls to wait for the master. Raises ConfigError where it cannot listen."""
    credentials = Credentials(home)
    credentials.check()
    door = _Door(credentials, host, Complaints())
    app = web.Application(client_max_size=4096)
    app[DOOR] = door
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0, handler_cancellation=True)
    await runner.setup()
    try:
        assert runner.server is not None
        listeners = interface.listen(address.host, address.port)
        shown = dict.fromkeys(_shown(listener) for listener in listeners)
        async with accepting(listeners, door.context, runner.server, door.complaints):
            log.info("waiting for the master on interface %s: %s", address.host, ", ".join(shown))
            yield door.take
    finally:
        await runner.cleanup()


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _refusal(request: web.Request) -> web.Response | None:
    """None for the master of this farm; anybody else is told what is wrong, and so is the log."""
    transport = request.transport
    peer = tls.peer_of(transport.get_extra_info("peercert")) if transport is not None else None
    if peer is not None and peer.role is tls.Role.MASTER:
        return None
    reason = "it shows no certificate" if peer is None else f"its certificate is that of the host {peer.host}"
    reason += ", and only the master of this farm may come in here"
    request.app[DOOR].complaints.tell(request.remote or "?", reason)
    return web.Response(status=403, text=reason + "\n", headers={"Biruda-Reason": reason})


@routes.get("/api/v1/link")
async def link(request: web.Request) -> web.StreamResponse:
    """The master dials: from here on as if the coordinator had."""
    refusal = _refusal(request)
    if refusal is not None:
        return refusal
    websocket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, compress=False, autoping=True)
    await websocket.prepare(request)
    transport = _Given(websocket, f"the master at {request.remote}")
    await request.app[DOOR].give(transport)
    try:
        await transport.ended.wait()
    finally:
        transport.ended.set()
    return websocket


@routes.get("/api/v1/renewal")
async def renewal(request: web.Request) -> web.StreamResponse:
    """The master has a new certificate to give: it gets the request, and what became of it."""
    refusal = _refusal(request)
    if refusal is not None:
        return refusal
    door = request.app[DOOR]
    websocket = web.WebSocketResponse(max_msg_size=65536, compress=False)
    await websocket.prepare(request)
    problem = ""
    try:
        host = door.credentials.check().host
        key, wanted = await asyncio.to_thread(new_request, host)
        await websocket.send_bytes(json.dumps({"request": wanted}).encode())
        async with asyncio.timeout(ANSWER_S):
            certificate = _certificate(await websocket.receive())
        await asyncio.to_thread(door.credentials.renew, key, certificate, host)
        door.context.load_cert_chain(door.credentials.own)
        log.info("the certificate was renewed")
    except (TimeoutError, BirudaError) as error:
        problem = str(error) or "no certificate came in time"
        log.warning("the certificate was not renewed: %s", problem)
    await websocket.send_bytes(json.dumps({"problem": problem}).encode())
    await websocket.close()
    return websocket


def _certificate(message: WSMessage) -> str:
    try:
        found = json.loads(message.data)["certificate"] if message.type is WSMsgType.BINARY else None
    except (ValueError, KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise PeerError("the master sent no certificate")
    return found
