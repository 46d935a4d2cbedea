"""Who asks, and what they may do: a local user, who shows a token, a browser that has logged in, or anybody."""

import os
import pwd
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol, TypeVar

from aiohttp import hdrs, web

from biruda.master.requests import NotAllowed
from biruda.master.responses import Handler, problem
from biruda.master.tries import WrongTries

F = TypeVar("F", bound=Handler)


class Role(StrEnum):
    """What somebody may do; each may all that stands before it."""

    NOBODY = "nobody"  # what needs no token: the way to log in
    VIEWER = "viewer"  # read
    USER = "user"  # submit jobs, end and repeat their own
    ADMIN = "admin"  # everything

    def may(self, needed: "Role") -> bool:
        return _ORDER.index(self) >= _ORDER.index(needed)


_ORDER: Final = (Role.NOBODY, Role.VIEWER, Role.USER, Role.ADMIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. by_cookie: a browser sent it along unasked, so that a write must prove that a page of ours meant it."""

    name: str
    role: Role
    by_cookie: bool = False


class Known(Protocol):
    """Who is known by what they show: sessions.py."""

    def by_token(self, text: str) -> Caller | None: ...
    def by_cookie(self, text: str) -> Caller | None: ...


@dataclass(frozen=True, slots=True)
class Access:
    """What lets somebody in. anonymous: the role of who shows nothing; None: no way in."""

    known: Known
    anonymous: Role | None = None
    wrong: WrongTries = field(default_factory=WrongTries)


ACCESS = web.AppKey("access", Access)
CALLER = web.RequestKey("caller", Caller)

COOKIE: Final = "biruda"
PAGE_HEADER: Final = "Biruda-Page"
"""With a cookie a write must have it: a form of another site cannot send it, and a script of one is not let."""

READS: Final = ("GET", "HEAD", "OPTIONS")


def needs(role: Role) -> Callable[[F], F]:
    """Mark a handler with the role that it needs. Without a mark: VIEWER to read, USER to write."""

    def mark(handler: F) -> F:
        handler.role = role  # type: ignore[attr-defined]
        return handler

    return mark


def needed(request: web.Request) -> Role:
    """The role that a request needs."""
    role = getattr(request.match_info.handler, "role", None)
    return role if isinstance(role, Role) else (Role.VIEWER if request.method in READS else Role.USER)


def identify(request: web.Request) -> Caller | None:
    """Who asks; None for nobody that is known."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is not None and connection.family == socket.AF_UNIX:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", credentials)[1]
        return Caller(name=_user_name(uid), role=Role.ADMIN) if uid in (0, os.getuid()) else None
    access = request.app[ACCESS]
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme:
        return access.known.by_token(token.strip()) if scheme.lower() == "bearer" else None
    cookie = request.cookies.get(COOKIE)
    caller = access.known.by_cookie(cookie) if cookie else None
    return caller or (None if access.anonymous is None else Caller(name="", role=access.anonymous))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def refusal(request: web.Request, caller: Caller | None) -> web.Response | None:
    """Why a request is not answered; None: it is."""
    if caller is not None and caller.by_cookie and not _is_meant(request):
        return problem(
            403,
            f"{request.method} {request.path}: a cookie alone does not show that a page of this farm asks",
            f"programs send Authorization: Bearer; pages send {PAGE_HEADER} and their own Origin",
        )
    role = needed(request)
    if role is Role.NOBODY or (caller is not None and caller.role.may(role)):
        return None
    if caller is None or not caller.name:
        return problem(
            401,
            f"{request.path}: a valid token is needed here",
            "Authorization: Bearer with the content of HOME/token, or with what `biruda token --role` made",
        )
    return problem(
        403,
        f"{request.path}: {caller.name} has the role {caller.role}, and {request.method} needs {role}",
        "an administrator makes tokens: biruda token --role",
    )


def _is_meant(request: web.Request) -> bool:
    """Whether one of our pages asks, where only a cookie says who; reading needs no proof, but to listen does."""
    if request.method not in READS:
        is_form = needed(request) is Role.NOBODY  # to log out: a form of a page without scripts
        return is_own_origin(request) and (is_form or PAGE_HEADER in request.headers)
    return hdrs.UPGRADE not in request.headers or is_own_origin(request)


def is_own_origin(request: web.Request) -> bool:
    """Whether a page of this address asks, as the browser says."""
    return request.headers.get(hdrs.ORIGIN, "").partition("://")[2] == request.headers.get(hdrs.HOST, "-")


def check_owner(request: web.Request, job: dict[str, Any]) -> None:
    """Raise NotAllowed for who may not end or repeat this job: it is somebody else's."""
    caller = request[CALLER]
    if caller.role is not Role.ADMIN and job["user"] != caller.name:
        owner = job["user"] or "somebody else"
        raise NotAllowed(f"job {job['job']} is {owner}'s, not {caller.name}'s", hint="an administrator may do that")
