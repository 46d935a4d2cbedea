"""The API of a log's lines: a real server, logs as a coordinator sends them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from biruda.master.joblog import service as logs_module
from biruda.model import Outcome
from tests.fakes import step_result
from tests.master.test_api import Client, served


def failing(log: bytes, *steps: tuple[str, int, int]) -> dict[str, Any]:
    """How an attempt ended whose steps are (name, exit status, offset of their first byte)."""
    results = tuple(replace(step_result(name, status), log_start=start) for name, status, start in steps)
    status = next((result.exit_status for result in results if result.exit_status), 0)
    return {
        "log": log,
        "outcome": Outcome.FAILED if status else Outcome.PASSED,
        "exit_status": status,
        "steps": results,
    }


async def found(client: Client, job: int, **query: str) -> tuple[list[int], dict[str, Any]]:
    async with client.session.get(f"http://master/api/v1/jobs/{job}/log/search", params=query) as answer:
        assert answer.status == 200
        said = [json.loads(line) for line in (await answer.read()).splitlines()]
    return [hit for item in said for hit in item.get("hits", [])], said[-1]


async def test_lines_of_a_finished_log(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        log = b"".join(b"line %d\n" % number for number in range(1, 1001)) + b"z" * 5000 + b"\nopen \xff\xe2\x80\xae"
        job = await client.ended(log)
        path = f"/api/v1/jobs/{job}/log/lines"
        answer = await client.get(f"{path}?first=500&count=2")
        assert [item["text"] for item in answer["list"]] == ["line 500", "line 501"]
        known = {key: answer[key] for key in ("attempt", "bytes", "indexed_bytes", "lines", "growing", "first")}
        size = len(log)
        expected = {"attempt": 1, "bytes": size, "indexed_bytes": size, "lines": 1002, "growing": False, "first": 500}
        assert known == expected
        assert answer["list"][1]["offset"] == log.index(b"line 501")
        last = await client.get(f"{path}?last=2")
        assert (last["first"], last["end"]) == (1001, size)
        assert last["list"][0] == {"offset": log.index(b"zz"), "text": "z" * 4096, "bytes": 5000}
        assert last["list"][1]["text"] == "open \N{REPLACEMENT CHARACTER}\N{RIGHT-TO-LEFT OVERRIDE}"
        assert (await client.get(f"{path}?first=5000"))["list"] == []
        for query in ("first=0", "first=x", "count=0", "attempt=0"):
            assert (await client.ask("GET", f"{path}?{query}")).status == 422
        assert (await client.ask("GET", f"{path}?attempt=7")).status == 404
        assert (await client.ask("GET", "/api/v1/jobs/99/log/lines")).status == 404


async def test_a_growing_log_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.begun()
        path = f"/api/v1/jobs/{job}/log/lines?last=10"
        assert (await client.get(path))["list"] == []
        texts: list[str] = []
        for piece, lines in ((b"one\ntw", ["one", "tw"]), (b"o\n", ["one", "two"]), (b"\nx", ["one", "two", "", "x"])):
            client.host.print(job, piece)
            while texts != lines:
                answer = await client.get(path)
                texts = [item["text"] for item in answer["list"]]
            assert (answer["growing"], answer["lines"]) == (True, len(lines))


async def test_the_index_of_a_large_log_is_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEPT_BYTES", "AHEAD_BYTES", "SLICE_BYTES"):
        monkeypatch.setattr(logs_module, name, 1000)
    log = b"a line of it\n" * 10_000
    async with served(tmp_path) as client:
        job = await client.ended(log)
        kept = tmp_path / "spool" / ".index" / f"{job}.1.lines"
        while not kept.exists():  # made when the attempt had ended: nobody looked at it
            assert (await client.get(f"/api/v1/jobs/{job}/log/index"))["bytes"] == len(log)
    before = kept.read_bytes()
    monkeypatch.setattr(logs_module.LineIndex, "extend", None)  # it is not looked at again
    async with served(tmp_path) as client:
        answer = await client.get(f"/api/v1/jobs/{job}/log/lines?first=9999&count=9")
        assert ([item["text"] for item in answer["list"]], answer["lines"]) == (["a line of it"] * 2, 10_000)
    assert kept.read_bytes() == before


async def test_an_answer_does_not_wait_long_for_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "PATIENCE_S", 0)
    monkeypatch.setattr(logs_module, "SLICE_BYTES", 13)
    async with served(tmp_path) as client:
        job = await client.ended(b"a line of it\n" * 50)
        path = f"/api/v1/jobs/{job}/log/lines?last=1"
        answer = await client.get(path)
        assert (answer["lines"], answer["list"]) == (None, [])
        assert answer["indexed_bytes"] < answer["bytes"]
        while answer["lines"] is None:
            answer = await client.get(path)
        assert (answer["first"], answer["lines"], len(answer["list"])) == (50, 50, 1)


async def test_the_log_opens_at_the_first_error_of_the_step_that_failed(tmp_path: Path) -> None:
    setup, check, after = (
        b"error: harmless here\nready\n",
        b"test 1 ok\ntest 2 FAILED\nerror: 1 of 2\n",
        b"error: late\n",
    )
    log = setup + check + after
    steps = (("setup", 0, 0), ("check", 2, len(setup)), ("report", 0, len(setup + check)))
    async with served(tmp_path) as client:
        job = await client.ended(**failing(log, *steps))
        answer = await client.get(f"/api/v1/jobs/{job}/log/errors")
        assert (answer["step"], answer["name"], answer["line"], answer["errors"]) == (1, "check", 4, [4, 5])
        assert answer["complete"]
        index = await client.get(f"/api/v1/jobs/{job}/log/index")
        assert [(step["name"], step["line"]) for step in index["steps"]] == [("setup", 1), ("check", 3), ("report", 6)]
        silent = await client.ended(**failing(b"a\nb\nc\n", ("only", 1, 0)))
        answer = await client.get(f"/api/v1/jobs/{silent}/log/errors")
        assert (answer["line"], answer["errors"]) == (3, [])
        passed = await client.ended(**failing(b"error: but it passed\n", ("only", 0, 0)))
        answer = await client.get(f"/api/v1/jobs/{passed}/log/errors")
        assert (answer["step"], answer["line"], answer["errors"]) == (None, None, [])


async def test_a_search_goes_through_all_of_the_log(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(b"".join(b"line %d\n" % number for number in range(1, 2001)))
        hits, last = await found(client, job, q="line 1999")
        assert (hits, last["found"], last["map"][-1]) == ([1999], 1, 1)
        hits, last = await found(client, job, q="LINE 7$", regex="1")
        assert (hits, last["found"], last["complete"]) == ([], 0, True)
        hits, last = await found(client, job, q="line [0-9]00$", regex="1")
        assert (hits, last["found"]) == ([100, 200, 300, 400, 500, 600, 700, 800, 900], 9)
        for query in ({"q": ""}, {}, {"q": "("}, {"q": "x" * 2000}):
            asked = {"regex": "1", **query}
            answer = await client.ask("GET", f"http://master/api/v1/jobs/{job}/log/search", params=asked)
            assert answer.status in (409, 422), query
            assert answer.problem["detail"].startswith("q: ")


async def test_times_of_lines_come_from_the_frames(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.begun()
        for offset, text, elapsed_ms in ((0, b"one\n", 20), (4, b"two\n", 1500), (8, b"three\n", 61_000)):
            client.host.attempts[job, 1].log += text
            client.host.send_piece(job, offset, text, elapsed_ms)
        client.host.end(job)
        await client.host.recorded(job)
        answer = await client.get(f"/api/v1/jobs/{job}/log/lines")
        assert [(item["text"], item["ms"]) for item in answer["list"]] == [
            ("one", 20),
            ("two", 1500),
            ("three", 61_000),
        ]
    assert (tmp_path / "spool" / ".index" / f"{job}.1.times").exists()


async def test_an_earlier_attempts_log_has_its_own_steps_and_errors(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(**failing(b"one\nerror: first\n", ("check", 1, 0)))
        await client.ask("POST", f"/api/v1/jobs/{job}/retry")
        await client.host.assigned(job, 2)
        client.host.start(job, 2)
        client.host.print(job, b"a\nb\nc\nerror: second\n", 2)
        client.host.end(job, Outcome.FAILED, 2, steps=(step_result("check", 2),), exit_status=2)
        await client.host.recorded(job, 2)
        lines = [(await client.get(f"/api/v1/jobs/{job}/log/errors{which}"))["line"] for which in ("", "?attempt=1")]
        assert lines == [4, 2]
        index = await client.get(f"/api/v1/jobs/{job}/log/index?attempt=1")
        assert (index["lines"], index["attempt"]) == (2, 1)
        assert (await client.ask("GET", f"/api/v1/jobs/{job}/log/index?attempt=3")).status == 404
