"""The HTTP API: docs/api.md as aiohttp routes. Every page and command uses it and nothing else."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import WSCloseCode, web

from biruda import VERSION
from biruda.convert import encode
from biruda.errors import NotFound, PeerError
from biruda.link import refuse
from biruda.master import (
    access,
    api_access,
    api_farm,
    api_importing,
    api_jobs,
    api_joining,
    api_logs,
    api_statistics,
    connections,
    named,
    openapi,
    views,
)
from biruda.master import requests as rq
from biruda.master.artifacts import open_artifact, preview
from biruda.master.asking import JOBS, LOGS, switch
from biruda.master.asking import MASTER as MASTER
from biruda.master.asking import job_number as _job
from biruda.master.asking import number as _number
from biruda.master.connections import Door, listen_at, listen_locally, open_door
from biruda.master.ending import ending
from biruda.master.feed import Feed
from biruda.master.importing import Importing
from biruda.master.joblist import JobList
from biruda.master.joblog.service import Logs
from biruda.master.logs import FileReader, open_log
from biruda.master.responses import USER, Handler, answered, body_of, json_response, problem
from biruda.master.service import SUBSCRIBER_EVENTS, Master
from biruda.master.sessions import Sessions
from biruda.master.state import Host
from biruda.master.statistics import Statistics
from biruda.messages import PROTOCOL
from biruda.model import EnvironmentReport, JobSpec
from biruda.transports import WebSocketTransport

log = logging.getLogger("biruda.api")

MAX_BODY_BYTES = 64 << 20

LINGERING_S = 2.0
"""So long the rest of a body is read that nobody wants, so that the answer arrives."""

STALL_S = 60.0
"""So long somebody who gets bytes may take none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the status page tells of this daemon."""

    home: Path
    host: str
    started_s: float
    pids: dict[str, int]


DOORS = web.AppKey("doors", list[Door])
LISTENS = web.AppKey("listens", dict[str, str])
ABOUT = web.AppKey("about", About)
routes = web.RouteTableDef()


@web.middleware
async def border(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Who may ask for what, and every error as a problem document."""
    for door in request.app[DOORS]:
        door.heard(request.protocol)
    who = access.identify(request)
    if who is not None:
        request[access.CALLER], request[USER] = who, who.name
    refusal = access.refusal(request, who)
    return refusal if refusal is not None else await answered(request, handler)


# Status.


@routes.get("/api/v1/status")
async def status(request: web.Request) -> web.StreamResponse:
    master, about = request.app[MASTER], request.app[ABOUT]
    hosts = master.farm.hosts.values()
    running = master.farm.running_count()
    pids = dict(about.pids)
    for host in hosts:
        if host.report.host == about.host and host.connected:
            pids.setdefault("coordinator", host.report.pid)
    return json_response(
        {
            "version": VERSION,
            "protocol": PROTOCOL,
            "host": about.host,
            "home": os.fspath(about.home),
            "spool": os.fspath(master.spool.directory),
            "pids": pids,
            "listen": request.app[LISTENS].get("url"),
            "started": views.instant(about.started_s),
            "jobs": {"waiting": len(master.farm.jobs) - running, "running": running},
            "coordinators": [{"host": host.report.host, "connected": host.connected} for host in hosts],
            "warnings": [master.problem] if master.problem else [],
        }
    )


# Jobs.


