"""Logging in with a token, and out."""

import logging
import re
from typing import Final

from aiohttp import web

from biruda.errors import UserError
from biruda.master.access import ACCESS, COOKIE, Role, is_own_origin, needs
from biruda.master.api_access import SESSIONS
from biruda.master.sessions import SESSION_S
from biruda.webui.routes import render

log = logging.getLogger("biruda.web")

routes = web.RouteTableDef()

OWN_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]{0,2000}", re.ASCII)
"""An address of this farm and of nowhere else: "//host" and "/\\host" are others'."""


def _next(text: str) -> str:
    """Where to go afterwards."""
    return text if OWN_PATH.fullmatch(text) and not text.startswith("/login") else "/"


@routes.get("/login")
@needs(Role.NOBODY)
async def login_page(request: web.Request) -> web.StreamResponse:
    return render(request, "login.html", next=_next(request.query.get("next", "/")), wrong="")


@routes.post("/login")
@needs(Role.NOBODY)
async def login(request: web.Request) -> web.StreamResponse:
    """Take a token in and give a cookie for it."""
    form = await request.post()
    address, after = request.remote or "", _next(str(form.get("next", "/")))
    if "Origin" in request.headers and not is_own_origin(request):
        return render(request, "login.html", status=403, next=after, wrong="that came from a page of another site")
    wrong = request.app[ACCESS].wrong
    try:
        wrong.refuse_the_persistent(address, "tokens")
        cookie = request.app[SESSIONS].log_in(str(form.get("token", "")).strip()[:500])
    except UserError as error:
        return render(request, "login.html", status=429, next=after, wrong=f"{error}; {error.hint}")
    if cookie is None:
        wrong.add(address)
        log.warning("a wrong token came from %s", address)
        return render(request, "login.html", status=403, next=after, wrong="this token is not known, or is over")
    response = web.Response(status=303, headers={"Location": after})
    response.set_cookie(
        COOKIE, cookie, max_age=int(SESSION_S), httponly=True, samesite="Strict", secure=request.secure, path="/"
    )
    return response


@routes.post("/logout")
@needs(Role.NOBODY)
async def logout(request: web.Request) -> web.StreamResponse:
    cookie = request.cookies.get(COOKIE)
    if cookie:
        request.app[SESSIONS].log_out(cookie)
    response = web.Response(status=303, headers={"Location": "/login"})
    response.del_cookie(COOKIE, path="/")
    return response
