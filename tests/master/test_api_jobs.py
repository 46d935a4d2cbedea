"""The API of many jobs: the list, acts on several, the same again elsewhere, comparisons, previews."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from biruda.model import Outcome
from tests.fakes import environment, step_result
from tests.master.test_api import RECIPE, Client, served

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


async def run(client: Client, log: bytes, status: int = 0, **fields: Any) -> int:
    """A job of one step to its end."""
    job = await client.begun(name="curl", **fields)
    client.host.print(job, log)
    outcome = Outcome.FAILED if status else Outcome.PASSED
    steps = (replace(step_result("check", status), wall_s=1.5 + status),)
    client.host.end(job, outcome, steps=steps, exit_status=status)
    await client.host.recorded(job)
    return job


async def test_the_list_by_filters_and_pages(tmp_path: Path) -> None:
    async with served(tmp_path, slots=10) as client:
        jobs = [await client.submit(name=f"job-{number % 2}") for number in range(5)]
        passed = await run(client, b"x\n")
        whole = await client.get("/api/v1/jobs?limit=2&count=1")
        assert ([job["job"] for job in whole["jobs"]], whole["next"], whole["count"]) == ([passed, jobs[4]], jobs[4], 6)
        page = await client.get(f"/api/v1/jobs?brief=1&limit=10&before={jobs[4]}")
        assert ([job["job"] for job in page["jobs"]], page["next"]) == (jobs[3::-1], None)
        for query, expected in (
            ("name=JOB-1", [jobs[3], jobs[1]]),
            ("outcome=passed", [passed]),
            ("state=finished&host=h1&env=bookworm&arch=amd64", [passed]),
            (f"after={jobs[3]}&state=unfinished", [jobs[4]]),
            (f"jobs={jobs[0]},{passed}", [passed, jobs[0]]),
            ("since=1h", [passed, *jobs[::-1]]),
            ("until=1h", []),
        ):
            for brief in ("", "&brief=1"):
                answer = await client.get(f"/api/v1/jobs?{query}{brief}")
                assert [job["job"] for job in answer["jobs"]] == expected, query
        row = (await client.get(f"/api/v1/jobs?jobs={passed}&brief=1"))["jobs"][0]
        job = await client.get(f"/api/v1/jobs/{passed}")
        assert {**row, "finished": job["finished"]} == {key: job[key] for key in row}  # recorded a moment later
        for wrong in ("state=odd", "since=never", "jobs=a", "limit=0", "before=x"):
            assert (await client.ask("GET", f"/api/v1/jobs?{wrong}")).status == 422


async def test_many_are_ended_and_repeated_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, slots=1) as client:
        passed = await run(client, b"x\n")
        waiting = [await client.submit(name="wait") for _ in range(4)]
        asked = {"jobs": [passed, waiting[3], 99]}
        answer = await client.ask("POST", "/api/v1/jobs/cancel", json=asked)
        assert (answer.status, answer.json["jobs"]) == (202, [waiting[3]])
        assert {item["job"]: item["detail"] for item in answer.json["refused"]} == {
            passed: f"job {passed} has already ended: passed",
            99: "there is no job 99",
        }
        answer = await client.ask("POST", "/api/v1/jobs/cancel", json={"filter": {"name": "wai"}, "reason": "enough"})
        assert sorted(answer.json["jobs"]) == waiting[:3]
        client.host.end(waiting[0], Outcome.CANCELLED)  # it had been sent
        await client.host.recorded(waiting[0])
        assert (await client.get(f"/api/v1/jobs/{waiting[1]}"))["reason"] == "enough"
        answer = await client.ask("POST", "/api/v1/jobs/retry", json={"filter": {"outcome": "cancelled"}})
        assert (answer.status, sorted(answer.json["jobs"]), answer.json["refused"]) == (201, waiting, [])
        answer = await client.ask("POST", "/api/v1/jobs/retry", json={"jobs": [waiting[0]]})
        assert "has not ended" in answer.json["refused"][0]["detail"]
        for wrong in (
            {},
            {"jobs": [1], "filter": {}},
            {"filter": {"nam": "x"}},
            {"jobs": ["x"]},
            {"filter": {"state": "x"}},
        ):
            assert (await client.ask("POST", "/api/v1/jobs/cancel", json=wrong)).status == 422


async def test_the_same_again_in_another_place(tmp_path: Path) -> None:
    two = (environment("bookworm"), environment("trixie", platform="debian13"))
    async with served(tmp_path, environments=two) as client:
        job = await run(client, b"x\n", requirements={"env": "bookworm"})
        again = {"requirements": {"env": "", "platform": "debian13"}}
        answer = await client.ask("POST", f"/api/v1/jobs/{job}/again", json=again)
        assert answer.status == 201
        (other,) = answer.json["jobs"]
        view = await client.get(f"/api/v1/jobs/{other}")
        assert (view["name"], view["requirements"]) == ("curl", {"platform": "debian13"})
        assert (await client.host.assigned(other)).environment == "trixie"
        for wrong in ({"requirements": {"color": "red"}}, {"requirements": {"env": "nowhere"}}):
            assert (await client.ask("POST", f"/api/v1/jobs/{job}/again", json=wrong)).status == 422
        assert (await client.ask("POST", "/api/v1/jobs/99/again", json={})).status == 404


async def test_what_is_new_since_the_last_run_that_passed(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        first = await run(client, b"compiling a.c in 12 ms\ntest 1 ok at 0x7f12\n")
        assert await client.get(f"/api/v1/jobs/{first}/compare") == {"job": first, "with": None}
        await run(client, b"another failure\n", 1)
        job = await run(client, b"compiling a.c in 99 ms\ntest 1 ok at 0x55aa\nerror: 2 of 3\nerror: 5 of 3\n", 2)
        answer = await client.get(f"/api/v1/jobs/{job}/compare")
        assert answer["with"] == first
        assert [(line["line"], line["text"]) for line in answer["log"]["new"]] == [(3, "error: 2 of 3")]
        assert (answer["log"]["count"], answer["log"]["complete"]) == (1, True)
        assert answer["steps"] == [{"name": "check", "before_s": 1.5, "after_s": 3.5, "argv_changed": False}]
        assert (answer["facts"], answer["source"]["changed"]) == ([], False)
        other = await client.get(f"/api/v1/jobs/{job}/compare?with={job - 1}")
        assert other["with"] == job - 1


async def test_previews_show_what_is_safe_to_show(tmp_path: Path) -> None:
    files = {
        "report.html": b"<script>alert(1)</script>",
        "image.png": PNG,
        "liar.png": b"<svg onload=alert(1)>",
        "drawing.svg": b"<svg onload=alert(1)>",
        "notes.txt": "grün".encode(),
        "program": b"\x7fELF\0\0",
        "long.log": b"y\n" * 200_000,
    }
    async with served(tmp_path) as client:
        job = await client.begun()
        client.host.end(job, artifacts=files)
        await client.host.recorded(job)
        kinds = {}
        for path, content in files.items():
            answer = await client.ask("GET", f"/api/v1/jobs/{job}/previews/{path}")
            kinds[path] = answer.headers["Content-Type"].partition(";")[0] if answer.status == 200 else answer.status
            if answer.status == 200:
                assert content.startswith(answer.body)
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert "sandbox" in answer.headers["Content-Security-Policy"]
                assert "script-src" not in answer.headers["Content-Security-Policy"]
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert kinds == {
            "report.html": "text/html", "image.png": "image/png", "liar.png": "text/plain", "drawing.svg": "text/plain",
            "notes.txt": "text/plain", "program": 409, "long.log": "text/plain",
        }  # fmt: skip
        assert (await client.ask("GET", f"/api/v1/jobs/{job}/previews/../1.1.log")).status == 404
        whole = await client.ask("GET", f"/api/v1/jobs/{job}/artifacts/report.html")
        assert whole.headers["Content-Disposition"] == "attachment"
        assert hashlib.sha256(whole.body).hexdigest() == hashlib.sha256(files["report.html"]).hexdigest()


async def test_samples_of_a_job_that_has_no_place_are_none(tmp_path: Path) -> None:
    async with served(tmp_path, slots=1) as client:
        job = await client.submit(recipe=RECIPE)
        assert await client.get(f"/api/v1/jobs/{job}/samples") == {"host": "h1", "samples": []}
