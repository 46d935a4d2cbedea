"""The API's routes about access: who asks, and the tokens that let somebody in."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from biruda.master import requests as rq
from biruda.master import views
from biruda.master.access import CALLER, Role, needs
from biruda.master.responses import USER, body_of, json_response
from biruda.master.sessions import AccessToken, Sessions

SESSIONS = web.AppKey("sessions", Sessions)

routes = web.RouteTableDef()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessTokenRequest:
    """A token for somebody to read, use or administer the farm with. ttl_s None: for ever."""

    name: str
    role: str
    ttl_s: float | None = None


@routes.get("/api/v1/me")
async def me(request: web.Request) -> web.StreamResponse:
    caller = request[CALLER]
    return json_response({"name": caller.name, "role": caller.role})


@routes.get("/api/v1/access-tokens")
@needs(Role.ADMIN)
async def access_tokens(request: web.Request) -> web.StreamResponse:
    return json_response({"tokens": [_view(token) for token in request.app[SESSIONS].tokens()]})


@routes.post("/api/v1/access-tokens")
@needs(Role.ADMIN)
async def make_access_token(request: web.Request) -> web.StreamResponse:
    wanted = rq.parse(AccessTokenRequest, await body_of(request))
    roles = [role.value for role in (Role.VIEWER, Role.USER, Role.ADMIN)]
    if wanted.role not in roles:
        raise rq.InvalidRequest(f"role = {wanted.role[:40]!r}: there are {', '.join(roles)}")
    text, token = request.app[SESSIONS].make_token(wanted.name, Role(wanted.role), wanted.ttl_s, request[USER])
    return json_response({"token": text, **_view(token)}, 201)


@routes.delete("/api/v1/access-tokens/{name}")
@needs(Role.ADMIN)
async def revoke_access_token(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    request.app[SESSIONS].revoke_token(name)
    return json_response({"revoked": name})


def _view(token: AccessToken) -> dict[str, Any]:
    return {
        "name": token.name,
        "role": token.role,
        "made_by": token.made_by,
        "made": views.instant(token.made_s),
        "expires": views.instant(token.expires_s),
    }
