"""The API's routes about the whole farm at once: a look, and a stream of what changes."""

import asyncio
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from biruda.master import requests as rq
from biruda.master.feed import Feed, Watcher
from biruda.master.responses import json_response

FEED = web.AppKey("feed", Feed)
WATCHED = {"farm": None, "head": frozenset({"head"})}
"""What `watch=` may name, and the sections of each."""

routes = web.RouteTableDef()


async def farm_view(request: web.Request) -> dict[str, Any]:
    """All sections."""
    return await request.app[FEED].snapshot()


@routes.get("/api/v1/farm")
async def farm(request: web.Request) -> web.StreamResponse:
    return json_response(await farm_view(request))


async def watch(request: web.Request, name: str) -> web.StreamResponse:
    """The sections that a name stands for, and each that changes; of `farm` the samples of its hosts too."""
    if name not in WATCHED:
        raise rq.InvalidRequest(f"watch = {name[:40]!r}: there are {', '.join(WATCHED)}")
    websocket = web.WebSocketResponse(heartbeat=30, max_msg_size=4096, compress=False)
    try:
        await websocket.prepare(request)
        async with request.app[FEED].watching(WATCHED[name]) as watcher, asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(_send(websocket, watcher), name="farm sender")
            async for _ in websocket:
                pass
            sender.cancel()
    except* (ConnectionResetError, BrokenPipeError):
        pass
    return websocket


async def _send(websocket: web.WebSocketResponse, watcher: Watcher) -> None:
    while True:
        await websocket.send_frame(await watcher.messages.get(), WSMsgType.TEXT)
        if watcher.is_behind and watcher.messages.empty():
            await websocket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow: come back for all of it")
            return


async def feeding(app: web.Application) -> Any:
    """The feed's life is the application's."""
    async with app[FEED].running():
        yield
