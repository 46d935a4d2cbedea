"""What the API's routes share: the master they ask, and the numbers in a path or a query."""

from aiohttp import web

from biruda.errors import NotFound
from biruda.master import requests as rq
from biruda.master.joblist import JobList
from biruda.master.joblog.service import Logs
from biruda.master.service import Master

MASTER = web.AppKey("master", Master)
LOGS = web.AppKey("logs", Logs)
JOBS = web.AppKey("jobs", JobList)


def number(request: web.Request, name: str, default: int | None = None, *, low: int = 0) -> int | None:
    """A number of the query. Raises InvalidRequest for what is none."""
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < low:
        raise rq.InvalidRequest(f"{name} = {text!r}: must be a whole number of at least {low}")
    return int(text)


def switch(request: web.Request, name: str) -> bool:
    """Yes or no of the query; no where it is not there. Raises InvalidRequest."""
    text = request.query.get(name, "0")
    if text not in ("0", "1", "false", "true"):
        raise rq.InvalidRequest(f"{name} = {text!r}: there are 1 and true, 0 and false")
    return text in ("1", "true")


def job_number(request: web.Request) -> int:
    """The job that the path names."""
    text = request.match_info["job"]
    if len(text) > 18:
        raise NotFound(f"there is no job {text[:40]}", hint="biruda jobs lists them")
    return int(text)
