"""To start something, and to find something."""

from aiohttp import web
from yarl import URL

from biruda.master import views
from biruda.master.access import Role, needs
from biruda.master.asking import MASTER
from biruda.webui.routes import render

routes = web.RouteTableDef()


@routes.get("/start")
@needs(Role.USER)
async def start(request: web.Request) -> web.StreamResponse:
    """The form. It works by the API alone: start.js sends what it says."""
    farm = request.app[MASTER].farm
    places: dict[tuple[str, str, str], list[str]] = {}
    for host, offer in farm.offers():
        if offer.usable:
            places.setdefault((offer.name, offer.arch, offer.platform), []).append(host.report.host)
    workers = sorted({view["name"] for view in views.worker_views(farm)})
    return render(request, "start.html", places=sorted(places), workers=workers)


@routes.get("/find")
async def find(request: web.Request) -> web.StreamResponse:
    """Straight to what is called so; else the jobs with that in their name."""
    text = request.query.get("q", "").strip()
    farm = request.app[MASTER].farm
    if text.isascii() and text.isdigit() and len(text) <= 18:
        place = URL("/jobs") / str(int(text))
    elif text in farm.hosts:
        place = URL("/hosts") / text
    elif any(worker.name == text for _, worker in farm.workers()):
        place = URL("/workers") / text
    elif any(offer.name == text for _, offer in farm.offers()):
        place = URL("/environments") / text
    else:
        place = URL("/jobs").with_query(name=text) if text else URL("/jobs")
    return web.Response(status=303, headers={"Location": str(place)})
