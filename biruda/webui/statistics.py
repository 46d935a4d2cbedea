"""How the farm did."""

from aiohttp import web

from biruda.master.api_statistics import statistics_view
from biruda.master.statistics import KEYS
from biruda.webui.routes import render

routes = web.RouteTableDef()

SPANS = ((1, "hour"), (24, "day"), (168, "week"), (720, "30 days"), (8760, "year"))


@routes.get("/statistics")
async def statistics(request: web.Request) -> web.StreamResponse:
    seen = await statistics_view(request)
    hours = request.query.get("hours", "24")
    return render(request, "statistics.html", seen=seen, spans=SPANS, hours=hours, keys=list(KEYS))
