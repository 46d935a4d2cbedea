"""The pages: mounted into the master's API, whose answers are all they show. Nothing is loaded before a first visit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final

import orjson
from aiohttp import hdrs, web
from yarl import URL

from biruda.master.access import CALLER, Role, needs
from biruda.master.asking import MASTER
from biruda.master.responses import Handler

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "frame-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing inline, nothing from elsewhere, in no frame."""

HEADERS: Final[Mapping[str, str]] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

THEMES: Final = ("light", "dark")

API: Final = ("/api/", "/metrics", "/RPC2")
"""What programs ask for: problems are answered as problem documents there, and as pages elsewhere."""


@dataclass(slots=True)
class Site:
    """What pages are made of, loaded when it is first wanted: a farm nobody looks at need not have it in memory."""

    _loaded: dict[str, Any] = field(default_factory=dict)

    @property
    def assets(self) -> Any:
        if "assets" not in self._loaded:
            from biruda.webui import assets

            self._loaded["assets"] = assets.load(resources.files("biruda.webui") / "static")
        return self._loaded["assets"]

    @property
    def templates(self) -> Any:
        if "templates" not in self._loaded:
            from biruda.webui.rendering import Templates

            self._loaded["templates"] = Templates(self.assets)
        return self._loaded["templates"]


SITE = web.AppKey("site", Site)
routes = web.RouteTableDef()


def render(request: web.Request, template: str, *, status: int = 200, **values: Any) -> web.Response:
    """A page. Beside the values every template knows who looks (`me`), where (`path`), and the last event (`event`)."""
    caller = request.get(CALLER)
    theme = request.cookies.get("theme", "")
    frame = {
        "me": caller,
        "may_act": caller is not None and caller.role.may(Role.USER),
        "may_administer": caller is not None and caller.role.may(Role.ADMIN),
        "path": request.path,
        "query": request.query,
        "theme": theme if theme in THEMES else "",
        "event": request.app[MASTER].next_event - 1,
    }
    page: web.Response = request.app[SITE].templates.page(template, {**frame, **values}, status=status)
    return page


@routes.get("/static/{digest}/{name:.+}")
@needs(Role.NOBODY)
async def static(request: web.Request) -> web.StreamResponse:
    assets = request.app[SITE].assets
    asset = assets.files.get(request.match_info["name"])
    if asset is None:
        raise web.HTTPNotFound
    headers = {hdrs.ETAG: asset.etag, hdrs.CONTENT_TYPE: asset.content_type, hdrs.VARY: "Accept-Encoding"}
    is_current = request.match_info["digest"] == assets.digest  # else a page from before an upgrade asks
    headers[hdrs.CACHE_CONTROL] = "public, max-age=31536000, immutable" if is_current else "no-cache"
    if request.headers.get(hdrs.IF_NONE_MATCH) == asset.etag:
        return web.Response(status=304, headers=headers)
    if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
        return web.Response(body=asset.packed, headers={**headers, hdrs.CONTENT_ENCODING: "gzip"})
    return web.Response(body=asset.body, headers=headers)


@routes.get("/favicon.ico")
@needs(Role.NOBODY)
async def favicon(request: web.Request) -> web.StreamResponse:
    raise web.HTTPMovedPermanently(request.app[SITE].assets.url("favicon.svg"))


@web.middleware
async def pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the API's border answers to a browser's page: problems as pages, and a way to log in."""
    response = await handler(request)
    if request.path.startswith(API) or response.content_type != "application/problem+json":
        return response
    assert isinstance(response, web.Response)
    problem = orjson.loads(response.body) if isinstance(response.body, bytes) else {}
    if response.status == 401 and request.method == "GET":
        return _to_login(request)
    return render(request, "problem.html", status=response.status, problem=problem)


def _to_login(request: web.Request) -> web.Response:
    """A link on another site's page brings no cookie along; the page that it leads to, loaded anew, does."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return render(request, "again.html", url=str(request.rel_url))
    place = URL("/login").with_query(next=str(request.rel_url))
    return web.Response(status=303, headers={"Location": str(place)})


async def _protect(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    policy = "default-src 'none'; sandbox; frame-ancestors 'none'" if request.path.startswith(API) else POLICY
    response.headers.setdefault("Content-Security-Policy", policy)


def mount(app: web.Application) -> None:
    """Put the pages into the application that serves the API."""
    app[SITE] = Site()
    app.middlewares.insert(0, pages)
    app.on_response_prepare.append(_protect)
    from biruda.webui import farm, job, jobs, login, places, start, statistics

    for module in (farm, job, jobs, login, places, start, statistics):
        app.add_routes(module.routes)
    app.add_routes(routes)
