"""The master at work with its coordinators: submitted, assigned, recorded, through cuts, crashes and restarts."""

import asyncio
import errno
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from biruda.errors import NotFound, PeerError, UserError
from biruda.frames import DATA_BYTES, WINDOW_BYTES, FrameType, pack
from biruda.link import dial
from biruda.master import events as ev
from biruda.master import hosts as hosts_module
from biruda.master import intake as intake_module
from biruda.master import named
from biruda.master import service as service_module
from biruda.master.logs import open_log
from biruda.master.requests import WorkerSelection
from biruda.master.service import Master
from biruda.master.state import Placed
from biruda.master.store import Published, Store
from biruda.messages import (
    PROTOCOL,
    Assign,
    AttemptEnded,
    AttemptRecorded,
    AttemptStarted,
    Cancel,
    ChunksEnd,
    ChunksWanted,
    EnvironmentCommand,
    Notice,
    Samples,
    SamplesWanted,
    SourceOffered,
    SourceWanted,
    StepEnded,
    StreamsWanted,
    encode,
)
from biruda.model import Artifact, Outcome, Sample
from biruda.sourcepack import wire
from biruda.transports import MemoryTransport, memory_pair
from tests.fakes import (
    FakeCoordinator,
    artifact,
    environment,
    host_report,
    job_spec,
    log_info,
    result,
    running_master,
    serve,
    step_result,
    worker,
)

ANYWHERE = job_spec()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((service_module, "RETRY_S"), (service_module, "SYNC_S"), (intake_module, "RETRY_S")):
        monkeypatch.setattr(module, name, 0.005)


@asynccontextmanager
async def farm(home: Path, **settings: Any) -> AsyncIterator[tuple[Master, FakeCoordinator]]:
    """A master and one connected coordinator."""
    async with running_master(home, **settings) as master:
        host = FakeCoordinator()
        async with host.connected(master):
            await until(master, lambda: master.farm.knows("h1"))
            yield master, host


async def until(master: Master, is_true: Any) -> None:
    """Wait until something that was recorded made it true."""
    async with asyncio.timeout(10):
        while not is_true():
            await master.changed()


async def run_one(master: Master, host: FakeCoordinator, log: bytes = b"printed\n", **end: Any) -> int:
    """A job from its submission to its record."""
    (job,) = await master.submit((ANYWHERE,))
    await host.assigned(job)
    host.start(job)
    host.print(job, log)
    host.end(job, **end)
    await host.recorded(job)
    return job


def spool_files(home: Path) -> dict[str, bytes]:
    return {
        os.fspath(path.relative_to(home / "spool")): path.read_bytes()
        for path in (home / "spool").rglob("*")
        if path.is_file()
    }


async def followed(master: Master, job: int) -> bytes:
    reader = await open_log(master, job, None, wait=True)
    try:
        return b"".join([piece async for piece in reader.pieces(0, None, follow=True)])
    finally:
        reader.close()


# The life of a job.