@routes.post("/api/v1/jobs")
async def submit(request: web.Request) -> web.StreamResponse:
    master = request.app[MASTER]
    wanted = rq.parse_jobs(await body_of(request))
    if not 1 <= len(wanted) <= rq.MAX_JOBS:
        raise rq.InvalidRequest(f"jobs: 1 to {rq.MAX_JOBS} at once, not {len(wanted)}")
    specs: list[JobSpec] = []
    lowered: dict[int, JobSpec] = {}  # by the id of a request: equal ones are one
    for index, item in enumerate(wanted):
        known = lowered.get(id(item))
        if known is not None:
            specs.append(known)
            continue
        where = f"jobs[{index}]"
        spec = rq.job_spec(item, where, request[USER], master.infra_retries)
        if not item.queue:
            rq.refuse_unknown(master.farm, spec, where)
        if spec.source is not None and not master.sources.has(spec.source):
            raise rq.InvalidRequest(f"{where}: the source pack {spec.source[:80]} is not here", hint="PUT it first")
        specs.append(spec)
        lowered[id(item)] = spec
    return json_response({"jobs": await master.submit(tuple(specs))}, 201)


@routes.get(r"/api/v1/jobs/{job:\d+}")
async def job(request: web.Request) -> web.StreamResponse:
    master = request.app[MASTER]
    wait_s = _number(request, "wait_s")
    if wait_s is not None:
        return json_response(await master.wait_finished(_job(request), min(wait_s, 300)))
    return json_response(master.view(_job(request)))


@routes.post(r"/api/v1/jobs/{job:\d+}/cancel")
async def cancel(request: web.Request) -> web.StreamResponse:
    master = request.app[MASTER]
    reason = rq.parse(rq.ReasonRequest, await body_of(request)).reason or f"cancelled by {request[USER]}"
    access.check_owner(request, master.view(_job(request)))
    await master.cancel(_job(request), reason[:500])
    return json_response(master.view(_job(request)), 202)


@routes.post(r"/api/v1/jobs/{job:\d+}/retry")
async def retry(request: web.Request) -> web.StreamResponse:
    master = request.app[MASTER]
    access.check_owner(request, master.view(_job(request)))
    await master.retry(_job(request))
    return json_response(master.view(_job(request)), 201)


@routes.get(r"/api/v1/jobs/{job:\d+}/why")
async def why(request: web.Request) -> web.StreamResponse:
    master = request.app[MASTER]
    live = master.farm.jobs.get(_job(request))
    if live is not None:
        return json_response(views.why_view(master.farm, live))
    view = master.view(_job(request))
    outcome = view["outcome"] or "its result is being recorded"
    sentence = f"it has ended: {outcome}" + (f", {view['reason']}" if view["reason"] else "")
    return json_response(
        {"job": view["job"], "state": "finished", "sentence": sentence, "environments": [], "ending": ending(view)}
    )


@routes.get(r"/api/v1/jobs/{job:\d+}/log")
async def job_log(request: web.Request) -> web.StreamResponse:
    follow = switch(request, "follow")
    reader = await open_log(request.app[MASTER], _job(request), _number(request, "attempt", low=1), wait=follow)
    try:
        return await _send_file(request, reader, {"Biruda-Attempt": str(reader.attempt)}, follow=follow)
    finally:
        reader.close()


async def _send_file(
    request: web.Request, reader: FileReader, headers: Mapping[str, str], *, follow: bool = False
) -> web.StreamResponse:
    offset, limit = _number(request, "offset", 0) or 0, _number(request, "limit")
    response = web.StreamResponse(headers=headers)
    if "Range" in request.headers and not follow:
        size = reader.size
        try:
            wanted = request.http_range
        except ValueError:
            return problem(416, f"Range: {request.headers['Range'][:100]!r} cannot be understood")
        offset, end = wanted.start or 0, size if wanted.stop is None else min(wanted.stop, size)
        if offset < 0:
            offset = max(0, size + offset)
        if offset >= end:
            return problem(416, f"there are {size} bytes")
        limit = end - offset
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {offset}-{end - 1}/{size}"
    response.content_type = "application/octet-stream"
    if not follow:
        size = max(0, reader.size - offset)
        limit = size if limit is None else min(limit, size)
        response.content_length = limit
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    async for piece in reader.pieces(offset, limit, follow=follow):
        async with _taken(request):
            await response.write(piece)
    await response.write_eof()
    return response


