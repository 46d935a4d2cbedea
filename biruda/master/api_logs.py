"""The API's routes about a log's lines: any of them at once, searches through all, and where it tells of errors."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from aiohttp import web

from biruda.errors import NotFound
from biruda.master import requests as rq
from biruda.master.asking import LOGS, MASTER, job_number, number, switch
from biruda.master.ending import blamed_step
from biruda.master.joblog.index import LineIndex
from biruda.master.joblog.lines import MAX_LINES, Line
from biruda.master.joblog.search import search
from biruda.master.joblog.searching import Query, compiled
from biruda.master.joblog.service import Logs, OpenLog
from biruda.master.responses import json_response
from biruda.master.views import View

routes = web.RouteTableDef()


def _state(opened: OpenLog, index: LineIndex) -> dict[str, Any]:
    """What is known of a log as a whole. lines is null until all of it was looked at."""
    size = opened.size
    return {
        "attempt": opened.attempt,
        "bytes": size,
        "indexed_bytes": index.bytes,
        "lines": index.lines if index.bytes >= size else None,
        "growing": opened.is_growing,
    }


@routes.get(r"/api/v1/jobs/{job:\d+}/log/lines")
async def lines(request: web.Request) -> web.StreamResponse:
    """Lines from `first`, counted from 1, or the `last` ones."""
    count = min(number(request, "count", 200, low=1) or 200, MAX_LINES)
    first, last = number(request, "first", 1, low=1) or 1, number(request, "last", low=1)
    async with request.app[LOGS].open(job_number(request), number(request, "attempt", low=1)) as opened:
        return json_response(await lines_view(opened, first, count, last))


async def lines_view(opened: OpenLog, first: int, count: int, last: int | None = None) -> dict[str, Any]:
    """Lines of a log, and how much of it is known."""
    if last is not None:
        index = await opened.indexed(lambda _: False)
        count = min(last, MAX_LINES)
        first = max(1, index.lines - count + 1)
    else:
        index = await opened.indexed(lambda index: index.ends >= first + count - 1)
    state = _state(opened, index)
    is_known = last is None or state["lines"] is not None
    taken = await opened.lines(index, first - 1, count) if is_known else []
    times = await opened.times()
    shown = [line_view(line, times.at(line.offset)) for line in taken]
    end = taken[-1].offset + taken[-1].size_bytes if taken else None
    return {**state, "first": first, "end": end, "list": shown}


def line_view(line: Line, elapsed_ms: int | None) -> dict[str, Any]:
    """A line as pages and programs get it: text that may hold any character, cut where it is very long."""
    text = line.text.decode("utf-8", "replace")
    view: dict[str, Any] = {
        "offset": line.offset,
        "text": text.rstrip("\N{REPLACEMENT CHARACTER}") if line.is_cut else text,
    }
    if line.is_cut:
        view["bytes"] = line.size_bytes
    if elapsed_ms is not None:
        view["ms"] = elapsed_ms
    return view


def attempt_view(request: web.Request) -> View:
    """The job as it is, or as it was after the attempt that the query names. Raises UserError when there is none."""
    master, attempt = request.app[MASTER], number(request, "attempt", low=1)
    view = master.view(job_number(request))
    if attempt in (None, view["attempt"]):
        return view
    record = master.store.attempt(view["job"], attempt)
    if record is None:
        raise NotFound(f"job {view['job']} has no attempt {attempt}", hint=f"biruda show {view['job']} lists them")
    return record


@routes.get(r"/api/v1/jobs/{job:\d+}/log/index")
async def index(request: web.Request) -> web.StreamResponse:
    """How many lines there are, and in which line each step begins."""
    view = attempt_view(request)
    async with request.app[LOGS].open(view["job"], number(request, "attempt", low=1)) as opened:
        return json_response(await index_view(opened, view["steps"]))


async def index_view(opened: OpenLog, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """A log as a whole with the lines of the steps that have ended."""
    found = await opened.indexed(lambda _: False)
    begun = []
    for step in steps:
        offset = step["log_start"]
        known = offset <= found.bytes
        begun.append(
            {"name": step["name"], "offset": offset, "line": await opened.line_at(found, offset) + 1 if known else None}
        )
    return {**_state(opened, found), "steps": begun}


@routes.get(r"/api/v1/jobs/{job:\d+}/log/errors")
async def errors(request: web.Request) -> web.StreamResponse:
    """Where the log of a failed job tells what went wrong: the lines of the failed step that look like errors."""
    view = attempt_view(request)
    async with request.app[LOGS].open(view["job"], number(request, "attempt", low=1)) as opened:
        return json_response(await errors_view(opened, view))


async def errors_view(opened: OpenLog, view: dict[str, Any]) -> dict[str, Any]:
    """The first line to look at, why, and the others like it; line is null while it is not known."""
    failed = blamed_step(view)
    steps = view["steps"]
    if failed is None:
        return {
            **_state(opened, await opened.indexed(lambda _: True)),
            "step": None,
            "line": None,
            "errors": [],
            "complete": True,
        }
    start = steps[failed]["log_start"]
    ends = [step["log_start"] for step in steps[failed + 1 :] if step["log_start"] > start]
    end = min([*ends, opened.size])
    offsets, complete = await opened.error_offsets(start, end)
    found = await opened.indexed(lambda index: index.bytes >= (offsets[-1] + 1 if offsets else end))
    known = [await opened.line_at(found, offset) + 1 for offset in offsets if offset < found.bytes]
    line: int | None = known[0] if known else None
    if not offsets and found.bytes >= end:  # it says nothing that looks like an error: its last line is the nearest
        line = await opened.line_at(found, max(start, end - 1)) + 1
    return {
        **_state(opened, found),
        "step": failed,
        "name": steps[failed]["name"],
        "line": line,
        "errors": known,
        "complete": complete and len(known) == len(offsets),
    }


@routes.get(r"/api/v1/jobs/{job:\d+}/log/search")
async def search_log(request: web.Request) -> web.StreamResponse:
    """Every line that has what is looked for: one JSON object a line, as they are found; the last one has the map."""
    query = Query(text=request.query.get("q", ""), regex=switch(request, "regex"))
    try:
        compiled(query)
    except ValueError:
        raise rq.InvalidRequest("q: cannot be looked for") from None
    logs = request.app[LOGS]
    async with logs.open(job_number(request), number(request, "attempt", low=1)) as opened:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        await response.prepare(request)
        async with aclosing(_found(logs, opened, query)) as found:
            async for said in found:
                await response.write(orjson.dumps(said) + b"\n")
        await response.write_eof()
    return response


async def _found(logs: Logs, opened: OpenLog, query: Query) -> AsyncGenerator[dict[str, Any], None]:
    index = await opened.indexed(lambda _: False)
    size = opened.size
    yield {"bytes": size, "lines": index.lines if index.bytes >= size else None}
    async with logs.searches, aclosing(search(opened.reader.fd, size, index.lines, query, opened.index_path)) as found:
        async for said in found:
            yield said
