"""One job: how it ended and why, its log, and what it left."""

import shlex
from typing import Any, Final

from aiohttp import web

from biruda.errors import UserError
from biruda.master import views
from biruda.master.api_logs import attempt_view, errors_view, index_view, lines_view
from biruda.master.asking import LOGS, MASTER, job_number, number
from biruda.master.ending import blamed_step, ending, how
from biruda.webui.routes import render

routes = web.RouteTableDef()

SHOWN_LINES: Final = 200
CONTEXT_LINES: Final = 8
"""Shown above the line that the log opens at."""


@routes.get(r"/jobs/{job:\d+}")
async def job(request: web.Request) -> web.StreamResponse:
    """All of a job; the log opens at `line`, else at the first error of the step that failed."""
    master, number_ = request.app[MASTER], job_number(request)
    view = attempt_view(request)
    live = master.farm.jobs.get(number_)
    spec = live.spec if live is not None else (master.store.job_spec(number_) or (None,))[0]
    return render(
        request,
        "job.html",
        job=view,
        ended=ending(view),
        blamed=blamed_step(view),
        how=how,
        why=views.why_view(master.farm, live) if live is not None and view["state"] == "waiting" else None,
        log=await _log(request, view),
        recipe=_recipe(spec),
        join=shlex.join,
    )


def _recipe(spec: Any) -> list[dict[str, Any]]:
    """The commands that were asked for, those that never ran too."""
    if spec is None:
        return []
    return [{"name": step.name, "argv": list(step.argv), "script": step.script} for step in spec.recipe.steps]


async def _log(request: web.Request, view: views.View) -> dict[str, Any] | None:
    """The first lines to see; None where there is no log yet."""
    line, attempt = number(request, "line", low=1), number(request, "attempt", low=1)
    try:
        async with request.app[LOGS].open(view["job"], attempt) as opened:
            if line is None and view["state"] != "finished":
                shown = await lines_view(opened, 1, SHOWN_LINES, last=SHOWN_LINES)
                opens_at = None
            else:
                opens_at = line or (await errors_view(opened, view))["line"]
                shown = await lines_view(opened, max(1, (opens_at or 1) - CONTEXT_LINES), SHOWN_LINES)
            steps = (await index_view(opened, view["steps"]))["steps"]
    except UserError:
        return None
    return {**shown, "opens_at": opens_at, "steps": steps}
