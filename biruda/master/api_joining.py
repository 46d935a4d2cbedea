"""The API's routes about hosts that join: tokens, certificates, revocation."""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from biruda.errors import UserError
from biruda.master import requests as rq
from biruda.master import views
from biruda.master.access import Role, needs
from biruda.master.joining import Joining
from biruda.master.joinrecords import CertificateRecord
from biruda.master.responses import USER, body_of, json_response

DEFAULT_TOKEN_S: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """How coordinators on other hosts may come in. joining None: not at all over TLS."""

    joining: Joining | None = None
    url: str = ""  # of the TLS listener, as other hosts may write it; "" without one
    plain: bool = False


LINKS = web.AppKey("links", Links)

routes = web.RouteTableDef()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A join token to make."""

    host: str = ""
    ttl_s: float = DEFAULT_TOKEN_S


def may_link_without_tls(request: web.Request) -> bool:
    """Whether a coordinator may come in over the API's own listener: from this host, or where the farm says so."""
    links = request.app.get(LINKS, Links())
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    if links.plain or connection is None or connection.family == socket.AF_UNIX:
        return True
    try:
        address = ipaddress.ip_address((request.remote or "").partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _joining(request: web.Request) -> Joining:
    joining = request.app.get(LINKS, Links()).joining
    if joining is None:
        raise UserError(
            "this master takes no other hosts", hint='[master] link_listen = ":7879" in its biruda.conf, and restart it'
        )
    return joining


@routes.post("/api/v1/tokens")
@needs(Role.ADMIN)
async def make_token(request: web.Request) -> web.StreamResponse:
    wanted = rq.parse(TokenRequest, await body_of(request))
    joining, url = _joining(request), request.app[LINKS].url
    if not url:
        raise UserError("this master does not listen for hosts that join", hint='[master] link_listen = ":7879"')
    made = await joining.make_token(host=wanted.host, ttl_s=wanted.ttl_s, made_by=request[USER])
    text = str(made.token)
    command = f"biruda join {url} --token {text}" + (f" --name {wanted.host}" if wanted.host else "")
    answer = {"token": text, "url": url, "host": wanted.host or None, "expires": views.instant(made.expires_s)}
    return json_response({**answer, "command": command}, 201)


async def hosts_view(request: web.Request) -> list[dict[str, Any]]:
    """Each host that has joined, by its newest certificate."""
    joining = request.app.get(LINKS, Links()).joining
    return [_view(record) for record in await joining.hosts()] if joining else []


@routes.get("/api/v1/hosts")
async def hosts(request: web.Request) -> web.StreamResponse:
    return json_response({"hosts": await hosts_view(request)})


@routes.post("/api/v1/hosts/{host}/revoke")
@needs(Role.ADMIN)
async def revoke(request: web.Request) -> web.StreamResponse:
    reason = rq.parse(rq.ReasonRequest, await body_of(request)).reason
    words = f"{reason[:500]} ({request[USER]})" if reason else f"by {request[USER]}"
    host = request.match_info["host"]
    return json_response({"host": host, "revoked": await _joining(request).revoke(host, words)})


def _view(record: CertificateRecord) -> dict[str, Any]:
    return {
        "host": record.host,
        "serial": record.serial,
        "address": record.address,
        "issued": views.instant(record.issued_s),
        "expires": views.instant(record.expires_s),
        "revoked": views.instant(record.revoked_s),
        "reason": record.reason,
    }
