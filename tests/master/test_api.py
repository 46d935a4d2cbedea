"""The HTTP API as docs/api.md gives it: a real server on a Unix socket and on TCP."""

import asyncio
import hashlib
import json
import os
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
from aiohttp import web
from yarl import URL

from biruda import VERSION
from biruda.link import Link, dial
from biruda.master import access, api, openapi
from biruda.master import service as service_module
from biruda.master.connections import Door
from biruda.master.service import Master
from biruda.messages import PROTOCOL, EnvironmentCommand, SamplesWanted
from biruda.model import Outcome
from biruda.sourcepack import wire
from biruda.sourcepack.pack import scan
from biruda.transports import WebSocketTransport
from tests.fakes import FakeCoordinator, environment, job_spec, running_master, step_result, worker

TOKEN = "right-token"
RECIPE = {"steps": [{"name": "main", "argv": ["true"]}]}
ARM = {"arch": "arm64", "platform": "debian12"}


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes
    json: Any = None

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["Content-Type"].startswith("application/problem+json"), self
        assert set(self.json) <= {"type", "title", "status", "detail", "hint", "candidates"}
        assert (self.json["type"], self.json["status"]) == ("about:blank", self.status)
        assert self.json["title"]
        assert self.json["detail"]
        return dict(self.json)


@dataclass
class Client:
    """Asks the API over the Unix socket."""

    session: aiohttp.ClientSession
    master: Master
    host: FakeCoordinator
    home: Path
    tcp: str = ""
    doors: list[Door] = field(default_factory=list)  # of the Unix socket, and of TCP

    async def ask(self, method: str, path: str, **more: Any) -> Answer:
        url = URL(f"http://master{path}", encoded=True) if path.startswith("/") else URL(path)
        async with self.session.request(method, url, **more) as answer:
            body = await answer.read()
            is_json = "json" in answer.headers.get("Content-Type", "") and body
            return Answer(answer.status, answer.headers, body, json.loads(body) if is_json else None)

    async def get(self, path: str, **more: Any) -> Any:
        answer = await self.ask("GET", path, **more)
        assert answer.status == 200, answer
        return answer.json

    async def submit(self, **fields: Any) -> int:
        answer = await self.ask("POST", "/api/v1/jobs", json={"jobs": [{"recipe": RECIPE, **fields}]})
        assert answer.status == 201, answer
        (job,) = answer.json["jobs"]
        assert isinstance(job, int)
        return job

    async def begun(self, **fields: Any) -> int:
        job = await self.submit(**fields)
        await self.host.assigned(job)
        self.host.start(job)
        async with asyncio.timeout(5):
            while self.master.view(job)["state"] != "running":
                await self.master.changed()
        return job

    async def ended(self, log: bytes = b"printed\n", **end: Any) -> int:
        job = await self.begun()
        self.host.print(job, log)
        self.host.end(job, **end)
        await self.host.recorded(job)
        return job


@asynccontextmanager
async def served(
    home: Path,
    *,
    host_kind: type[FakeCoordinator] = FakeCoordinator,
    mount: Callable[[web.Application], None] = lambda app: None,
    anonymous: access.Role | None = None,
    **report: Any,
) -> AsyncIterator[Client]:
    """A master with one coordinator behind a Unix socket and a TCP port."""
    home.mkdir(exist_ok=True)
    async with running_master(home) as master:
        host = host_kind(**report)
        about = api.About(home=home, host="h1", started_s=1000.0, pids={"master": os.getpid()})
        app = api.application(master, about, TOKEN, anonymous)
        mount(app)
        directory = os.open(home, os.O_PATH)  # the address of a Unix socket has room for 107 bytes
        try:
            async with (
                api.serving(app, home / "master.sock", ("127.0.0.1", 0)) as port,
                host.connected(master),
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(f"/proc/self/fd/{directory}/master.sock")
                ) as session,
            ):
                while not master.farm.knows("h1"):
                    await master.changed()
                yield Client(session, master, host, home, f"http://127.0.0.1:{port}", app[api.DOORS])
        finally:
            os.close(directory)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "SYNC_S", 0.005)


# Who may ask.

WRONG = ("", "right-token", "Basic right-token", "Bearer wrong", "Bearer", "Bearer \xe9", "Bearer right-token2")


async def test_over_tcp_every_request_needs_the_token(tmp_path: Path) -> None:
    async with served(tmp_path) as client, aiohttp.ClientSession() as outside:
        for path in ("/api/v1/status", "/api/v1/jobs", "/api/v1/openapi.json", "/api/v1/link", "/nowhere"):
            for given in WRONG:
                async with outside.get(client.tcp + path, headers={"Authorization": given} if given else {}) as answer:
                    assert answer.status == 401, (path, given)
                    assert (await answer.json(content_type=None))["hint"].startswith("Authorization: Bearer")
        for given in ("Bearer right-token", "bearer right-token", "Bearer  right-token "):
            async with outside.get(client.tcp + "/api/v1/status", headers={"Authorization": given}) as answer:
                assert answer.status == 200
        body = {"jobs": [{"recipe": RECIPE}]}
        async with outside.post(
            client.tcp + "/api/v1/jobs", json=body, headers={"Authorization": f"Bearer {TOKEN}"}
        ) as answer:
            assert answer.status == 201
        assert client.master.view(1)["user"] == "token"


