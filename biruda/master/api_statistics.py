"""The API's routes about the past: how the farm did."""

import asyncio
from typing import Any

from aiohttp import web

from biruda.master import requests as rq
from biruda.master.asking import MASTER, number
from biruda.master.responses import json_response
from biruda.master.statistics import KEYS, Statistics

STATISTICS = web.AppKey("statistics", Statistics)
MOST_HOURS = 24 * 366

routes = web.RouteTableDef()


async def statistics_view(request: web.Request) -> dict[str, Any]:
    """What the query asks for: hours, by."""
    hours, by = number(request, "hours", 24, low=1) or 24, request.query.get("by", "worker")
    if by not in KEYS:
        raise rq.InvalidRequest(f"by = {by[:40]!r}: there are {', '.join(KEYS)}")
    slots = {host.report.host: host.report.slots for host in request.app[MASTER].farm.hosts.values()}
    return await asyncio.to_thread(request.app[STATISTICS].of, min(hours, MOST_HOURS), by, slots)


@routes.get("/api/v1/statistics")
async def statistics(request: web.Request) -> web.StreamResponse:
    return json_response(await statistics_view(request))
