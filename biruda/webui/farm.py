"""The home page: the whole farm at a glance."""

from aiohttp import web

from biruda.master.api_farm import farm_view
from biruda.webui.routes import render

routes = web.RouteTableDef()


@routes.get("/")
async def home(request: web.Request) -> web.StreamResponse:
    return render(request, "farm.html", farm=await farm_view(request))