@asynccontextmanager
async def _taken(request: web.Request) -> AsyncIterator[None]:
    """Who does not take what is sent within STALL_S is cut off, with ConnectionResetError."""
    try:
        async with asyncio.timeout(STALL_S):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()  # a close would wait until all of it was taken
        raise ConnectionResetError(f"nothing was taken within {STALL_S:g} s") from None


@routes.get(r"/api/v1/jobs/{job:\d+}/artifacts")
async def artifacts(request: web.Request) -> web.StreamResponse:
    return json_response({"artifacts": request.app[MASTER].view(_job(request))["artifacts"]})


@routes.get(r"/api/v1/jobs/{job:\d+}/artifacts/{path:.+}")
async def artifact(request: web.Request) -> web.StreamResponse:
    headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    # No FileResponse: it answers a request for `x` with an `x.gz` that lies beside it.
    reader = await open_artifact(request.app[MASTER], _job(request), request.match_info["path"])
    try:
        return await _send_file(request, reader, headers)
    finally:
        reader.close()


PREVIEW_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"
"""A page that a job made may look like itself, and do nothing: no script, no form, nothing from anywhere."""


@routes.get(r"/api/v1/jobs/{job:\d+}/previews/{path:.+}")
async def artifact_preview(request: web.Request) -> web.StreamResponse:
    """The first part of an artifact as what it is, for a page to show: text, an image, or a page without any powers."""
    path = request.match_info["path"]
    reader = await open_artifact(request.app[MASTER], _job(request), path)
    try:
        shown = preview(path, reader)
        body = await asyncio.to_thread(reader.head, shown.bytes)
    finally:
        reader.close()
    headers = {
        "Content-Type": shown.content_type + ("; charset=utf-8" if shown.content_type.startswith("text/") else ""),
        "Content-Disposition": "inline",
        "Content-Security-Policy": PREVIEW_POLICY,
        "X-Frame-Options": "SAMEORIGIN",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(body=body, headers=headers)


# Workers, environments, coordinators.


@routes.get("/api/v1/workers")
async def workers(request: web.Request) -> web.StreamResponse:
    return json_response({"workers": views.worker_views(request.app[MASTER].farm)})


@routes.post("/api/v1/workers/{name}/start")
async def start(request: web.Request) -> web.StreamResponse:
    master = request.app[MASTER]
    wanted = rq.parse(rq.WorkerSelection, await body_of(request))
    specs = named.start_specs(master.farm, request.match_info["name"], wanted, request[USER], master.infra_retries)
    return json_response({"jobs": await master.submit(tuple(specs))}, 201)


@routes.post("/api/v1/workers/{name}/stop")
async def stop(request: web.Request) -> web.StreamResponse:
    master, name = request.app[MASTER], request.match_info["name"]
    numbers = named.running_jobs(master.farm, name, rq.parse(rq.WorkerSelection, await body_of(request)))
    for number in numbers:
        access.check_owner(request, master.view(number))
    for number in numbers:
        if number in master.farm.jobs:  # it may have ended while another one was cancelled
            await master.cancel(number, f"{name} stopped by {request[USER]}")
    return json_response({"jobs": numbers}, 202)


@routes.get("/api/v1/environments")
async def environments(request: web.Request) -> web.StreamResponse:
    offers = request.app[MASTER].farm.offers()
    return json_response({"environments": [views.environment_view(host, offer) for host, offer in offers]})


def _environment(request: web.Request, host: str | None) -> tuple[Host, EnvironmentReport]:
    name = request.match_info["name"]
    offers = list(request.app[MASTER].farm.offers())
    found = [(owner, offer) for owner, offer in offers if offer.name == name and host in (None, owner.report.host)]
    if not found:
        names = ", ".join(sorted({offer.name for _, offer in offers}))
        where = f" on {host}" if host else ""
        raise NotFound(f"there is no environment {name!r}{where}", hint=f"there are {names or 'none'}")
    if len(found) > 1:
        candidates = [{"name": name, "host": owner.report.host} for owner, _ in found]
        raise rq.Ambiguous(
            f"{len(found)} hosts have an environment {name!r}", hint="say which host", candidates=candidates
        )
    return found[0]


@routes.get("/api/v1/environments/{name}")
async def environment(request: web.Request) -> web.StreamResponse:
    return json_response(views.environment_view(*_environment(request, request.query.get("host"))))


@routes.post("/api/v1/environments/{name}/probe")
@access.needs(access.Role.ADMIN)
async def probe(request: web.Request) -> web.StreamResponse:
    wanted = rq.parse(rq.HostRequest, await body_of(request))
    host, offer = _environment(request, wanted.host)
    await request.app[MASTER].hosts.command(host.report.host, "probe", offer.name)
    return json_response(views.environment_view(*_environment(request, host.report.host)))


@routes.delete("/api/v1/environments/{name}")
@access.needs(access.Role.ADMIN)
async def remove(request: web.Request) -> web.StreamResponse:
    host, offer = _environment(request, request.query.get("host"))
    await request.app[MASTER].hosts.command(host.report.host, "remove", offer.name)
    return json_response({"removed": offer.name, "host": host.report.host})


@routes.get("/api/v1/coordinators")
async def coordinators(request: web.Request) -> web.StreamResponse:
    return json_response(
        {"coordinators": [views.coordinator_view(host) for host in request.app[MASTER].farm.hosts.values()]}
    )


@routes.post("/api/v1/coordinators/{host}/reload")
@access.needs(access.Role.ADMIN)
async def reload(request: web.Request) -> web.StreamResponse:
    await request.app[MASTER].hosts.command(request.match_info["host"], "reload")
    return json_response({})


@routes.get("/api/v1/coordinators/{host}/samples")
async def samples(request: web.Request) -> web.StreamResponse:
    seconds = _number(request, "seconds", 120, low=1) or 120
    taken = await request.app[MASTER].hosts.samples(request.match_info["host"])
    return json_response({"samples": encode(taken[-seconds:])})


# Source packs.


@routes.post("/api/v1/sources/missing")
async def missing(request: web.Request) -> web.StreamResponse:
    return json_response(await request.app[MASTER].sources.missing(await body_of(request)))


@routes.put("/api/v1/sources/{digest:(?!missing$)[^/]+}")
async def put_source(request: web.Request) -> web.StreamResponse:
    digest = request.match_info["digest"]
    await request.app[MASTER].sources.receive(digest, request.content.iter_any())
    return json_response({"digest": digest}, 201)


# Streams.


@routes.get("/api/v1/events")
async def events(request: web.Request) -> web.StreamResponse:
    """Every event after the one named, then each as it comes; with watch, the farm and what changes of it."""
    if "watch" in request.query:
        return await api_farm.watch(request, request.query["watch"])
    master = request.app[MASTER]
    after = _number(request, "after", master.next_event - 1) or 0
    websocket = web.WebSocketResponse(heartbeat=30, max_msg_size=4096)
    await websocket.prepare(request)
    queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=SUBSCRIBER_EVENTS)
    master.subscribers.add(queue)
    try:
        while past := master.store.events_after(after, 500):
            for event in past:
                async with _taken(request):
                    await websocket.send_str(orjson.dumps(event).decode())
            after = past[-1]["id"]
        async with asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(_send_events(request, websocket, queue, after), name="event sender")
            async for _ in websocket:
                pass
            sender.cancel()
    except* ConnectionResetError:
        pass
    finally:
        master.subscribers.discard(queue)
    return websocket


