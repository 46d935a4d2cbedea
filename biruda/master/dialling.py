"""Coordinators that listen: the master dials them, and renews their certificates, as they cannot ask for it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import orjson

from biruda.errors import BirudaError, PeerError, first_of
from biruda.master.hosts import Hosts
from biruda.master.joining import Joining, NotAdmitted
from biruda.master.linkserver import carry
from biruda.transports import WebSocketTransport, open_websocket
from biruda.trust import tls
from biruda.trust.acceptor import Complaints

log = logging.getLogger("biruda.master")

REDIAL_S: Final = 0.125
REDIAL_MOST_S: Final = 15.0
ANSWER_S: Final = 10.0
LONGEST_SLEEP_S: Final = 86400.0


@asynccontextmanager
async def dialling(addresses: Sequence[str], joining: Joining, hosts: Hosts) -> AsyncIterator[None]:
    """Within it, every address (HOST:PORT) that answers is linked."""
    context = tls.dialling_coordinator(joining.authority.certificate, joining.authority.master)
    connector = aiohttp.TCPConnector(force_close=True)  # whose certificate was seen is who is talked to
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
        dialled = [
            tasks.create_task(_Dialled(address, session, context, joining, hosts).keep(), name=f"dial {address}")
            for address in addresses
        ]
        try:
            yield
        finally:
            for task in dialled:
                task.cancel()


class _Dialled:
    """One address of a coordinator."""

    def __init__(
        self, address: str, session: aiohttp.ClientSession, context: Any, joining: Joining, hosts: Hosts
    ) -> None:
        self._address = address
        self._session = session
        self._context = context
        self._joining = joining
        self._hosts = hosts
        self._complaints = Complaints()

    async def keep(self) -> None:
        """Dial, for ever."""
        pause_s, told = REDIAL_S, ""
        while True:
            try:
                await self._one_connection()
                pause_s, told = REDIAL_S, ""
            except* (OSError, TimeoutError, BirudaError) as group:
                problem = str(first_of(group))
                if problem != told:
                    log.warning("no link to the coordinator at %s: %s; trying again", self._address, problem)
                    told = problem
            await asyncio.sleep(pause_s)
            pause_s = min(REDIAL_MOST_S, pause_s * 2)

    async def _open(self, path: str) -> tuple[aiohttp.ClientWebSocketResponse, tls.Peer]:
        websocket = await open_websocket(self._session, f"https://{self._address}{path}", context=self._context)
        peer = tls.peer_of(websocket.get_extra_info("peercert"))
        if peer is None or peer.role is not tls.Role.COORDINATOR:
            await websocket.close()
            raise PeerError("what answers there is no coordinator")
        return websocket, peer

    async def _one_connection(self) -> None:
        websocket, peer = await self._open("/api/v1/link")
        transport = WebSocketTransport(websocket, self._address)
        async with asyncio.TaskGroup() as tasks:
            renewing = tasks.create_task(self._keep_renewed(peer), name=f"renew {peer.host}")
            await carry(peer, transport, self._joining, self._hosts, self._complaints)
            renewing.cancel()

    async def _keep_renewed(self, peer: tls.Peer) -> None:
        while True:
            left_s, third_s = peer.expires_s - time.time(), (peer.expires_s - peer.issued_s) / 3
            if left_s > third_s:
                await asyncio.sleep(min(left_s - third_s, LONGEST_SLEEP_S))
                continue
            try:
                peer = await self._renew(peer)
            except (OSError, TimeoutError, BirudaError) as error:
                log.warning("the certificate of %s cannot be renewed: %s; trying again", peer.host, error)
                if isinstance(error, NotAdmitted):
                    return
                await asyncio.sleep(min(3600.0, max(1.0, left_s / 10)))

    async def _renew(self, peer: tls.Peer) -> tls.Peer:
        websocket, answering = await self._open("/api/v1/renewal")
        try:
            async with asyncio.timeout(ANSWER_S):
                request = _text(await websocket.receive_bytes(), "request")
                # for whom the certificate of this very connection says, whoever was linked before
                admission = await self._joining.renew(answering, request, self._address)
                await websocket.send_bytes(orjson.dumps({"certificate": admission.certificate}))
                problem = _text(await websocket.receive_bytes(), "problem")
        except TypeError as error:  # aiohttp's way to say that another kind of message came
            raise PeerError(f"{self._address} broke off its renewal: {error}") from None
        finally:
            await websocket.close()
        if problem:
            raise PeerError(problem[:500])
        if answering.host != peer.host:
            raise PeerError(f"{answering.host} answers there now")
        return admission.peer


def _text(data: bytes, key: str) -> str:
    try:
        value = orjson.loads(data)[key]
    except (ValueError, KeyError, TypeError, IndexError):
        value = None
    if not isinstance(value, str):
        raise PeerError(f"it sent a renewal without `{key}`")
    return value