async def test_over_the_socket_the_kernel_says_who_asks(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.submit()
        assert client.master.view(job)["user"] == access._user_name(os.getuid())
        mode = (tmp_path / "master.sock").stat().st_mode & 0o777
        assert mode == 0o600
    assert not (tmp_path / "master.sock").exists()


async def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    from biruda.errors import ConfigError

    async with served(tmp_path) as client:
        port = URL(client.tcp).port
        assert port is not None
        app = api.application(client.master, api.About(home=tmp_path, host="h", started_s=0.0, pids={}), "t")
        with pytest.raises(ConfigError, match=rf"\[master\] listen: 127.0.0.1:{port} cannot be used"):
            async with api.serving(app, tmp_path / "other.sock", ("127.0.0.1", port)):
                pass


# Errors.


async def test_what_is_not_there_and_what_is_not_done_are_problems(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        answer = await client.ask("GET", "/api/v1/nothing")
        assert (answer.status, answer.problem["detail"]) == (404, "there is nothing at /api/v1/nothing")
        answer = await client.ask("DELETE", "/api/v1/jobs")
        assert (answer.status, answer.problem["detail"]) == (405, "DELETE /api/v1/jobs: there are GET, HEAD, POST")
        for path in ("", "/why", "/log", "/artifacts", "/artifacts/x"):
            for number in ("99", "9" * 40, "0"):
                answer = await client.ask("GET", f"/api/v1/jobs/{number}{path}")
                assert answer.status == 404
                assert answer.problem["detail"].startswith("there is no job")
        for action in ("cancel", "retry"):
            assert (await client.ask("POST", f"/api/v1/jobs/99/{action}")).problem["status"] == 404
        for path in ("x", "-1", "1.5", "1x"):
            assert (await client.ask("GET", f"/api/v1/jobs/{path}")).status == 404


async def test_a_body_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_BODY_BYTES", 1000)
    async with served(tmp_path) as client:
        answer = await client.ask("POST", "/api/v1/jobs", data=b" " * 2000)
        assert (answer.status, answer.problem["detail"]) == (413, "the body is larger than 1000 bytes")
        await client.submit()


async def test_a_fault_of_ours_is_a_problem_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as client:

        def broken(job: int) -> Any:
            raise LookupError("a bug")

        monkeypatch.setattr(client.master, "view", broken)
        answer = await client.ask("GET", "/api/v1/jobs/1")
        assert (answer.status, answer.problem["title"]) == (500, "A fault of biruda")
        assert "a bug" not in answer.problem["detail"]
        assert "LookupError: a bug" in caplog.text
        await client.get("/api/v1/status")


# Status and jobs.


async def test_status_tells_of_the_daemon(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        for _ in range(3):
            await client.submit()
        client.host.start(1)
        async with asyncio.timeout(5):
            while client.master.farm.running_count() != 1:
                await client.master.changed()
        status = await client.get("/api/v1/status")
    assert status.pop("listen") == client.tcp
    assert status == {
        "version": VERSION,
        "protocol": PROTOCOL,
        "host": "h1",
        "home": str(tmp_path),
        "spool": str(tmp_path / "spool"),
        "pids": {"master": os.getpid(), "coordinator": 1},
        "started": "1970-01-01T00:16:40.000000Z",
        "jobs": {"waiting": 2, "running": 1},
        "coordinators": [{"host": "h1", "connected": True}],
        "warnings": [],
    }


async def test_a_job_in_all_its_states_is_what_the_schema_says(tmp_path: Path) -> None:
    async with served(tmp_path, slots=1) as client:
        schema = await client.get("/api/v1/schemas/job.json")
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        seen: list[dict[str, Any]] = []

        async def look(job: int) -> dict[str, Any]:
            view = await client.get(f"/api/v1/jobs/{job}")
            validator.validate(view)
            seen.append(view)
            return dict(view)

        job = await client.begun(name="n", priority=3, retries=1, requirements={"arch": "amd64"})
        waiting = await client.submit(requirements={"platform": "debian*"})
        assert (await look(waiting))["state"] == "waiting"
        running = await look(job)
        assert (running["state"], running["attempt"], running["environment"]) == ("running", 1, "bookworm")
        assert (running["name"], running["priority"], running["retries"]) == ("n", 3, 1)
        assert running["started"] == "1970-01-01T00:16:40.000000Z"
        await client.ask("POST", f"/api/v1/jobs/{job}/cancel", json={"reason": "enough"})
        assert (await look(job))["cancelling"]
        client.host.end(job, Outcome.INFRA)
        await client.host.recorded(job)
        assert (await look(job))["outcome"] == "cancelled"
        await client.host.assigned(waiting)
        client.host.start(waiting)
        client.host.print(waiting, b"log")
        client.host.end(waiting, Outcome.INFRA, steps=(step_result(),))
        await client.host.recorded(waiting)
        again = await look(waiting)
        assert (again["attempts"][0]["outcome"], again["outcome"]) == ("infra", None)
        await client.host.assigned(waiting, 2)
        client.host.start(waiting, 2)
        client.host.end(waiting, attempt=2, artifacts={"a": b"x"}, steps=(step_result(),))
        await client.host.recorded(waiting, 2)
        assert (await look(waiting))["spool"] == "amd64-debian12-h1-2.2"
        gone = await client.submit(requirements={"env": "none"}, queue=True)
        await client.ask("POST", f"/api/v1/jobs/{gone}/cancel")
        assert (await look(gone))["outcome"] == "cancelled"
        listed = (await client.get("/api/v1/jobs"))["jobs"]
        for view in listed:
            validator.validate(view)
        assert listed == [seen[-1], seen[-2], seen[3]]
        keys = set(re.findall(r"\w+", job_keys_of_the_docs()))
        assert set(listed[0]) == keys


def job_keys_of_the_docs() -> str:
    """The names at the top level of `Job` in docs/api.md."""
    text = " ".join((Path(__file__).parents[2] / "docs" / "api.md").read_text().split())
    text = text.partition("`Job`: `{")[2].partition("}`.")[0]
    while (flat := re.sub(r": (\[[^][{}]*(\{[^{}]*\})?[^][{}]*\]|\{[^{}]*\})", "", text)) != text:
        text = flat
    return text


@pytest.mark.parametrize(
    ("body", "says", "hint"),
    [
        (b"", "body: missing jobs", "docs/api.md"),
        (b"{", "the request cannot be understood", ""),
        (b"[]", "body: must be a table, not list", ""),
        (b"\xff", "the request cannot be understood", ""),
        (b"[" * 100_000, "the request cannot be understood", ""),
        ({"jobs": []}, "jobs: 1 to 1000000 at once, not 0", ""),
        ({"jobs": [{}]}, "body.jobs[0]: missing recipe", ""),
        ({"job": []}, "body: unknown field 'job'", ""),
        ({"recipe": {"steps": []}}, "jobs[0]: a recipe has 1 to 1000 steps, not 0", ""),
        ({"recipe": {"steps": [{"name": "x", "argv": []}]}}, "jobs[0]: step 1: it has no program to run", ""),
        ({"recipe": {"steps": [{"name": "x", "argv": [""]}]}}, "jobs[0]: step 1: it has no program to run", ""),
        ({"recipe": {"steps": [{"name": "x", "argv": ["a\0b"]}]}}, "step 1: a NUL byte cannot be part of", ""),
        (
            {"recipe": {"steps": [{"name": "x", "argv": ["a"], "cwd": "../b"}]}},
            "must stay below the work directory",
            "",
        ),
        ({"recipe": {"steps": [{"name": "x", "argv": ["a"], "limit_s": 0}]}}, "limit_s = 0.0: must be more than 0", ""),
        ({"recipe": {"steps": [{"name": "x", "argv": ["a"], "env": {"A=": ""}}]}}, "env 'A='", ""),
        ({"recipe": {**RECIPE, "env": {"": "x"}}}, "jobs[0]: env ''", ""),
        ({"recipe": {**RECIPE, "artifacts": ["/etc/*"]}}, "artifact pattern '/etc/*'", ""),
        ({"recipe": {**RECIPE, "limits": {"pids": 0}}}, "limit pids = 0: must be more than 0", ""),
        ({"recipe": {**RECIPE, "limits": {"memory_bytes": 2**70}}}, "memory_bytes: must be a whole number", ""),
        ({"recipe": {**RECIPE, "limits": {"grace_s": -1}}}, "grace_s = -1: must be 0 to 86400", ""),
        ({"retries": 101}, "retries = 101: must be 0 to 100", ""),
        ({"priority": 2_000_000}, "priority = 2000000", ""),
        ({"requirements": {"archh": "x"}}, "unknown requirement 'archh'", "did you mean arch?"),
        ({"requirements": {"worker": "x"}}, "unknown requirement 'worker'", "there are arch"),
        ({"requirements": {"env": "bookwurm"}}, "there is no environment 'bookwurm'", "did you mean bookworm?"),
        ({"requirements": {"arch": "s390x"}}, "no environment fits arch=s390x", "amd64 debian12 (bookworm on h1)"),
        ({"source": "0" * 64}, f"the source pack {'0' * 64} is not here", "PUT it first"),
        ({"source": "../../etc/passwd"}, "is not here", ""),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:60],
)
async def test_a_request_that_can_never_run_is_refused(tmp_path: Path, body: Any, says: str, hint: str) -> None:
    if isinstance(body, dict) and not {"jobs", "job"} & set(body):
        body = {"jobs": [{"recipe": RECIPE, **body}]}
    async with served(tmp_path) as client:
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        answer = await client.ask("POST", "/api/v1/jobs", **given)
        assert answer.status == 422
        assert says in answer.problem["detail"]
        assert hint in answer.problem.get("hint", "")
        assert client.master.farm.jobs == {}


async def test_one_bad_job_refuses_all_of_the_request(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        jobs = [{"recipe": RECIPE}, {"recipe": RECIPE, "requirements": {"env": "nope"}}]
        answer = await client.ask("POST", "/api/v1/jobs", json={"jobs": jobs})
        assert answer.problem["detail"].startswith("jobs[1]: there is no environment")
        assert client.master.farm.jobs == {}
        jobs[1]["queue"] = True
        answer = await client.ask("POST", "/api/v1/jobs", json={"jobs": jobs})
        assert (answer.status, answer.json) == (201, {"jobs": [1, 2]})


async def test_jobs_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    async with served(tmp_path, slots=1) as client:
        for _ in range(3):
            await client.ended()
        await client.ended(outcome=Outcome.FAILED)
        running = await client.begun()
        waiting = await client.submit()

        async def numbers(query: str) -> tuple[list[int], int | None]:
            page = await client.get(f"/api/v1/jobs?{query}")
            return [item["job"] for item in page["jobs"]], page["next"]

        assert await numbers("") == ([6, 5, 4, 3, 2, 1], None)
        assert await numbers("limit=4") == ([6, 5, 4, 3], 3)
        assert await numbers("limit=4&before=3") == ([2, 1], None)
        assert await numbers("state=finished&limit=2") == ([4, 3], 3)
        assert await numbers("state=running") == ([running], None)
        assert await numbers("state=waiting") == ([waiting], None)
        assert await numbers("state=unfinished") == ([waiting, running], None)
        assert await numbers("outcome=failed") == ([4], None)
        assert await numbers("outcome=%27%20OR%201") == ([], None)
        assert await numbers("worker=web") == ([], None)
        for bad in ("state=nope", "limit=0", "limit=-1", "limit=x", "before=1.5", "limit=%C2%B2"):
            assert (await client.ask("GET", f"/api/v1/jobs?{bad}")).problem["status"] == 422


async def test_waiting_for_a_job_answers_when_it_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as client, asyncio.TaskGroup() as tasks:
        job = await client.begun()
        assert (await client.get(f"/api/v1/jobs/{job}?wait_s=0"))["state"] == "running"
        waiting = tasks.create_task(client.get(f"/api/v1/jobs/{job}?wait_s=30"))
        client.host.end(job)
        assert (await waiting)["state"] == "finished"
        assert (await client.ask("GET", "/api/v1/jobs/1?wait_s=x")).status == 422


async def test_cancel_retry_and_why(tmp_path: Path) -> None:
    async with served(tmp_path, slots=1) as client:
        job = await client.begun()
        other = await client.submit()
        why = await client.get(f"/api/v1/jobs/{other}/why")
        assert (why["job"], why["state"]) == (other, "waiting")
        assert "held by job 1" in why["sentence"]
        assert why["environments"] == [
            {
                "host": "h1",
                "environment": "bookworm",
                "kind": "process",
                "arch": "amd64",
                "platform": "debian12",
                "fits": True,
                "reason": "the only slot of h1 is held by job 1",
            }
        ]
        why = await client.get(f"/api/v1/jobs/{job}/why")
        assert why["sentence"] == "it does not wait: attempt 1 is on h1 in bookworm"
        assert (await client.ask("POST", f"/api/v1/jobs/{job}/retry")).problem["status"] == 409
        answer = await client.ask("POST", f"/api/v1/jobs/{other}/cancel")
        assert (answer.status, answer.json["outcome"]) == (202, "cancelled")
        assert answer.json["reason"] == f"cancelled by {access._user_name(os.getuid())}"
        answer = await client.ask("POST", f"/api/v1/jobs/{other}/cancel", json={"reason": "x"})
        assert (answer.status, answer.problem["detail"]) == (409, "job 2 has already ended: cancelled")
        assert (await client.get(f"/api/v1/jobs/{other}/why"))["sentence"].startswith("it has ended: cancelled")
        answer = await client.ask("POST", f"/api/v1/jobs/{other}/retry")
        assert (answer.status, answer.json["job"], answer.json["state"]) == (201, other, "waiting")
        answer = await client.ask("POST", f"/api/v1/jobs/{job}/cancel", json={"because": "x"})
        assert answer.status == 422


# Logs and artifacts.

LOG = bytes(range(256)) * 40


async def test_a_log_is_read_whole_and_in_ranges(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(LOG)
        path = f"/api/v1/jobs/{job}/log"
        answer = await client.ask("GET", path)
        assert (answer.status, answer.body) == (200, LOG)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert (answer.headers["Content-Length"], answer.headers["Biruda-Attempt"]) == (str(len(LOG)), "1")
        for query, expected in {
            "offset=5": LOG[5:],
            "limit=7": LOG[:7],
            "offset=100&limit=50": LOG[100:150],
            "limit=0": b"",
            f"offset={len(LOG)}": b"",
            "offset=999999999": b"",
            "attempt=1": LOG,
            "follow=1": LOG,
            "follow=1&offset=10000": LOG[10000:],
            "follow=1&limit=3": LOG[:3],
        }.items():
            answer = await client.ask("GET", f"{path}?{query}")
            assert (answer.status, answer.body) == (200, expected), query
        for value, expected, content_range in [
            ("bytes=0-9", LOG[:10], "bytes 0-9/10240"),
            ("bytes=10200-", LOG[10200:], "bytes 10200-10239/10240"),
            ("bytes=-5", LOG[-5:], "bytes 10235-10239/10240"),
            ("bytes=0-99999", LOG, "bytes 0-10239/10240"),
            ("bytes=-99999", LOG, "bytes 0-10239/10240"),
        ]:
            answer = await client.ask("GET", path, headers={"Range": value})
            assert (answer.status, answer.body, answer.headers["Content-Range"]) == (206, expected, content_range)
        for value in ("bytes=10240-", "bytes=5-2", "lines=1-2", "bytes=x", ""):
            answer = await client.ask("GET", path, headers={"Range": value})
            assert (answer.status, answer.problem["title"]) == (416, "No such range"), value
        for query in ("offset=-1", "offset=x", "limit=x", "attempt=0"):
            assert (await client.ask("GET", f"{path}?{query}")).problem["status"] == 422
        for query in ("attempt=2", "attempt=2&follow=1"):
            assert (await client.ask("GET", f"{path}?{query}")).problem["detail"] == f"job {job} has no attempt 2"


async def test_asking_for_the_head_of_a_log_gives_no_body(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(LOG)
        answer = await client.ask("HEAD", f"/api/v1/jobs/{job}/log")
        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", str(len(LOG)))
        assert (await client.get(f"/api/v1/jobs/{job}"))["job"] == job  # on the same connection


async def test_the_logs_of_all_attempts_can_be_read(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(b"first", outcome=Outcome.FAILED)
        await client.ask("POST", f"/api/v1/jobs/{job}/retry")
        await client.host.assigned(job, 2)
        client.host.start(job, 2)
        client.host.print(job, b"second", 2)
        async with asyncio.timeout(5):
            while (await client.ask("GET", f"/api/v1/jobs/{job}/log")).body != b"second":
                pass
        assert (await client.ask("GET", f"/api/v1/jobs/{job}/log?attempt=1")).body == b"first"


async def test_a_log_is_followed_from_before_its_job_begins_to_its_end(tmp_path: Path) -> None:
    async with served(tmp_path) as client, asyncio.TaskGroup() as tasks:
        job = await client.submit()
        assert (await client.ask("GET", f"/api/v1/jobs/{job}/log")).body == b""  # it is assigned, and silent
        url = f"http://master/api/v1/jobs/{job}/log?follow=1"
        async with client.session.get(url) as response:
            assert response.status == 200
            assert "Content-Length" not in response.headers
            await client.host.assigned(job)
            client.host.start(job)
            for number in range(5):
                client.host.print(job, b"line %d\n" % number)
                assert await response.content.readline() == b"line %d\n" % number
            reading = tasks.create_task(response.content.read())
            client.host.print(job, b"last")
            client.host.end(job)
            assert await reading == b"last"
        waiting = await client.submit(requirements={"env": "none"}, queue=True)
        assert (await client.ask("GET", f"/api/v1/jobs/{waiting}/log")).problem["status"] == 404
        following = tasks.create_task(client.ask("GET", f"/api/v1/jobs/{waiting}/log?follow=1"))
        await client.ask("POST", f"/api/v1/jobs/{waiting}/cancel")
        assert (await following).problem["detail"] == f"job {waiting} has no attempt with a log"


async def test_who_stops_following_leaves_nothing_behind(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.begun()
        client.host.print(job, b"x\n")
        for _ in range(5):
            async with client.session.get(f"http://master/api/v1/jobs/{job}/log?follow=1") as response:
                assert await response.content.readline() == b"x\n"
        log = os.fspath(tmp_path / "spool" / ".partial" / f"{job}.1.log")
        async with asyncio.timeout(5):
            while [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")].count(log) > 1:
                await asyncio.sleep(0)


async def test_artifacts_are_listed_and_read(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        files = {"a.tar": b"tar", "a.tar.gz": b"not its gzip", "deep/er/ünï code.txt": b"text", "empty": b""}
        job = await client.ended(artifacts=files)
        listed = (await client.get(f"/api/v1/jobs/{job}/artifacts"))["artifacts"]
        assert {item["path"]: item["bytes"] for item in listed} == {path: len(data) for path, data in files.items()}
        assert all(item["sha256"] == hashlib.sha256(files[item["path"]]).hexdigest() for item in listed)
        for path, content in files.items():
            url = URL("http://master/api/v1/jobs") / str(job) / "artifacts" / path
            answer = await client.ask("GET", str(url.raw_path), headers={"Accept-Encoding": "gzip, br"})
            assert (answer.status, answer.body) == (200, content), path
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Content-Disposition"] == "attachment"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Content-Encoding" not in answer.headers
        answer = await client.ask("GET", f"/api/v1/jobs/{job}/artifacts/a.tar", headers={"Range": "bytes=1-"})
        assert (answer.status, answer.body) == (206, b"ar")


@pytest.mark.parametrize(
    "path",
    [
        "../../master.db",
        "..%2f..%2fmaster.db",
        "%2e%2e/%2e%2e/master.db",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "..",
        ".",
        "a%00",
        "%ff",
        "other",
        "a/",
        "A",
        "a/../a",
    ],
)
async def test_a_path_that_is_no_artifact_gives_nothing(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(artifacts={"a": b"content"})
        answer = await client.ask("GET", f"/api/v1/jobs/{job}/artifacts/{path}")
        assert answer.status == 404
        assert answer.problem


async def test_an_artifact_that_somebody_removed_is_a_problem(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(artifacts={"a": b"content"})
        (tmp_path / "spool" / "amd64-debian12-h1-1.d" / "a").unlink()
        (tmp_path / "spool" / "amd64-debian12-h1-1.log").unlink()
        assert (await client.ask("GET", f"/api/v1/jobs/{job}/artifacts/a")).problem["status"] in (404, 409)
        assert (await client.ask("GET", f"/api/v1/jobs/{job}/log")).problem["status"] in (404, 409)


# Workers, environments, coordinators.


async def test_workers_are_listed_started_and_stopped(tmp_path: Path) -> None:
    environments = (environment(), environment("arm", **ARM))
    workers = (worker("web"), worker("web", "arm", **ARM), worker("db"))
    async with served(tmp_path, slots=9, environments=environments, workers=workers) as client:
        answer = await client.ask("POST", "/api/v1/workers/web/start", json={})
        assert answer.status == 409
        candidate = {"name": "web", "arch": "amd64", "platform": "debian12", "host": "h1", "environment": "bookworm"}
        assert candidate in answer.problem["candidates"]
        assert len(answer.problem["candidates"]) == 2
        answer = await client.ask("POST", "/api/v1/workers/web/start", json={"arch": "arm64"})
        assert (answer.status, answer.json) == (201, {"jobs": [1]})
        assert (await client.ask("POST", "/api/v1/workers/db/start")).json == {"jobs": [2]}
        assert (await client.ask("POST", "/api/v1/workers/web/start", json={"all": True})).json == {"jobs": [3, 4]}
        listed = (await client.get("/api/v1/workers"))["workers"]
        assert [(item["name"], item["arch"], item["running"]) for item in listed] == [
            ("web", "amd64", [3]),
            ("web", "arm64", [1, 4]),
            ("db", "amd64", [2]),
        ]
        assert listed[0] == {**candidate, "kind": "process", "usable": True, "running": [3]}
        for name, wanted in (("nope", {}), ("web", {"arch": "riscv64"}), ("db", {"host": "h9"})):
            for action in ("start", "stop"):
                answer = await client.ask("POST", f"/api/v1/workers/{name}/{action}", json=wanted)
                assert answer.problem["status"] == 404
        assert (await client.ask("POST", "/api/v1/workers/web/stop", json={})).problem["status"] == 409
        assert (await client.ask("POST", "/api/v1/workers/web/start", json={"arhc": "x"})).problem["status"] == 422
        answer = await client.ask("POST", "/api/v1/workers/web/stop", json={"all": True})
        assert (answer.status, answer.json) == (202, {"jobs": [1, 3, 4]})
        assert all(client.master.view(job)["cancelling"] for job in (1, 3, 4))
        assert not client.master.view(2)["cancelling"]


async def test_stopping_what_is_just_ending_stops_the_rest(tmp_path: Path) -> None:
    async with served(tmp_path, slots=9, workers=(worker("web"),)) as client:
        for _ in range(3):
            await client.ask("POST", "/api/v1/workers/web/start")
        cancel = client.master.cancel

        async def ends_in_between(job: int, reason: str) -> None:
            if job == 1:
                await client.host.assigned(2)
                client.host.start(2)
                client.host.end(2)
                await client.host.recorded(2)
            await cancel(job, reason)

        client.master.cancel = ends_in_between  # type: ignore[method-assign]
        answer = await client.ask("POST", "/api/v1/workers/web/stop")
        assert answer.status == 202
        assert client.master.view(3)["cancelling"]


async def test_environments_are_listed_shown_and_tested(tmp_path: Path) -> None:
    offers = (environment(guessed={"libc": "musl"}, slots=None), environment("narrow", slots=1, spares=2))
    async with served(tmp_path, slots=4, environments=offers) as client:
        job = await client.begun(requirements={"env": "narrow"})
        listed = (await client.get("/api/v1/environments"))["environments"]
        assert [(item["name"], item["slots"], item["spares"], item["running"]) for item in listed] == [
            ("bookworm", 4, 0, []),
            ("narrow", 1, 2, [job]),
        ]
        assert await client.get("/api/v1/environments/narrow") == listed[1]
        assert await client.get("/api/v1/environments/narrow?host=h1") == listed[1]
        for path in ("nope", "narrow?host=h9", "%2e%2e"):
            assert (await client.ask("GET", f"/api/v1/environments/{path}")).problem["status"] == 404
        answer = await client.ask("POST", "/api/v1/environments/narrow/probe", json={"host": "h1"})
        assert (answer.status, answer.json) == (200, listed[1])
        answer = await client.ask("DELETE", "/api/v1/environments/bookworm")
        assert (answer.status, answer.json) == (200, {"removed": "bookworm", "host": "h1"})
        commands = client.host.heard_of(EnvironmentCommand)
        assert [(item.action, item.environment) for item in commands] == [("probe", "narrow"), ("remove", "bookworm")]
        client.host.problem = "bookworm is from the configuration"
        answer = await client.ask("DELETE", "/api/v1/environments/bookworm")
        assert (answer.status, answer.problem["detail"]) == (409, "bookworm is from the configuration")
        other = FakeCoordinator("h2")
        async with other.connected(client.master):
            async with asyncio.timeout(5):
                while not client.master.farm.knows("h2"):
                    await client.master.changed()
            answer = await client.ask("GET", "/api/v1/environments/bookworm")
            assert answer.status == 409
            assert answer.problem["candidates"] == [{"name": "bookworm", "host": host} for host in ("h1", "h2")]
            assert (await client.get("/api/v1/environments/bookworm?host=h2"))["host"] == "h2"


async def test_coordinators_are_listed_and_told(tmp_path: Path) -> None:
    async with served(tmp_path, workers=(worker("web"),)) as client:
        job = await client.begun()
        (listed,) = (await client.get("/api/v1/coordinators"))["coordinators"]
        contact = listed.pop("last_contact")
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", contact)
        assert listed == {
            "host": "h1",
            "connected": True,
            "arch": "amd64",
            "platform": "debian12",
            "slots": 2,
            "running": [job],
            "pid": 1,
            "version": "0",
            "environments": ["bookworm"],
            "workers": ["web"],
            "kinds": [],
        }
        assert (await client.ask("POST", "/api/v1/coordinators/h1/reload")).status == 200
        assert client.host.heard_of(EnvironmentCommand)[-1].action == "reload"
        assert (await client.ask("POST", "/api/v1/coordinators/h9/reload")).problem["status"] in (404, 409)
        assert (await client.ask("GET", "/api/v1/coordinators/h9/samples")).problem["status"] in (404, 409)
        assert (await client.ask("GET", "/api/v1/coordinators/h1/samples?seconds=0")).problem["status"] == 422


async def test_samples_are_the_newest_last(tmp_path: Path) -> None:
    from biruda.messages import Samples
    from tests.master.test_service import SAMPLE

    async with served(tmp_path) as client, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(client.get("/api/v1/coordinators/h1/samples?seconds=2"))
        await client.host.until(lambda: client.host.heard_of(SamplesWanted) != [])
        client.host.tell(Samples(samples=tuple(replace(SAMPLE, at_s=float(second)) for second in range(5))))
        assert [item["at_s"] for item in (await asking)["samples"]] == [3.0, 4.0]


# Source packs.


async def test_a_source_pack_is_sent_in_missing_chunks(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(100_000))
    plan = scan(tree)
    recipe = wire.compress_recipe(plan.recipe)
    async with served(tmp_path / "home") as client:
        answer = await client.ask("POST", "/api/v1/sources/missing", data=recipe)
        assert (answer.status, answer.json["held"]) == (200, False)
        digest, missing = answer.json["digest"], answer.json["missing"]
        chunks = b"".join(wire.encode_chunks(plan.chunks(missing)))
        body = struct.pack(">I", len(recipe)) + recipe + chunks
        for bad, status in ((body[:3], 400), (body[:50], 400), (body[:-5], 400), (b"", 400), (body + b"x", 400)):
            answer = await client.ask("PUT", f"/api/v1/sources/{digest}", data=bad)
            assert answer.problem["status"] == status
        assert (await client.ask("PUT", f"/api/v1/sources/{'0' * 64}", data=body)).problem["status"] == 400
        assert (await client.ask("POST", "/api/v1/sources/missing", data=b"no recipe")).problem["status"] == 400
        answer = await client.ask("PUT", f"/api/v1/sources/{digest}", data=body)
        assert (answer.status, answer.json) == (201, {"digest": digest})
        answer = await client.ask("POST", "/api/v1/sources/missing", data=recipe)
        assert answer.json == {"digest": digest, "held": True, "missing": []}
        job = await client.submit(source=digest)
        assert (await client.host.assigned(job)).source == digest


# Events.


async def events_of(client: Client, query: str, until: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    async with client.session.ws_connect(f"http://master/api/v1/events{query}") as websocket, asyncio.timeout(5):
        while not events or events[-1]["kind"] != until:
            events.append(await websocket.receive_json())
    return events


async def test_events_come_in_order_and_resume_after_any(tmp_path: Path) -> None:
    async with served(tmp_path) as client, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(events_of(client, "?after=0", "job.finished"))
        async with asyncio.timeout(5):
            while not client.master.subscribers:
                await asyncio.sleep(0)
        job = await client.ended()
        all_events = await watching
        assert [event["id"] for event in all_events] == list(range(1, len(all_events) + 1))
        assert [event["kind"] for event in all_events][-4:] == [
            "job.queued",
            "job.assigned",
            "job.started",
            "job.finished",
        ]
        assert {event["job"] for event in all_events[-4:]} == {job}
        for after in range(len(all_events)):
            assert await events_of(client, f"?after={after}", "job.finished") == all_events[after:]
        live = tasks.create_task(events_of(client, "", "job.cancelling"))
        async with asyncio.timeout(5):
            while len(client.master.subscribers) != 1:
                await asyncio.sleep(0)
        other = await client.begun()
        await client.ask("POST", f"/api/v1/jobs/{other}/cancel")
        seen = await live
        assert seen[0]["id"] == len(all_events) + 1
        assert [event["id"] for event in seen] == list(range(seen[0]["id"], seen[-1]["id"] + 1))
        assert (await client.ask("GET", "/api/v1/events?after=x")).problem["status"] == 422
        assert (await client.ask("GET", "/api/v1/events")).status == 400  # no WebSocket


async def test_who_reads_too_slowly_is_told_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SUBSCRIBER_EVENTS", 3)
    async with served(tmp_path) as client:
        async with client.session.ws_connect("http://master/api/v1/events?after=0") as websocket:
            async with asyncio.timeout(5):
                while not client.master.subscribers:
                    await asyncio.sleep(0)
            await client.master.submit((job_spec(),) * 20)
            seen = []
            async with asyncio.timeout(5):
                async for message in websocket:
                    seen.append(message.json())
            assert websocket.close_code == 1013
        numbers = [event["id"] for event in seen]
        assert numbers == list(range(1, len(numbers) + 1))
        assert client.master.subscribers == set()
        rest = await events_of(client, f"?after={numbers[-1]}", "job.assigned")
        assert rest[0]["id"] == numbers[-1] + 1


# The link.


async def test_a_coordinator_links_over_a_websocket(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        host = FakeCoordinator("h2")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession() as outside,
            outside.ws_connect(f"{client.tcp}/api/v1/link", headers=headers, max_msg_size=8 << 20) as websocket,
            asyncio.TaskGroup() as tasks,
        ):
            transport = WebSocketTransport(websocket, "the master")
            received, fresh = await dial(transport, host.link, {"host": "h2", "instance": "i"})
            assert fresh
            host.begin_session()
            tasks.create_task(host.link.run(transport, received, host.handle, opened=host.pump))
            (job,) = await client.master.submit((job_spec(host="h2"),))
            await host.assigned(job)
            host.start(job)
            host.print(job, LOG * 100)
            while host.attempts[job, 1].sent != len(LOG) * 100:
                await asyncio.sleep(0)
                host.pump()
            host.end(job)
            await host.recorded(job)
            await host.link.close()
        assert client.master.view(job)["log"]["complete"]
        async with asyncio.timeout(5):
            while client.master.farm.knows("h2"):
                await client.master.changed()


@pytest.mark.parametrize("sent", [b"", b"nonsense", b"\0\0\0\x03\x01{}", b"\xff" * 100, "text"], ids=repr)
async def test_a_stranger_on_the_link_is_sent_away(tmp_path: Path, sent: Any) -> None:
    async with served(tmp_path) as client:
        async with client.session.ws_connect("http://master/api/v1/link") as websocket:
            await (websocket.send_str(sent) if isinstance(sent, str) else websocket.send_bytes(sent))
            if sent in (b"", "text"):
                await websocket.close()
            async with asyncio.timeout(5):
                message = await websocket.receive()
                while message.type is aiohttp.WSMsgType.BINARY:
                    message = await websocket.receive()
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await client.get("/api/v1/status")
        assert list(client.master.farm.hosts) == ["h1"]


async def test_the_links_session_outlives_its_connections(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        link = Link("the session", "h3")
        for expected in (True, True):  # nothing of it was handled yet: it begins anew each time
            async with client.session.ws_connect("http://master/api/v1/link") as websocket:
                transport = WebSocketTransport(websocket, "the master")
                _, fresh = await dial(transport, link, {"host": "h3", "instance": "i"})
                assert fresh is expected


# What describes the API.


def routes() -> set[tuple[str, str]]:
    found = set()
    for route in api.all_routes():
        assert isinstance(route, aiohttp.web.RouteDef)
        found.add((route.method.lower(), re.sub(r":[^}]*\}", "}", route.path)))
    return found - {("get", "/api/v1/link")}


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    assert {(method, path) for method, path, *_ in openapi.OPERATIONS} == routes()


def test_every_route_is_in_the_docs_and_nothing_else_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    named = {"/N": "/{job}", "/NAME": "/{name}", "/HOST": "/{host}", "/DIGEST": "/{digest}", "/PATH": "/{path}"}
    word = re.compile("|".join(f"{word}(?![A-Za-z])" for word in named))
    listed = {
        (method.lower(), word.sub(lambda match: named[match[0]], path))
        for method, path in re.findall(r"^\| `(GET|POST|PUT|DELETE) (/api/v1/[^ ?`]*)", text, re.MULTILINE)
    }
    described = {("get", "/api/v1/openapi.json"), ("get", "/api/v1/schemas/job.json")}
    assert listed | described == routes()


async def test_the_openapi_document_is_sound(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        document = await client.get("/api/v1/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {path for _, path in routes()}
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    identifiers = [operation["operationId"] for operation in operations]
    assert len(set(identifiers)) == len(identifiers)
    for path, item in document["paths"].items():
        for operation in item.values():
            given = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
            assert given == set(re.findall(r"\{(\w+)\}", path))
    references = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert references <= set(document["components"]["schemas"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


# Many jobs at once.


async def test_equal_jobs_of_one_request_are_one_value(tmp_path: Path) -> None:
    equal = {"recipe": {"steps": [{"name": "a", "argv": ["true"]}]}, "queue": True}
    other = {**equal, "name": "other"}
    async with served(tmp_path) as client:
        answer = await client.ask("POST", "/api/v1/jobs", json={"jobs": [equal, other, equal, {**equal}, other]})
        assert answer.status == 201
        jobs = client.master.farm.jobs
        specs = [jobs[number].spec for number in sorted(jobs)]
        assert [spec.name for spec in specs] == ["", "other", "", "", "other"]
        assert specs[0] is specs[2] is specs[3]
        assert specs[1] is specs[4]
        wrong = {**equal, "recipe": {"steps": [{"name": "a", "argv": 5}]}}
        refused = await client.ask("POST", "/api/v1/jobs", json={"jobs": [equal, equal, wrong]})
        assert "body.jobs[2].recipe.steps[0].argv" in refused.problem["detail"]