async def _send_events(
    request: web.Request, websocket: web.WebSocketResponse, queue: asyncio.Queue[dict[str, Any]], after: int
) -> None:
    while True:
        event = await queue.get()
        if event["id"] is None or event["id"] > after:
            async with _taken(request):
                await websocket.send_str(orjson.dumps(event).decode())
        if queue not in request.app[MASTER].subscribers and queue.empty():
            await websocket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow: resume after the last id")
            return


@routes.get("/api/v1/link")
@access.needs(access.Role.ADMIN)
async def link(request: web.Request) -> web.StreamResponse:
    """A coordinator's connection: the frames of docs/protocol.md. From other hosts over TLS: linkserver.py."""
    websocket = web.WebSocketResponse(max_msg_size=8 << 20, compress=False, autoping=True)
    await websocket.prepare(request)
    peer = request.remote or "a local coordinator"
    if not api_joining.may_link_without_tls(request):
        reason = "without TLS the master takes links from its own host only"
        log.warning("refused %s: %s", peer, reason)
        await refuse(WebSocketTransport(websocket, peer), reason, "`biruda join`, or [master] plain_links = true")
        return websocket
    try:
        await request.app[MASTER].hosts.serve(WebSocketTransport(websocket, peer))
    except* (PeerError, ConnectionError, TimeoutError) as group:
        for error in group.exceptions:
            log.warning("%s: %s", peer, error)
    return websocket