async def test_a_job_from_submit_to_its_spool_files(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        spec = replace(ANYWHERE, name="check", user="somebody")
        (job,) = await master.submit((spec,))
        assignment = await host.assigned(job)
        assert (assignment.job, assignment.attempt, assignment.environment) == (1, 1, "bookworm")
        assert master.view(job)["state"] == "waiting"
        host.start(job)
        await until(master, lambda: master.view(job)["state"] == "running")
        host.print(job, b"one\n")
        host.tell(StepEnded(job=job, attempt=1, index=0, result=step_result("first")))
        await until(master, lambda: master.view(job)["steps"])
        host.print(job, b"two\n")
        host.end(job, artifacts={"out/a.txt": b"content"}, steps=(step_result("first"),))
        await host.recorded(job)
        view = master.view(job)
        assert host.attempts == {}
    assert (view["state"], view["outcome"], view["exit_status"]) == ("finished", "passed", 0)
    assert view["log"] == {"bytes": 8, "sha256": hashlib.sha256(b"one\ntwo\n").hexdigest(), "complete": True}
    assert [item["path"] for item in view["artifacts"]] == ["out/a.txt"]
    name = "amd64-debian12-h1-1"
    files = spool_files(tmp_path)
    assert set(files) == {f"{name}.log", f"{name}.json", f"{name}.d/out/a.txt"}
    assert files[f"{name}.log"] == b"one\ntwo\n"
    assert orjson.loads(files[f"{name}.json"]) == view


async def test_several_jobs_run_side_by_side_and_the_rest_after_them(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        jobs = await master.submit((ANYWHERE,) * 5)
        assert jobs == [1, 2, 3, 4, 5]
        for job in jobs:
            await host.assigned(job)
            host.start(job)
            host.print(job, b"job %d" % job)
            host.end(job)
        for job in jobs:
            await host.recorded(job)
            assert master.view(job)["outcome"] == "passed"
    assert [spool_files(tmp_path)[f"amd64-debian12-h1-{job}.log"] for job in jobs] == [b"job %d" % job for job in jobs]


async def test_numbers_of_jobs_submitted_at_once_do_not_mix(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master, asyncio.TaskGroup() as tasks:
        submits = [tasks.create_task(master.submit((replace(ANYWHERE, name=f"{n}"),) * n)) for n in range(1, 6)]
        for submit in submits:
            await submit
        for count, submit in enumerate(submits, start=1):
            assert [master.view(job)["name"] for job in submit.result()] == [f"{count}"] * count
        assert sorted(job for submit in submits for job in submit.result()) == list(range(1, 16))


async def test_what_is_acknowledged_is_on_disk(tmp_path: Path) -> None:
    acknowledged: list[int] = []

    async def killed() -> None:
        async with running_master(tmp_path) as master:
            acknowledged.extend(await master.submit((ANYWHERE, replace(ANYWHERE, name="second"))))
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(killed())
        while not acknowledged:
            await asyncio.sleep(0)
        store = Store(tmp_path / "master.db")  # beside the running one: it is there at that moment
        assert [job.job for job in store.live_jobs()] == acknowledged == [1, 2]
        store.close()
        task.cancel()


async def test_a_log_is_followed_while_it_comes_and_to_its_end(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host), asyncio.TaskGroup() as tasks:
        (job,) = await master.submit((ANYWHERE,))
        following = [tasks.create_task(followed(master, job)) for _ in range(3)]
        await host.assigned(job)
        host.start(job)
        for number in range(20):
            host.print(job, b"line %d\n" % number)
            await asyncio.sleep(0)
        host.end(job)
        for follower in following:
            assert await follower == b"".join(b"line %d\n" % number for number in range(20))
        await host.recorded(job)
        assert await followed(master, job) == await following[0]


async def test_a_large_log_arrives_whole_and_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    log = os.urandom(1 << 20) * 12
    async with farm(tmp_path) as (master, host):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
        host.print(job, log)
        assert host.link.session.credit_bytes > -DATA_BYTES
        while host.attempts[job, 1].sent != len(log):
            await asyncio.sleep(0)
            host.pump()
            assert WINDOW_BYTES - host.link.session.credit_bytes < WINDOW_BYTES + DATA_BYTES
        host.end(job)
        await host.recorded(job)
        assert master.view(job)["log"]["complete"]
        assert host.sent_bytes == len(log)
    assert spool_files(tmp_path)["amd64-debian12-h1-1.log"] == log


async def test_cancelling_ends_a_running_job(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
        await master.cancel(job, "enough")
        await host.until(lambda: host.heard_of(Cancel) != [])
        assert host.heard_of(Cancel) == [Cancel(job=job, attempt=1, outcome="cancelled", reason="enough")]
        assert master.view(job)["cancelling"]
        host.end(job, Outcome.CANCELLED, reason="enough")
        view = await master.wait_finished(job, 10)
        assert (view["outcome"], view["reason"]) == ("cancelled", "enough")
        with pytest.raises(UserError, match="has already ended: cancelled"):
            await master.cancel(job, "again")
        with pytest.raises(NotFound):
            await master.cancel(99, "")


async def test_a_finished_job_is_run_again_as_its_next_attempt(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        job = await run_one(master, host, b"first", outcome=Outcome.FAILED)
        await master.retry(job)
        with pytest.raises(UserError, match="has not ended yet"):
            await master.retry(job)
        with pytest.raises(NotFound):
            await master.retry(99)
        await host.assigned(job, 2)
        host.start(job, 2)
        host.print(job, b"second", 2)
        host.end(job, attempt=2)
        await host.recorded(job, 2)
        view = master.view(job)
        assert (view["attempt"], view["outcome"], view["spool"]) == (2, "passed", "amd64-debian12-h1-1.2")
        assert [item["outcome"] for item in view["attempts"]] == ["failed"]
    files = spool_files(tmp_path)
    assert (files["amd64-debian12-h1-1.log"], files["amd64-debian12-h1-1.2.log"]) == (b"first", b"second")


async def test_waiting_for_an_end_is_woken_by_it_and_bounded(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host), asyncio.TaskGroup() as tasks:
        (job,) = await master.submit((ANYWHERE,))
        assert (await master.wait_finished(job, 0))["state"] == "waiting"
        waiting = tasks.create_task(master.wait_finished(job, 10))
        await host.assigned(job)
        host.start(job)
        host.end(job)
        assert (await waiting)["outcome"] == "passed"
        assert (await master.wait_finished(job, 0))["outcome"] == "passed"
        with pytest.raises(NotFound):
            await master.wait_finished(99, 0)


# Links.


async def test_a_cut_link_resumes_and_the_log_is_whole(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        host = FakeCoordinator()
        parts = [b"part %d\n" % number for number in range(6)]
        async with host.connected(master):
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.start(job)
            host.print(job, parts[0])
        for part in parts[1:-1]:
            host.print(job, part)
            async with host.connected(master):
                host.print(job, part)
                await asyncio.sleep(0)
        host.print(job, parts[-1])
        host.end(job)
        async with host.connected(master):
            await host.recorded(job)
        assert host.heard_of(StreamsWanted) == []
        assert master.view(job)["log"]["complete"]
        whole = parts[0] + b"".join(part + part for part in parts[1:-1]) + parts[-1]
    assert spool_files(tmp_path)["amd64-debian12-h1-1.log"] == whole


async def test_a_coordinator_whose_welcome_was_lost_is_welcomed_again(tmp_path: Path) -> None:
    """Its old session is gone with the last master, and what it has received of it means nothing now."""
    host = FakeCoordinator()
    async with running_master(tmp_path) as master, host.connected(master):
        await run_one(master, host)
    assert host.link.session.received > 0
    async with running_master(tmp_path) as master:
        mine, theirs = memory_pair("h1", "the master")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve(master, theirs))
            await mine.send(hello_of(host))
            assert await mine.receive()  # the WELCOME, of which the coordinator never hears
            await mine.close()
        async with host.connected(master):
            await until(master, lambda: master.farm.knows("h1"))
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)


def hello_of(host: FakeCoordinator, **other: Any) -> bytes:
    values = {"protocol": PROTOCOL, "session": host.link.session_id, "received": host.link.session.received}
    return pack(FrameType.HELLO, orjson.dumps({**values, "host": host.host, "instance": host.instance, **other}))


async def test_a_connection_beside_one_that_is_dead_takes_over(tmp_path: Path) -> None:
    """The coordinator has given the first up; the master has not noticed. The host is connected all the time."""
    async with running_master(tmp_path) as master:
        host = FakeCoordinator()
        async with asyncio.TaskGroup() as tasks:
            dead, theirs = memory_pair("h1", "the master")
            tasks.create_task(serve(master, theirs))
            received, fresh = await dial(dead, host.link, {"host": "h1", "instance": host.instance})
            assert fresh
            host.begin_session()
            first = tasks.create_task(host.link.run(dead, received, host.handle))
            await until(master, lambda: master.farm.knows("h1"))
            first.cancel()  # on this side only: the transport stays open
            await asyncio.wait([first])
            async with host.connected(master):
                (job,) = await master.submit((ANYWHERE,))
                await host.assigned(job)
                for _ in range(5):
                    await master.submit((ANYWHERE,))
                assert master.farm.knows("h1")
                assert master.farm.next_deadline_s() is None
            await master.submit((ANYWHERE,))
            assert not master.farm.knows("h1")


async def test_another_coordinator_of_the_same_name_is_refused(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, _):
        other = FakeCoordinator(instance="another machine")
        with pytest.raises(BaseExceptionGroup) as refused:
            async with other.connected(master):
                pass
        assert refused.group_contains(PeerError, match="another coordinator that is called h1 is connected")
        assert master.farm.knows("h1")


@pytest.mark.parametrize(
    "other",
    [{"host": ""}, {"host": "x" * 65}, {"host": 5}, {"host": "a\nb"}, {"host": "a\udc80"}, {"instance": None}],
    ids=str,
)
async def test_a_coordinator_with_a_name_that_is_none_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    async with running_master(tmp_path) as master:
        mine, theirs = memory_pair("h1", "the master")
        values = {"protocol": PROTOCOL, "session": "s", "received": 0, "host": "h1", "instance": "i", **other}

        await mine.send(pack(FrameType.HELLO, json.dumps(values).encode()))
        with pytest.raises(PeerError, match="did not say its host"):
            await master.hosts.serve(theirs)
        assert b"did not say its host" in await mine.receive()
        assert master.farm.hosts == {}


async def test_a_report_under_another_name_ends_the_connection(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        host.link.post(encode(host_report("h2")))
        async with asyncio.timeout(5):
            while host.link.connected:
                await asyncio.sleep(0)
        assert "h2" not in master.farm.hosts


async def test_names_that_make_no_file_names_are_refused(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        host = FakeCoordinator(environments=(environment(platform="p" * 65),))
        async with host.connected(master), asyncio.timeout(5):
            while host.link.connected:
                await asyncio.sleep(0)
        assert master.farm.hosts == {}


async def test_nonsense_closes_the_connection_and_the_next_goes_on(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        host = FakeCoordinator()
        async with host.connected(master):
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.link.post(b'{"type":"Nonsense"}')
            async with asyncio.timeout(5):
                while host.link.connected:
                    await asyncio.sleep(0)
        assert job in master.farm.jobs
        host.link.reset()  # what comes from a mended coordinator
        host.link.session_id = "another"
        async with host.connected(master):
            host.start(job)
            host.end(job)
            await host.recorded(job)


# What is late, wrong or hostile.


async def test_a_late_end_of_an_older_attempt_is_refused(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        host, other = FakeCoordinator("h1", slots=1), FakeCoordinator("h2", slots=1)
        async with host.connected(master):
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.start(job)
            host.print(job, b"of the first")
            await until(master, lambda: master.farm.running_count() == 1)
        lost = host.attempts.pop((job, 1))
        host.link.reset()
        host.link.session_id, host.instance = "a new process", "h1 again"
        async with host.connected(master), other.connected(master):
            async with asyncio.timeout(5):
                while (job, 2) not in host.attempts and (job, 2) not in other.attempts:
                    await asyncio.sleep(0)
            runner = host if (job, 2) in host.attempts else other
            host.attempts[job, 1] = lost
            host.end(job, attempt=1)
            await host.recorded(job, 1)
            assert job in master.farm.jobs
            assert master.farm.jobs[job].last_attempt == 2
            runner.start(job, 2)
            runner.print(job, b"of the second", 2)
            runner.end(job, attempt=2)
            await runner.recorded(job, 2)
        view = master.view(job)
        assert (view["attempt"], view["outcome"]) == (2, "passed")
        assert [item["outcome"] for item in view["attempts"]] == ["infra"]
    files = spool_files(tmp_path)
    assert files["amd64-debian12-h1-1.log"] == b"of the first"
    assert b"of the second" in files.values()


async def test_every_message_may_come_twice(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        tell = host.tell

        def twice(message: Any) -> None:
            tell(message)
            tell(message)

        host.tell = twice  # type: ignore[method-assign]
        host.start(job)
        host.print(job, b"log")
        host.tell(StepEnded(job=job, attempt=1, index=0, result=step_result()))
        host.end(job, artifacts={"a": b"a", "b": b"a", "c": b"c"}, steps=(step_result(),))
        await host.recorded(job)
        view = master.view(job)
        assert [item["path"] for item in view["artifacts"]] == ["a", "b", "c"]
        assert view["log"]["complete"]
        assert [event["kind"] for event in master.store.events_after(0, 99)].count("job.finished") == 1


async def test_a_log_that_was_damaged_is_fetched_again(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
        host.print(job, b"damaged!")
        await until_size(master, job, 8)
        host.attempts[job, 1].log[:] = b"the log."
        host.end(job)
        await host.recorded(job)
        assert master.view(job)["log"]["complete"]
    assert spool_files(tmp_path)["amd64-debian12-h1-1.log"] == b"the log."


async def until_size(master: Master, job: int, size: int) -> None:
    async with asyncio.timeout(5):
        while master.intake(job, 1).log.size < size:
            await asyncio.sleep(0)


HOSTILE_RESULTS: list[dict[str, Any]] = [
    {"started_s": 1e300, "finished_s": -1e300},
    {"reason": "\udc80 \ud800"},
    {"exit_status": 2**62},
    {"steps": (replace(step_result(), name="\udcff", wall_s=1e308, peak_rss_bytes=2**63 - 1),)},
    {"log": replace(log_info(), bytes=-5)},
    {"log": replace(log_info(), sha256="nonsense")},
    {"artifacts": (artifact("../../escape"), artifact("/etc/passwd"), artifact("a\0b"), artifact(""))},
    {"artifacts": (artifact("a"), artifact("a"), artifact("a/b"), artifact("./a"))},
    {"artifacts": (Artifact(path="caf\udce9", bytes=0, sha256=artifact("").sha256),)},
    {"artifacts": (Artifact(path="negative", bytes=-1, sha256=""),)},
]


@pytest.mark.parametrize("fields", HOSTILE_RESULTS, ids=range(len(HOSTILE_RESULTS)))
async def test_the_master_survives_any_result(tmp_path: Path, fields: dict[str, Any]) -> None:
    async with farm(tmp_path) as (master, host):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
        host.tell(AttemptEnded(job=job, attempt=1, result=replace(result(), **fields)))
        await host.recorded(job)
        assert master.view(job)["outcome"] == "passed"
        await run_one(master, host)
    assert sorted(os.listdir(tmp_path)) == sorted(["master.db", "sources", "spool"])
    async with running_master(tmp_path) as master:
        assert master.view(job)["outcome"] == "passed"
        assert orjson.dumps(master.view(job))


@pytest.mark.parametrize("step", [replace(step_result(), name="\ud800"), replace(step_result(), wall_s=1e308)], ids=str)
async def test_any_step_can_be_remembered_over_a_restart(tmp_path: Path, step: Any) -> None:
    async with farm(tmp_path) as (master, host):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
        host.tell(StepEnded(job=job, attempt=1, index=0, result=step))
        await until(master, lambda: master.view(job)["steps"])
        await master.cancel(job, "so that it is saved")
    async with running_master(tmp_path) as master:
        assert job in master.farm.jobs


async def test_the_messages_of_a_stranger_change_nothing(tmp_path: Path) -> None:
    """A second, honest host speaks about the first one's job."""
    async with farm(tmp_path) as (master, host):
        (job,) = await master.submit((replace(ANYWHERE, requirements={"host": "h1"}),))
        await host.assigned(job)
        host.start(job)
        host.print(job, b"right")
        await until_size(master, job, 5)
        stranger = FakeCoordinator("h2", slots=0)
        async with stranger.connected(master):
            stranger.attempts[job, 1] = host.attempts[job, 1].__class__(None, log=bytearray(b"wrong and longer"))
            stranger.tell(AttemptStarted(job=job, attempt=1, at_s=5.0))
            stranger.pump()
            stranger.tell(StepEnded(job=job, attempt=1, index=0, result=step_result()))
            stranger.end(job, Outcome.FAILED)
            await stranger.recorded(job)
        host.end(job)
        await host.recorded(job)
        assert master.view(job)["outcome"] == "passed"
        assert master.view(job)["steps"] == []
    assert spool_files(tmp_path)["amd64-debian12-h1-1.log"] == b"right"


# The master restarts.


async def test_a_restarted_master_adopts_what_runs_and_the_log_is_whole(tmp_path: Path) -> None:
    host = FakeCoordinator()
    async with running_master(tmp_path) as master, host.connected(master):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
        host.print(job, b"before, ")
        await until_size(master, job, 8)
    host.print(job, b"meanwhile, ")
    sent = host.sent_bytes
    async with running_master(tmp_path) as master:
        assert isinstance(master.farm.jobs[job].state, Placed)
        async with host.connected(master):
            await host.until(lambda: host.heard_of(StreamsWanted) != [])
            assert host.heard_of(StreamsWanted) == [StreamsWanted(job=job, attempt=1, streams=((0, 8),))]
            host.print(job, b"after")
            host.end(job)
            await host.recorded(job)
            view = master.view(job)
    assert host.sent_bytes - sent == len(b"meanwhile, after")
    assert len(host.heard_of(Assign)) == 1
    assert (view["attempt"], view["outcome"], view["log"]["complete"]) == (1, "passed", True)
    assert spool_files(tmp_path)["amd64-debian12-h1-1.log"] == b"before, meanwhile, after"


async def test_an_attempt_that_ended_while_the_master_was_away_is_recorded(tmp_path: Path) -> None:
    host = FakeCoordinator()
    async with running_master(tmp_path) as master, host.connected(master):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
    host.print(job, b"all of it")
    host.end(job, artifacts={"a": b"x" * 100_000})
    async with running_master(tmp_path) as master, host.connected(master):
        await host.recorded(job)
        view = master.view(job)
    assert (view["outcome"], view["log"]["complete"], len(view["artifacts"])) == ("passed", True, 1)


async def test_a_job_that_was_never_told_of_goes_out_again(tmp_path: Path) -> None:
    """The master dies after the commit and before the message."""
    async with running_master(tmp_path) as master:
        host = FakeCoordinator()
        async with host.connected(master):
            await until(master, lambda: master.farm.knows("h1"))
            master.hosts.send = lambda host, message: None  # type: ignore[method-assign]
            (job,) = await master.submit((ANYWHERE,))
    async with running_master(tmp_path) as master, host.connected(master):
        await host.assigned(job, 2)
        host.start(job, 2)
        host.end(job, attempt=2)
        await host.recorded(job, 2)
        assert master.view(job)["outcome"] == "passed"


async def test_a_cancel_is_remembered_over_a_restart_with_its_reason(tmp_path: Path) -> None:
    host = FakeCoordinator()
    async with running_master(tmp_path) as master:
        async with host.connected(master):
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.start(job)
            await until(master, lambda: master.farm.running_count() == 1)
        await master.cancel(job, "the disk is needed")
    async with running_master(tmp_path) as master, host.connected(master):
        await host.until(lambda: host.heard_of(Cancel) != [])
        assert host.heard_of(Cancel)[0].reason == "the disk is needed"


async def test_a_crash_between_publishing_and_recording_loses_nothing(tmp_path: Path) -> None:
    host = FakeCoordinator()
    log = b"a log of some length\n" * 10_000
    crashed = asyncio.Event()

    async def first() -> None:
        class Crashing(Store):
            """The process dies after the files were published and before that is recorded."""

            def prepare(self, saves: Sequence[Any], first_event: int) -> None:
                if any(isinstance(save, Published) for save in saves):
                    loop.call_soon_threadsafe(crashed.set)
                    raise OSError("it is dead")
                super().prepare(saves, first_event)

        async with running_master(tmp_path, store=Crashing) as master, host.connected(master):
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.start(job)
            host.print(job, log)
            while host.attempts[job, 1].sent != len(log):
                await asyncio.sleep(0)
                host.pump()
            host.end(job, artifacts={"a": b"content"})
            await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        dying = tasks.create_task(first())
        await crashed.wait()
        dying.cancel()
    assert spool_files(tmp_path)["amd64-debian12-h1-1.log"] == log
    async with running_master(tmp_path) as master, host.connected(master):
        assert 1 in master.farm.jobs
        await host.until(lambda: host.heard_of(StreamsWanted) != [])
        while host.attempts and host.attempts[1, 1].sent != len(log):
            await asyncio.sleep(0)
            host.pump()
        await host.recorded(1)
        view = master.view(1)
    assert (view["outcome"], view["log"]["complete"]) == ("passed", True)
    files = spool_files(tmp_path)
    assert files["amd64-debian12-h1-1.log"] == log
    assert files["amd64-debian12-h1-1.d/a"] == b"content"
    assert len(files) == 3


async def test_logs_that_a_power_cut_took_come_back_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SYNC_S", 1000.0)
    async with farm(tmp_path) as (master, host):
        await run_one(master, host, b"small")
        view = master.view(1)
    name = tmp_path / "spool" / "amd64-debian12-h1-1"
    Path(f"{name}.log").write_bytes(b"")
    Path(f"{name}.json").unlink()
    async with running_master(tmp_path):
        pass
    assert Path(f"{name}.log").read_bytes() == b"small"
    assert orjson.loads(Path(f"{name}.json").read_bytes()) == view


async def test_what_is_synced_is_not_kept_in_the_store(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        await run_one(master, host, b"small")
        async with asyncio.timeout(5):
            while await asyncio.get_running_loop().run_in_executor(master._writer, master.store.unsynced):
                await asyncio.sleep(0)


# A full disk.


def full_twice(*, when: type) -> type[Store]:
    """A store whose disk is full at the first two batches that hold such a save."""

    class Full(Store):
        failures = 2

        def prepare(self, saves: Sequence[Any], first_event: int) -> None:
            if Full.failures and any(isinstance(save, when) for save in saves):
                Full.failures -= 1
                raise sqlite3.OperationalError("database or disk is full")
            super().prepare(saves, first_event)

    return Full


async def test_a_full_disk_delays_a_submit_and_loses_nothing(tmp_path: Path) -> None:
    store = full_twice(when=ev.SaveQueued)
    async with farm(tmp_path, store=store) as (master, host):
        seen: list[str] = []
        async with asyncio.TaskGroup() as tasks:
            submitting = tasks.create_task(master.submit((ANYWHERE, ANYWHERE)))
            while not submitting.done():
                seen.append(master.problem)
                await asyncio.sleep(0)
        assert submitting.result() == [1, 2]
        assert any("nothing can be recorded: database or disk is full" in text for text in seen)
        assert master.problem == ""
        for job in (1, 2):
            await host.assigned(job)
            host.start(job)
            host.end(job)
            await host.recorded(job)
    assert len(host.heard_of(Assign)) in (1, 2)


@pytest.mark.parametrize("complete", [True, False])
async def test_a_full_disk_delays_a_record_and_spoils_nothing(tmp_path: Path, complete: bool) -> None:
    """The files have their names already when the record fails; they are published again."""
    async with farm(tmp_path, store=full_twice(when=Published)) as (master, host):
        (job,) = await master.submit((ANYWHERE,))
        await host.assigned(job)
        host.start(job)
        host.print(job, b"printed\n")
        fields = {} if complete else {"log": log_info(b"printed\n", complete=False)}
        host.end(job, artifacts={"a": b"content"}, **fields)
        await host.recorded(job)
        view = master.view(job)
    assert view["log"] == {"bytes": 8, "sha256": log_info(b"printed\n").sha256, "complete": complete}
    files = spool_files(tmp_path)
    assert files["amd64-debian12-h1-1.log"] == b"printed\n"
    assert files["amd64-debian12-h1-1.d/a"] == b"content"
    assert orjson.loads(files["amd64-debian12-h1-1.json"]) == view


async def test_a_job_whose_record_waits_for_room_is_still_to_be_seen(tmp_path: Path) -> None:
    gate = threading.Event()

    class Waiting(Store):
        has_result = False

        def prepare(self, saves: Sequence[Any], first_event: int) -> None:
            super().prepare(saves, first_event)
            self.has_result = any(isinstance(save, Published) for save in saves)

        def commit(self) -> None:
            if self.has_result:
                gate.wait(10)
            super().commit()

    async with farm(tmp_path, store=Waiting) as (master, host):
        try:
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.start(job)
            host.print(job, b"log")
            host.end(job)
            async with asyncio.timeout(5):
                while job in master.farm.jobs:
                    await asyncio.sleep(0)
            assert master.view(job)["job"] == job
            with pytest.raises(UserError, match="is being recorded"):
                await master.cancel(job, "")
            with pytest.raises(UserError, match="has not ended yet"):
                await master.retry(job)
            async with asyncio.TaskGroup() as tasks:
                reading = [tasks.create_task(open_log(master, job, None, wait=wait)) for wait in (True, False)]
                for _ in range(5):
                    await asyncio.sleep(0)
                gate.set()
                for task in reading:
                    reader = await task
                    assert [piece async for piece in reader.pieces(0, None, follow=False)] == [b"log"]
                    reader.close()
        finally:
            gate.set()


async def test_who_waits_for_the_end_is_told_the_end(tmp_path: Path) -> None:
    """Not what was true before, in the moment between the commit and its being noticed."""
    gate, committed = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(Store):
        has_result = False

        def prepare(self, saves: Sequence[Any], first_event: int) -> None:
            super().prepare(saves, first_event)
            self.has_result = any(isinstance(save, Published) for save in saves)

        def commit(self) -> None:
            super().commit()
            if self.has_result:
                loop.call_soon_threadsafe(committed.set)
                gate.wait(10)

    async with farm(tmp_path, store=Slow) as (master, host), asyncio.TaskGroup() as tasks:
        try:
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.start(job)
            host.end(job)
            await committed.wait()
            waiting = tasks.create_task(master.wait_finished(job, 10))
            for _ in range(5):
                await asyncio.sleep(0)
        finally:
            gate.set()
        assert (await waiting)["outcome"] == "passed"


async def test_no_room_for_an_artifact_delays_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = os.makedirs, 2

    def full(path: Any, *args: Any, **more: Any) -> None:
        nonlocal failures
        if failures and ".partial" in os.fspath(path):
            failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *args, **more)

    monkeypatch.setattr(intake_module.os, "makedirs", full)
    async with running_master(tmp_path) as master:
        host = FakeCoordinator()
        async with host.connected(master):
            (job,) = await master.submit((ANYWHERE,))
            await host.assigned(job)
            host.start(job)
            host.end(job, artifacts={"a": b"content"})
            async with asyncio.timeout(5):
                while host.link.connected:
                    await asyncio.sleep(0)
        async with host.connected(master), asyncio.timeout(5):
            while host.link.connected:
                await asyncio.sleep(0)
        async with host.connected(master):
            await host.recorded(job)
        assert [item["path"] for item in master.view(job)["artifacts"]] == ["a"]


# Leases.


async def test_a_lease_ends_by_itself(tmp_path: Path) -> None:
    async with running_master(tmp_path, lease_s=0.02) as master:
        host = FakeCoordinator()
        async with host.connected(master):
            (job,) = await master.submit((replace(ANYWHERE, retries=0),))
            await host.assigned(job)
            host.start(job)
            host.print(job, b"half")
            await until_size(master, job, 4)
        view = await master.wait_finished(job, 10)
        assert (view["outcome"], view["log"]) == (
            "infra",
            {"bytes": 4, "sha256": log_info(b"half").sha256, "complete": False},
        )
        async with host.connected(master):
            await host.recorded(job)
            assert host.attempts == {}


# Source packs.


async def test_a_source_pack_is_handed_over_in_the_chunks_asked_for(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(300_000))
    async with farm(tmp_path / "home") as (master, host):
        digest = master.sources.packs.add_directory(tree)
        host.tell(SourceWanted(digest=digest, transfer=7))
        await host.until(lambda: host.heard_of(SourceOffered) != [])
        (offer,) = host.heard_of(SourceOffered)
        await host.until(lambda: len(host.data.get(7, b"")) == offer.bytes)
        recipe = wire.decompress_recipe(bytes(host.data[7]), max_bytes=1 << 20)
        assert recipe == master.sources.packs.recipe(digest)
        host.tell(ChunksWanted(digest=digest, transfer=8, chunks=(0,)))
        await host.until(lambda: host.heard_of(ChunksEnd) != [])
        (end,) = host.heard_of(ChunksEnd)
        await host.until(lambda: len(host.data.get(8, b"")) == end.bytes)
        (chunk,) = wire.decode_chunks([bytes(host.data[8])])
        assert chunk == next(master.sources.packs.chunks(digest, [0]))


@pytest.mark.parametrize(
    "wish",
    [
        SourceWanted(digest="0" * 64, transfer=-1),
        SourceWanted(digest="../../master.db", transfer=2**40),
        ChunksWanted(digest="\0", transfer=1, chunks=(0,)),
        ChunksWanted(digest="", transfer=1, chunks=(-1, 2**62)),
    ],
    ids=str,
)
async def test_a_wish_that_cannot_be_granted_harms_nobody(tmp_path: Path, wish: Any) -> None:
    async with farm(tmp_path) as (master, host):
        host.tell(wish)
        await run_one(master, host)
        assert not any(host.data.values())


@pytest.mark.parametrize("transfer", [-1, 2**32, 2**62])
async def test_a_transfer_that_has_no_channel_harms_nobody(tmp_path: Path, transfer: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x")
    async with farm(tmp_path / "home") as (master, host):
        digest = master.sources.packs.add_directory(tree)
        host.tell(SourceWanted(digest=digest, transfer=transfer))
        host.tell(ChunksWanted(digest=digest, transfer=transfer, chunks=(0,)))
        host.tell(ChunksWanted(digest=digest, transfer=1, chunks=(5,)))
        await run_one(master, host)


async def test_a_transfer_that_waits_for_ever_does_not_hold_up_the_end(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(100))
    async with asyncio.timeout(10):
        async with running_master(tmp_path / "home") as master:
            digest = master.sources.packs.add_directory(tree)
            host = FakeCoordinator()
            async with host.connected(master):
                host.tell(SourceWanted(digest=digest, transfer=7))
                await host.until(lambda: host.heard_of(SourceOffered) != [])
                state = master.hosts._links["h1"]
                state.link.session.window_bytes = 0  # no credit any more
                host.tell(ChunksWanted(digest=digest, transfer=8, chunks=(0,)))
                async with asyncio.timeout(5):
                    while not state.work:
                        await asyncio.sleep(0)


# Commands, samples, notices, events.

SAMPLE = Sample(
    at_s=1.0,
    cpu=0.5,
    memory_bytes=1,
    memory_total_bytes=2,
    load1=0.1,
    disk_read_bytes=0,
    disk_written_bytes=0,
    net_received_bytes=0,
    net_sent_bytes=0,
    running=1,
)


async def test_a_command_is_answered(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        await master.hosts.command("h1", "probe", "bookworm")
        (command,) = host.heard_of(EnvironmentCommand)
        assert (command.action, command.environment) == ("probe", "bookworm")
        host.problem = "its root tree is gone"
        with pytest.raises(UserError, match="its root tree is gone"):
            await master.hosts.command("h1", "reload")
        with pytest.raises(UserError, match="h9"):
            await master.hosts.command("h9", "reload")


async def test_a_command_without_an_answer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_module, "COMMAND_S", 0.01)
    async with farm(tmp_path) as (master, host):
        host.obey = lambda message: None  # type: ignore[method-assign]
        with pytest.raises(UserError, match="did not answer within"):
            await master.hosts.command("h1", "reload")


async def test_samples_are_sent_while_somebody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with farm(tmp_path) as (master, host), asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(master.hosts.samples("h1"))
        await host.until(lambda: host.heard_of(SamplesWanted) != [])
        host.tell(Samples(samples=(SAMPLE,) * 200))
        assert await asked == [SAMPLE] * hosts_module.SAMPLES_KEPT
        assert await master.hosts.samples("h1") == [SAMPLE] * hosts_module.SAMPLES_KEPT
        assert host.heard_of(SamplesWanted) == [SamplesWanted(wanted=True)]
        monkeypatch.setattr(hosts_module.time, "monotonic", lambda: 1e12)
        host.tell(Samples(samples=(SAMPLE,)))
        await host.until(lambda: SamplesWanted(wanted=False) in host.heard)
        monkeypatch.undo()
        with pytest.raises(UserError):
            await master.hosts.samples("h9")


async def test_who_watches_sees_every_event_once_and_in_order(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=100)
        master.subscribers.add(queue)
        before = master.next_event
        job = await run_one(master, host)
        host.tell(Notice(text="the outbox is full", job=job))
        seen = []
        async with asyncio.timeout(5):
            while not seen or seen[-1]["kind"] != "notice":
                seen.append(await queue.get())
        notice = seen.pop()
        assert (notice["id"], notice["job"], notice["text"]) == (None, job, "h1: the outbox is full")
        assert [event["id"] for event in seen] == list(range(before, master.next_event))
        assert [event["kind"] for event in seen] == ["job.queued", "job.assigned", "job.started", "job.finished"]
        assert seen == master.store.events_after(before - 1, 99)


async def test_who_does_not_read_is_cut_off_and_nobody_waits_for_him(tmp_path: Path) -> None:
    async with farm(tmp_path) as (master, host):
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=2)
        master.subscribers.add(queue)
        await run_one(master, host)
        assert master.subscribers == set()
        assert queue.full()


# Named workers.


async def test_a_named_worker_is_a_job_with_its_recipe_and_directory(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        host = FakeCoordinator(workers=(worker("web", source_path="/src"),))
        async with host.connected(master):
            await until(master, lambda: master.farm.knows("h1"))
            specs = named.start_specs(master.farm, "web", WorkerSelection(), "somebody", 2)
            (job,) = await master.submit(tuple(specs))
            assignment = await host.assigned(job)
            assert (assignment.worker, assignment.source_path) == ("web", "/src")
            assert assignment.recipe == worker("web").recipe


def transports(count: int) -> list[tuple[MemoryTransport, MemoryTransport]]:
    return [memory_pair("h1", "the master") for _ in range(count)]


async def test_many_connections_at_once_leave_one_that_works(tmp_path: Path) -> None:
    async with running_master(tmp_path) as master:
        host = FakeCoordinator()
        async with asyncio.TaskGroup() as tasks:
            pairs = transports(5)
            for mine, theirs in pairs:
                tasks.create_task(serve(master, theirs))
                await mine.send(hello_of(host))
            for _ in range(20):
                await asyncio.sleep(0)
            async with host.connected(master):
                await until(master, lambda: master.farm.knows("h1"))
                await run_one(master, host)
                for mine, _ in pairs:
                    await mine.close()
                await run_one(master, host)
                assert master.farm.knows("h1")


async def test_recorded_is_said_only_after_it_is_on_disk(tmp_path: Path) -> None:
    at_that_moment: list[Any] = []

    class Watched(FakeCoordinator):
        def obey(self, message: Any) -> None:
            if isinstance(message, AttemptRecorded):
                store = Store(tmp_path / "master.db")
                at_that_moment.append((store.finished_view(message.job), sorted(spool_files(tmp_path))))
                store.close()
            super().obey(message)

    async with running_master(tmp_path) as master:
        host = Watched()
        async with host.connected(master):
            await run_one(master, host)
    view, files = at_that_moment[0]
    assert view is not None
    assert view["outcome"] == "passed"
    assert {"amd64-debian12-h1-1.json", "amd64-debian12-h1-1.log"} <= set(files)
