"""Who asks, and what they may do: a local user, who shows a token, a browser that has logged in, or anybody."""

import hmac
import os
import pwd
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from aiohttp import web

from biruda.master.responses import Handler, problem

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


@dataclass(frozen=True, slots=True)
class Access:
    """What lets somebody in. token: of the administrator; anonymous: the role of who shows nothing; None: no way in."""

    token: str
    anonymous: Role | None = None


ACCESS = web.AppKey("access", Access)
CALLER = web.RequestKey("caller", Caller)

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
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    given = token.strip().encode("utf-8", "replace")
    if scheme.lower() == "bearer":
        is_right = hmac.compare_digest(given, access.token.encode())
        return Caller(name="token", role=Role.ADMIN) if is_right else None
    return None if access.anonymous is None else Caller(name="", role=access.anonymous)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def refusal(request: web.Request, caller: Caller | None) -> web.Response | None:
    """Why a request is not answered; None: it is."""
    role = needed(request)
    if role is Role.NOBODY or (caller is not None and caller.role.may(role)):
        return None
    if caller is None or not caller.name:
        return problem(
            401,
            f"{request.path}: a valid token is needed here",
            "Authorization: Bearer with the content of HOME/token",
        )
    return problem(
        403,
        f"{request.path}: {caller.name} has the role {caller.role}, and {request.method} needs {role}",
        "an administrator makes tokens: biruda token --role",
    )
