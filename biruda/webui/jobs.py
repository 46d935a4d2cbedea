"""The list of jobs: a page of it as a table, which scripts make endless and live."""

from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from biruda.master.asking import JOBS, number
from biruda.master.joblist import EXACT, parsed_filter
from biruda.model import Outcome
from biruda.webui.routes import render

routes = web.RouteTableDef()

PAGE_ROWS: Final = 100
FILTERS: Final = (
    "state",
    "outcome",
    "name",
    "env",
    *(name for name in EXACT if name not in ("outcome", "environment")),
)
TIMES: Final = ("since", "until")


@routes.get("/jobs")
async def jobs(request: web.Request) -> web.StreamResponse:
    """Past, running and waiting jobs; the filter is the query."""
    listed = request.app[JOBS]
    wanted = parsed_filter(request.query)
    before = number(request, "before")
    numbers = await listed.numbers(wanted, before=before, limit=PAGE_ROWS)
    filters = {name: request.query[name] for name in (*FILTERS, *TIMES, "jobs") if request.query.get(name)}
    total = await listed.count(wanted)
    older = urlencode({**filters, "before": numbers[-1]}) if len(numbers) == PAGE_ROWS else ""
    return render(
        request,
        "jobs.html",
        jobs=await listed.rows(numbers),
        count=total,
        filters=filters,
        is_filtered=not replace(wanted, jobs=None).is_empty or wanted.jobs is not None,
        outcomes=[outcome.value for outcome in Outcome],
        older=older,
        newest=urlencode(filters) if before is not None else None,
    )
