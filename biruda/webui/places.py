"""Where jobs run: environments, named workers, hosts."""

from typing import Any

from aiohttp import web

from biruda.errors import NotFound
from biruda.master import views
from biruda.master.api_joining import hosts_view
from biruda.master.asking import JOBS, MASTER, number
from biruda.master.joblist import Filter
from biruda.master.matching import misfits
from biruda.webui.routes import render

routes = web.RouteTableDef()

MOST_LISTED = 200
HISTORY = 25
FILTERS = ("arch", "platform", "host", "kind")


@routes.get("/environments")
async def environments(request: web.Request) -> web.StreamResponse:
    farm = request.app[MASTER].farm
    wanted = {name: request.query[name] for name in FILTERS if request.query.get(name)}
    fitting = [
        views.environment_view(host, offer)
        for host, offer in farm.offers()
        if not misfits(wanted, host.report.host, offer)
    ]
    fitting.sort(key=lambda view: (view["usable"] and view["connected"], view["name"], view["host"]))
    return _listed(request, fitting)


def _listed(request: web.Request, found: list[dict[str, Any]]) -> web.Response:
    shown, part = _part(request, found)
    return render(request, "environments.html", environments=shown, part=part, filters=FILTERS)


def _part(request: web.Request, found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Of what has the asked word in its name, so many from where the query says; and where the others are."""
    word = request.query.get("name", "")
    fitting = [view for view in found if word.lower() in view["name"].lower()]
    first = min(number(request, "from", 0) or 0, len(fitting))
    shown = fitting[first : first + MOST_LISTED]

    def at(place: int) -> str:
        return str(request.rel_url.update_query({"from": str(place)}))

    before = at(max(0, first - MOST_LISTED)) if first else None
    after = at(first + MOST_LISTED) if first + MOST_LISTED < len(fitting) else None
    part = {"all": len(fitting), "first": first + 1, "last": first + len(shown), "before": before, "after": after}
    return shown, {**part, "name": word}


async def _history(request: web.Request, wanted: Filter) -> list[dict[str, Any]]:
    listed = request.app[JOBS]
    return await listed.rows(await listed.numbers(wanted, limit=HISTORY))


@routes.get("/environments/{name}")
async def environment(request: web.Request) -> web.StreamResponse:
    name, host = request.match_info["name"], request.query.get("host")
    found = [
        (owner, offer)
        for owner, offer in request.app[MASTER].farm.offers()
        if offer.name == name and host in (None, owner.report.host)
    ]
    if not found:
        raise NotFound(f"there is no environment {name!r}" + (f" on {host}" if host else ""), hint="biruda env list")
    if len(found) > 1:
        return _listed(request, [views.environment_view(*each) for each in found])
    view = views.environment_view(*found[0])
    workers = [each for each in views.worker_views(request.app[MASTER].farm) if _is_in(each, view)]
    history = await _history(request, Filter(environment=name, host=view["host"]))
    return render(request, "environment.html", it=view, workers=workers, history=history)


def _is_in(worker: dict[str, Any], environment: dict[str, Any]) -> bool:
    return bool(worker["environment"] == environment["name"] and worker["host"] == environment["host"])


@routes.get("/workers")
async def workers(request: web.Request) -> web.StreamResponse:
    found = sorted(
        views.worker_views(request.app[MASTER].farm),
        key=lambda view: (view["name"], view["arch"], view["platform"], view["host"]),
    )
    shown, part = _part(request, found)
    return render(request, "workers.html", workers=shown, part=part)


@routes.get("/workers/{name}")
async def worker(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    found = [view for view in views.worker_views(request.app[MASTER].farm) if view["name"] == name]
    if not found:
        raise NotFound(f"there is no worker {name!r}", hint="biruda farm lists them")
    return render(
        request, "worker.html", name=name, workers=found, history=await _history(request, Filter(worker=name))
    )


@routes.get("/hosts")
async def hosts(request: web.Request) -> web.StreamResponse:
    farm = request.app[MASTER].farm
    found = sorted(farm.hosts.values(), key=lambda host: (host.connected, host.report.host))
    shown = [views.coordinator_view(host) for host in found]
    return render(request, "hosts.html", hosts=shown, joined=await hosts_view(request))


@routes.get("/hosts/{host}")
async def host(request: web.Request) -> web.StreamResponse:
    name = request.match_info["host"]
    found = request.app[MASTER].farm.hosts.get(name)
    if found is None:
        raise NotFound(f"there is no host {name!r}", hint="biruda farm lists them")
    there = [views.environment_view(found, offer) for offer in found.report.environments]
    return render(
        request,
        "host.html",
        it=views.coordinator_view(found),
        environments=there,
        history=await _history(request, Filter(host=name)),
    )
