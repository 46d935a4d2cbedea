"""The API's routes about many jobs at once, and about one job beside others: the list, bulk acts, comparisons."""

import asyncio
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from aiohttp import web

from biruda.convert import encode
from biruda.errors import UserError
from biruda.master import access, bulk, comparing, views
from biruda.master import requests as rq
from biruda.master.asking import JOBS, LOGS, MASTER, job_number, number, switch
from biruda.master.joblist import Filter, parsed_filter
from biruda.master.responses import USER, body_of, json_response
from biruda.master.service import Master

routes = web.RouteTableDef()

MAX_LISTED = 1000
MAX_AT_ONCE = 10_000


@routes.get("/api/v1/jobs")
async def jobs(request: web.Request) -> web.StreamResponse:
    """Jobs of every state, newest first. brief=1: what a list shows; count=1: how many fit in all."""
    listed = request.app[JOBS]
    wanted = parsed_filter(request.query)
    limit = min(number(request, "limit", 100, low=1) or 100, MAX_LISTED)
    numbers = await listed.numbers(
        wanted,
        before=number(request, "before"),
        after=number(request, "after"),
        skip=number(request, "skip") or 0,
        limit=limit,
    )
    answer: dict[str, Any] = {}
    if switch(request, "brief"):
        answer["jobs"] = await listed.rows(numbers)
    else:
        answer["jobs"] = [request.app[MASTER].view(item) for item in numbers]
    answer["next"] = numbers[-1] if len(numbers) == limit else None
    if switch(request, "count"):
        answer["count"] = await listed.count(wanted)
    return json_response(answer)


async def _selected(request: web.Request, state: str) -> tuple[list[int], rq.Selection]:
    """The jobs that the body means, those a filter finds only as far as they are in a state."""
    wanted = rq.parse(rq.Selection, await body_of(request))
    if bool(wanted.jobs) == (wanted.filter is not None):
        raise rq.InvalidRequest("jobs or filter: one of the two says which jobs are meant")
    if wanted.filter is None:
        numbers = sorted(set(wanted.jobs))
    else:
        known = {item.name for item in fields(Filter)} | {"env"}
        for name in wanted.filter:
            if name not in known:
                raise rq.InvalidRequest(f"filter: unknown {name[:40]!r}", hint=f"there are {', '.join(sorted(known))}")
        chosen = parsed_filter(wanted.filter)
        numbers = await request.app[JOBS].numbers(replace(chosen, state=chosen.state or state), limit=MAX_AT_ONCE + 1)
    if len(numbers) > MAX_AT_ONCE:
        raise rq.InvalidRequest(f"more than {MAX_AT_ONCE} jobs at once", hint="narrow the filter, and do it again")
    return numbers, wanted


def _owner_check(request: web.Request) -> Callable[[int], None]:
    master = request.app[MASTER]
    if request[access.CALLER].role is access.Role.ADMIN:  # who may all: thousands of jobs need not be looked at
        return lambda job: None
    return lambda job: access.check_owner(request, master.view(job))


@routes.post("/api/v1/jobs/cancel")
async def cancel(request: web.Request) -> web.StreamResponse:
    """End many jobs. What has ended already, or is somebody else's, is named with the reason."""
    numbers, wanted = await _selected(request, "unfinished")
    reason = wanted.reason[:500] or f"cancelled by {request[USER]}"
    return json_response(await bulk.cancel(request.app[MASTER], numbers, _owner_check(request), reason), 202)


@routes.post("/api/v1/jobs/retry")
async def retry(request: web.Request) -> web.StreamResponse:
    """Run many finished jobs again, each as its next attempt."""
    numbers, _ = await _selected(request, "finished")
    return json_response(await bulk.retry(request.app[MASTER], numbers, _owner_check(request)), 201)


@routes.post(r"/api/v1/jobs/{job:\d+}/again")
async def again(request: web.Request) -> web.StreamResponse:
    """Submit the same as a new job, perhaps to another place."""
    master, job = request.app[MASTER], job_number(request)
    wanted = rq.parse(rq.AgainRequest, await body_of(request))
    view = master.view(job)
    known = master.store.job_spec(job)
    if known is None:
        raise UserError(f"job {job} is being recorded", hint="ask again in a moment")
    spec = known[0]
    requirements = {key: value for key, value in {**spec.requirements, **wanted.requirements}.items() if value}
    rq.check_requirements(requirements, "again")
    spec = replace(spec, requirements=requirements, source=view["source"] or spec.source, user=request[USER])
    if spec.source is not None and not master.sources.has(spec.source):
        raise UserError(f"the source pack of job {job} is not here any more", hint="biruda run sends it anew")
    rq.refuse_unknown(master.farm, spec, "again")
    return json_response({"jobs": await master.submit((spec,))}, 201)


@routes.get(r"/api/v1/jobs/{job:\d+}/compare")
async def compare(request: web.Request) -> web.StreamResponse:
    """What is different from the last run that passed: of the same name in the same environment, or from `with`."""
    master, job = request.app[MASTER], job_number(request)
    view = master.view(job)
    other = await passed_before(request, view)
    if other is None:
        return json_response({"job": job, "with": None})
    before = master.view(other)
    compared = comparing.compare(before, view)
    async with request.app[LOGS].open(job) as ours, request.app[LOGS].open(other) as theirs:
        spans = comparing.spans(before, view)
        compared["log"] = await asyncio.to_thread(comparing.new_lines, theirs.reader.fd, ours.reader.fd, *spans)
        index = await ours.indexed(lambda _: False)
        for line in compared["log"]["new"]:
            known = line["offset"] < index.bytes
            line["line"] = await ours.line_at(index, line["offset"]) + 1 if known else None
    return json_response({"job": job, "with": other, **compared})


async def passed_before(request: web.Request, view: views.View) -> int | None:
    """The job to compare with."""
    asked = number(request, "with", low=1)
    if asked is not None:
        return asked
    if not view["environment"] or not (view["name"] or view["worker"]):
        return None
    found = await request.app[JOBS].last_passed(view["job"], view["name"], view["environment"], view["worker"] or "")
    return None if found is None else found[0]


@routes.get(r"/api/v1/jobs/{job:\d+}/samples")
async def samples(request: web.Request) -> web.StreamResponse:
    """What the job's host did while the job ran, as far as somebody looked at it then: one sample a second."""
    master = request.app[MASTER]
    view = master.view(job_number(request))
    return json_response({"host": view["host"], "samples": await host_samples(master, view)})


async def host_samples(master: Master, view: views.View) -> list[dict[str, Any]]:
    """Empty where the job has no place yet, or its host no contact."""
    if view["host"] is None or view["started"] is None:
        return []
    try:
        taken = await master.hosts.samples(view["host"])
    except UserError:
        return []
    return [
        encode(sample)
        for sample in taken
        if (instant := views.instant(sample.at_s)) is not None
        and instant >= view["started"]
        and (view["finished"] is None or instant <= view["finished"])
    ]