@routes.get("/api/v1/openapi.json")
async def openapi_document(request: web.Request) -> web.StreamResponse:
    return json_response(openapi.document())


@routes.get("/api/v1/schemas/job.json")
async def job_schema(request: web.Request) -> web.StreamResponse:
    return json_response(openapi.job_schema())


def all_routes() -> list[web.AbstractRouteDef]:
    """Every route of the API."""
    others = (api_access, api_farm, api_importing, api_joining, api_logs, api_jobs, api_statistics)
    return [*routes, *(route for module in others for route in module.routes)]


async def _logs(app: web.Application) -> AsyncIterator[None]:
    async with app[LOGS].running():
        yield


def application(
    master: Master, about: About, token: str, anonymous: access.Role | None = None, *, git_files: bool = False
) -> web.Application:
    """The API of one master. token: what makes an administrator; anonymous: what may be done without any."""
    app = web.Application(middlewares=[border], client_max_size=MAX_BODY_BYTES)
    app[MASTER], app[ABOUT], app[LISTENS], app[DOORS] = master, about, {}, []
    app[api_access.SESSIONS] = sessions = Sessions(master.store, token)
    app[api_importing.IMPORTING] = Importing(master.sources, about.home / "importing", file_urls=git_files)
    app[api_farm.FEED] = Feed(master)
    app.cleanup_ctx.append(api_farm.feeding)
    app[api_statistics.STATISTICS] = Statistics(master.store)
    app[access.ACCESS] = access.Access(sessions, anonymous)
    app[LOGS], app[JOBS] = Logs(master), JobList(master.store)
    app.cleanup_ctx.append(_logs)
    app.add_routes(all_routes())
    return app


@asynccontextmanager
async def serving(app: web.Application, unix_path: Path, listen: tuple[str, int] | None) -> AsyncIterator[int]:
    """The API on its Unix socket and, where asked for, over TCP; gives the TCP port, 0 for none."""
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=connections.log,
        shutdown_timeout=2.0,
        handler_cancellation=True,
        lingering_time=LINGERING_S,
    )
    await runner.setup()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        stack.callback(unix_path.unlink, missing_ok=True)
        assert runner.server is not None
        app[DOORS].append(await stack.enter_async_context(open_door(runner.server, listen_locally(unix_path))))
        port = 0
        if listen is not None:
            host = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
            listeners = listen_at(*listen, "listen")
            for listener in listeners:
                app[DOORS].append(await stack.enter_async_context(open_door(runner.server, listener)))
            port = listeners[0].getsockname()[1]
            app[LISTENS]["url"] = f"http://{host or '127.0.0.1'}:{port}"
        yield port
