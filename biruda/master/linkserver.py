"""What other hosts may reach: joining, renewal and the link itself, over TLS 1.3. The API is elsewhere."""

import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from biruda.errors import PeerError
from biruda.link import refuse
from biruda.master import connections, views
from biruda.master import requests as rq
from biruda.master.connections import listen_at
from biruda.master.hosts import Hosts
from biruda.master.joining import Admission, Joining, JoinRequest, NotAdmitted
from biruda.master.responses import Handler, answered, body_of, json_response
from biruda.master.tries import TooManyTries
from biruda.transports import WebSocketTransport
from biruda.trust import tls
from biruda.trust.acceptor import Complaints, accepting

log = logging.getLogger("biruda.master")

MAX_BODY_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    """A certificate for another key, for the host that the shown certificate names."""

    request: str


JOINING = web.AppKey("joining", Joining)
HOSTS = web.AppKey("hosts", Hosts)
COMPLAINTS = web.AppKey("complaints", Complaints)

routes = web.RouteTableDef()


@web.middleware
async def border(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as a problem document; who was refused, in the log."""

    async def told(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (NotAdmitted, TooManyTries, PeerError, rq.InvalidRequest) as error:
            request.app[COMPLAINTS].tell(request.remote or "?", str(error))
            raise

    return await answered(request, told)


def _peer(request: web.Request) -> tls.Peer | None:
    transport = request.transport
    return tls.peer_of(transport.get_extra_info("peercert")) if transport is not None else None


def _admission(admission: Admission) -> dict[str, Any]:
    return {
        "host": admission.peer.host,
        "certificate": admission.certificate,
        "authority": admission.authority,
        "expires": views.instant(admission.peer.expires_s),
    }


@routes.get("/api/v1/join")
async def authority(request: web.Request) -> web.StreamResponse:
    """Whose master this is: a new host compares it with its token before it says anything."""
    return json_response({"authority": request.app[JOINING].authority.text()})


@routes.post("/api/v1/join")
async def join(request: web.Request) -> web.StreamResponse:
    wanted = rq.parse(JoinRequest, await body_of(request))
    return json_response(_admission(await request.app[JOINING].join(wanted, request.remote or "?")), 201)


@routes.get("/api/v1/certificate")
async def certificate(request: web.Request) -> web.StreamResponse:
    """How long the shown certificate is good for, by this master's clock, which is the one that counts."""
    left_s, life_s = await request.app[JOINING].life_of(_peer(request))
    return json_response({"left_s": left_s, "life_s": life_s})


@routes.post("/api/v1/certificate")
async def renew(request: web.Request) -> web.StreamResponse:
    wanted = rq.parse(RenewRequest, await body_of(request))
    admission = await request.app[JOINING].renew(_peer(request), wanted.request, request.remote or "?")
    return json_response(_admission(admission), 201)


@routes.get("/api/v1/link")
async def link(request: web.Request) -> web.StreamResponse:
    """A coordinator's connection. Who may not come in is told by a REFUSE frame, as it expects frames."""
    websocket = web.WebSocketResponse(max_msg_size=8 << 20, compress=False, autoping=True)
    await websocket.prepare(request)
    transport = WebSocketTransport(websocket, request.remote or "?")
    await carry(_peer(request), transport, request.app[JOINING], request.app[HOSTS], request.app[COMPLAINTS])
    return websocket


async def carry(
    peer: tls.Peer | None, transport: WebSocketTransport, joining: Joining, hosts: Hosts, complaints: Complaints
) -> None:
    """Serve one TLS connection of a coordinator until it ends, whichever side dialled."""
    try:
        try:
            async with joining.carrying(peer, transport) as host:
                await hosts.serve(transport, certified=host)
        except NotAdmitted as error:
            complaints.tell(transport.peer, str(error))
            await refuse(transport, str(error), error.hint)
    except* (PeerError, ConnectionError, TimeoutError) as group:
        for each in group.exceptions:
            log.warning("%s: %s", transport.peer, str(each).removeprefix(f"{transport.peer}: "))


def application(joining: Joining, hosts: Hosts, complaints: Complaints) -> web.Application:
    """All that a stranger can reach of this master."""
    app = web.Application(middlewares=[border], client_max_size=MAX_BODY_BYTES)
    app[JOINING], app[HOSTS], app[COMPLAINTS] = joining, hosts, complaints
    app.add_routes(routes)
    return app


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The application over TLS at this address, "" for every interface; gives the port. Raises ConfigError."""
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=connections.log,
        shutdown_timeout=2.0,
        handler_cancellation=True,
        keepalive_timeout=15.0,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        listeners = listen_at(host, port, "link_listen")
        async with accepting(listeners, context, runner.server, app[COMPLAINTS]):
            yield listeners[0].getsockname()[1]
    finally:
        await app[JOINING].cut_all()
        await runner.cleanup()
