"""A small working master: the part of docs/api.md that the command line uses, on a real socket."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

Json = dict[str, Any]


def job_json(number: int, **more: Any) -> Json:
    """A job as the API gives it."""
    empty: Json = {
        "job": number,
        "attempt": None,
        "state": "waiting",
        "name": "check",
        "user": "root",
        "priority": 0,
        "requirements": {},
        "worker": None,
        "source": None,
        "submitted": "2025-01-01T00:00:00.000000Z",
        "started": None,
        "finished": None,
        "arch": None,
        "platform": None,
        "host": None,
        "kind": None,
        "environment": None,
        "outcome": None,
        "exit_status": None,
        "reason": "",
        "steps": [],
        "log": None,
        "artifacts": [],
        "spool": None,
        "facts": None,
        "attempts": [],
        "retries": 2,
        "cancelling": False,
    }
    return {**empty, **more}


PLACED: Json = {
    "attempt": 1,
    "arch": "amd64",
    "platform": "debian12",
    "host": "alder",
    "kind": "chroot",
    "environment": "bookworm",
    "started": "2025-01-01T00:00:01.000000Z",
}
RUNNING: Json = {**PLACED, "state": "running"}
PASSED: Json = {
    **PLACED,
    "state": "finished",
    "finished": "2025-01-01T00:00:42.200000Z",
    "outcome": "passed",
    "exit_status": 0,
}


def problem(status: int, detail: str, **more: Any) -> web.Response:
    """An RFC 9457 document."""
    body = {"type": "about:blank", "title": "Error", "status": status, "detail": detail, **more}
    return web.json_response(body, status=status, content_type="application/problem+json")


class FakeMaster:
    """Serves on HOME/master.sock in a thread of its own between start() and stop(); may be started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.jobs: dict[int, Json] = {}
        self.logs: dict[tuple[int, int], bytes] = {}
        self.ended: set[tuple[int, int]] = set()  # logs that are whole
        self.lists: dict[str, list[Json]] = {"workers": [], "environments": [], "coordinators": []}
        self.submitted: list[Json] = []
        self.requests: list[str] = []
        self.on_submit: Callable[[int], None] = lambda number: None
        self.on_cancel: Callable[[int], None] = lambda number: None
        self.refusals: dict[str, tuple[int, str, Json]] = {}  # "METHOD path" -> status, detail, more
        self.files: dict[str, bytes] = {}  # artifacts by path
        self.why = "every slot of alder is held by job 1"
        self.pids: Json = {"master": 1, "coordinator": 1}
        self.cut_at: int | None = None  # a log connection breaks at this offset, once
        self.packs: set[str] = set()
        self.uploads: list[bytes] = []

    def start(self) -> None:
        """Serve; requests are answered on return."""
        self.home.mkdir(exist_ok=True)
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        """Stop as a killed process does: connections break off."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def change(self, act: Callable[[], object]) -> None:
        """Do something to our state where nothing else happens, and wake who waits."""
        done = threading.Event()

        def run() -> None:
            act()
            self._wake()
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(10)

    def set_job(self, number: int, **fields: Any) -> None:
        """Make or change a job."""
        self.change(lambda: self.jobs.__setitem__(number, {**self.jobs.get(number, job_json(number)), **fields}))

    def add_log(self, number: int, data: bytes, *, attempt: int = 1, end: bool = False) -> None:
        """Let a log grow."""

        def act() -> None:
            self.logs[number, attempt] = self.logs.get((number, attempt), b"") + data
            if end:
                self.ended.add((number, attempt))

        self.change(act)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopped, self._changed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        app = web.Application(middlewares=[self._border])
        app.add_routes(
            [
                web.get("/api/v1/status", self._status),
                web.post("/api/v1/jobs", self._submit),
                web.get("/api/v1/jobs", self._list_jobs),
                web.get("/api/v1/jobs/{job}", self._job),
                web.post("/api/v1/jobs/{job}/cancel", self._cancel),
                web.post("/api/v1/jobs/{job}/retry", self._retry),
                web.get("/api/v1/jobs/{job}/why", self._why),
                web.get("/api/v1/jobs/{job}/log", self._log),
                web.get("/api/v1/jobs/{job}/artifacts", self._artifacts),
                web.get("/api/v1/jobs/{job}/artifacts/{path:.+}", self._artifact),
                web.post("/api/v1/workers/{name}/{verb}", self._start),
                web.get("/api/v1/{kind:workers|environments|coordinators}", self._listing),
                web.get("/api/v1/environments/{name}", self._environment),
                web.post("/api/v1/environments/{name}/probe", self._environment),
                web.post("/api/v1/sources/missing", self._missing),
                web.put("/api/v1/sources/{digest}", self._put),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await runner.setup()
        (self.home / "master.sock").unlink(missing_ok=True)
        site = web.UnixSite(runner, str(self.home / "master.sock"))
        await site.start()
        ready.set()
        await self._stopped.wait()
        assert isinstance(site._server, asyncio.Server)
        for listener in site._server.sockets:  # asyncio leaks whom it accepts while it closes
            self._loop.remove_reader(listener.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        assert runner.server is not None
        for connection in runner.server.connections:  # as the kernel does for one that was killed
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    @web.middleware
    async def _border(self, request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path.removeprefix("/api/v1/")
        self.requests.append(f"{request.method} {path}")
        refusal = self.refusals.get(f"{request.method} {path}")
        if refusal:
            return problem(refusal[0], refusal[1], **refusal[2])
        try:
            response: web.StreamResponse = await handler(request)
        except KeyError as error:
            return problem(404, f"there is no job {error}", hint="biruda jobs lists them")
        return response

    def _find(self, request: web.Request) -> Json:
        number = int(request.match_info["job"])
        if number not in self.jobs:
            raise KeyError(number)
        return self.jobs[number]

    async def _status(self, request: web.Request) -> web.Response:
        running = sum(job["state"] == "running" for job in self.jobs.values())
        waiting = sum(job["state"] == "waiting" for job in self.jobs.values())
        return web.json_response(
            {
                "version": "0.1.0",
                "protocol": 1,
                "host": "alder",
                "home": str(self.home),
                "spool": str(self.home / "spool"),
                "pids": self.pids,
                "listen": None,
                "started": "2025-01-01T00:00:00Z",
                "jobs": {"waiting": waiting, "running": running},
                "coordinators": [{"host": "alder", "connected": True}],
                "warnings": [],
                "later": {"kept": True},
            }
        )

    async def _submit(self, request: web.Request) -> web.Response:
        numbers = []
        for wanted in (await request.json())["jobs"]:
            self.submitted.append(wanted)
            number = max(self.jobs, default=0) + 1
            self.jobs[number] = job_json(number, name=wanted["name"], requirements=wanted["requirements"])
            numbers.append(number)
        for number in numbers:
            self.on_submit(number)
        self._wake()
        return web.json_response({"jobs": numbers}, status=201)

    async def _list_jobs(self, request: web.Request) -> web.Response:
        limit, before = int(request.query.get("limit", 100)), int(request.query.get("before", 10**9))
        state = request.query.get("state")
        found = [job for number, job in sorted(self.jobs.items(), reverse=True) if number < before]
        found = [job for job in found if state in (None, job["state"])][:limit]
        return web.json_response({"jobs": found, "next": found[-1]["job"] if len(found) == limit else None})

    async def _job(self, request: web.Request) -> web.Response:
        job = self._find(request)
        try:
            async with asyncio.timeout(int(request.query.get("wait_s", 0))):
                while job["state"] != "finished":
                    await self._changed.wait()
                    job = self._find(request)
        except TimeoutError:
            pass
        return web.json_response(job)

    async def _cancel(self, request: web.Request) -> web.Response:
        number = self._find(request)["job"]
        self.on_cancel(number)
        self._wake()
        return web.json_response(self.jobs[number], status=202)

    async def _retry(self, request: web.Request) -> web.Response:
        job = self._find(request)
        job.update(state="waiting", outcome=None, finished=None)
        return web.json_response(job, status=201)

    async def _why(self, request: web.Request) -> web.Response:
        job = self._find(request)
        rows = [{"host": "alder", "environment": "bookworm", "kind": "chroot", "arch": "amd64", "platform": "debian12"}]
        environments = [{**row, "fits": True, "reason": self.why} for row in rows]
        answer = {"job": job["job"], "state": job["state"], "sentence": self.why, "environments": environments}
        return web.json_response(answer)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        job, follow = self._find(request), request.query.get("follow") == "1"
        wanted = request.query.get("attempt")
        offset = int(request.query.get("offset", 0))
        while not (attempt := int(wanted or job["attempt"] or 0)) or (job["job"], attempt) not in self.logs:
            if not follow or job["state"] == "finished":
                return problem(404, f"job {job['job']} has no log")
            await self._changed.wait()
            job = self._find(request)
        key = (job["job"], attempt)
        response = web.StreamResponse(headers={"Biruda-Attempt": str(attempt)})
        response.content_type = "application/octet-stream"
        await response.prepare(request)
        while True:
            changed, log = self._changed, self.logs[key]
            if self.cut_at is not None and len(log) >= self.cut_at:
                await response.write(log[offset : self.cut_at])
                self.cut_at = None
                assert request.transport is not None
                request.transport.abort()
                return response
            if log[offset:]:
                await response.write(log[offset:])
                offset = len(log)
            elif key in self.ended or not follow:
                break
            else:
                await changed.wait()
        await response.write_eof()
        return response

    async def _artifacts(self, request: web.Request) -> web.Response:
        return web.json_response({"artifacts": self._find(request)["artifacts"]})

    async def _artifact(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["path"]])

    async def _start(self, request: web.Request) -> web.Response:
        number = max(self.jobs, default=0) + 1
        self.jobs[number] = job_json(number, name=request.match_info["name"], worker=request.match_info["name"])
        self.on_submit(number)
        self._wake()
        return web.json_response({"jobs": [number]}, status=201 if request.match_info["verb"] == "start" else 202)

    async def _listing(self, request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        return web.json_response({kind: self.lists[kind]})

    async def _environment(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for item in self.lists["environments"]:
            if item["name"] == name:
                return web.json_response(item)
        return problem(404, f"there is no environment {name!r}", hint="there are none")

    async def _missing(self, request: web.Request) -> web.Response:
        from biruda.sourcepack import recipe, wire

        encoded = wire.decompress_recipe(await request.read(), max_bytes=1 << 26)
        decoded = recipe.decode(encoded, max_tar_bytes=1 << 40)
        held = decoded.digest in self.packs
        missing = [] if held else list(range(len(decoded.chunks)))
        return web.json_response({"digest": decoded.digest, "held": held, "missing": missing})

    async def _put(self, request: web.Request) -> web.Response:
        self.uploads.append(await request.read())
        self.packs.add(request.match_info["digest"])
        return web.json_response({"digest": request.match_info["digest"]}, status=201)
