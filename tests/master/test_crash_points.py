"""The master may die before any of its writes and any of its acts: what is on disk then is a state to go on from.

One life of a master is lived, with a real store, a real spool and a coordinator that does what docs/protocol.md says.
Before each write, each transaction and each message to the coordinator, its files are copied as they are, and it is
noted what others had seen by then. From each copy a new master starts, the coordinator comes back with what it had, and
everything must end as if nothing had happened.
"""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from biruda.link import Link
from biruda.master import service as service_module
from biruda.master.service import Master
from biruda.master.store import Store
from biruda.messages import AttemptRecorded
from biruda.model import Outcome
from tests.fakes import FakeAttempt, FakeCoordinator, job_spec, running_master

LOGS = {1: b"first\n", 2: b"x" * 200_000, 3: b"until it was cancelled\n", 4: b"", 5: b"again and again\n"}
ARTIFACTS = {1: {"a": b"same", "b/c": b"same", "empty": b"", "none": b""}, 2: {"large": bytes(300_000)}}


@dataclass
class Moment:
    """What was there before one act of the master."""

    act: str
    home: Path
    acknowledged: list[int]
    seen: list[dict[str, Any]]  # events
    recorded: set[tuple[int, int]]  # what the coordinator was told to forget
    held: dict[tuple[int, int], FakeAttempt]


@dataclass
class Camera:
    """Takes a picture before each act."""

    home: Path
    album: Path
    host: FakeCoordinator
    acknowledged: list[int] = field(default_factory=list)
    seen: "asyncio.Queue[dict[str, Any]]" = field(default_factory=asyncio.Queue)
    moments: list[Moment] = field(default_factory=list)
    _turn: threading.RLock = field(default_factory=threading.RLock)
    _is_at_it: bool = False

    def before(self, act: str) -> None:
        with self._turn:
            if self._is_at_it:
                return
            self._is_at_it = True
            try:
                copy = self.album / str(len(self.moments))
                shutil.copytree(self.home, copy)
                held = {
                    key: replace(attempt, log=bytearray(attempt.log), artifacts=list(attempt.artifacts))
                    for key, attempt in list(self.host.attempts.items())
                }
                recorded = {(each.job, each.attempt) for each in self.host.heard_of(AttemptRecorded)}
                seen = [event for event in list(self.seen._queue) if event["id"] is not None]  # type: ignore[attr-defined]
                self.moments.append(Moment(act, copy, list(self.acknowledged), seen, recorded, held))
            finally:
                self._is_at_it = False

    def is_ours(self, *args: Any) -> bool:
        """Whether an operation is on a file of this home."""
        for arg in args[:2]:
            name = arg
            if isinstance(arg, int):
                try:
                    name = os.readlink(f"/proc/self/fd/{arg}")
                except OSError:
                    continue
            if isinstance(name, str | Path) and str(name).startswith(str(self.home)):
                return True
        return False


FILE_ACTS = ("replace", "rename", "unlink", "link", "write", "pwrite", "ftruncate", "fsync", "mkdir", "rmdir")
OTHER_ACTS = ((Store, "prepare"), (Store, "commit"), (Store, "synced"), (Link, "post"))


@contextmanager
def watched(camera: Camera, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pictures are taken within the block."""

    def before(name: str, act: Callable[..., Any], *, of_a_file: bool) -> Callable[..., Any]:
        def acted(*args: Any, **more: Any) -> Any:
            if not of_a_file or camera.is_ours(*args):
                camera.before(name)
            return act(*args, **more)

        return acted

    with patch.context() as within:
        for name in FILE_ACTS:
            within.setattr(os, name, before(name, getattr(os, name), of_a_file=True))
        for owner, name in OTHER_ACTS:
            within.setattr(owner, name, before(f"{owner.__name__}.{name}", getattr(owner, name), of_a_file=False))
        yield


async def a_life(camera: Camera, patch: pytest.MonkeyPatch) -> None:
    """Jobs that pass, are run again, are cancelled, wait for ever, and are asked for again."""
    host = camera.host
    async with running_master(camera.home) as master:
        master.subscribers.add(camera.seen)
        with watched(camera, patch):
            async with host.connected(master):
                camera.acknowledged += await master.submit((job_spec(), job_spec(), job_spec()))
                camera.acknowledged += await master.submit((job_spec(env="nowhere"), job_spec()))
                for job in (1, 2, 3, 5):
                    await host.assigned(job)
                    host.start(job)
                host.print(1, LOGS[1][:3])
                host.print(1, LOGS[1][3:])
                host.end(1, artifacts=ARTIFACTS[1])
                await host.recorded(1)
                host.print(2, LOGS[2][:1000])
                host.end(2, Outcome.INFRA)
                await host.recorded(2)
                await host.assigned(2, 2)
                host.start(2, 2)
                host.print(2, LOGS[2], 2)
                host.end(2, attempt=2, artifacts=ARTIFACTS[2])
                await host.recorded(2, 2)
                await master.cancel(3, "not wanted")
                host.print(3, LOGS[3])
                host.end(3, Outcome.CANCELLED)
                await host.recorded(3)
                host.print(5, LOGS[5])
                host.end(5, Outcome.FAILED, exit_status=7)
                await host.recorded(5)
                await master.retry(5)
                await host.assigned(5, 2)
                host.start(5, 2)
                host.print(5, LOGS[5], 2)
                host.end(5, attempt=2)
                await host.recorded(5, 2)
                await asyncio.sleep(0.05)  # the spool is synced, and the store tidied up


async def goes_on(moment: Moment) -> None:
    """A new master over what was there; its coordinator comes back and ends what it has and gets."""
    store = Store(moment.home / "master.db")
    remembered = store.events_after(0, 10_000)
    assert remembered[: len(moment.seen)] == moment.seen, "somebody saw what is not on disk"
    for job in moment.acknowledged:
        assert store.job_spec(job) is not None, f"job {job} was acknowledged"
    for job, attempt in moment.recorded:
        assert store.attempt(job, attempt) is not None, f"{job}.{attempt} was forgotten and is not on disk"
    store.close()
    host = FakeCoordinator(slots=8)
    host.attempts.update(moment.held)
    async with running_master(moment.home) as master:
        master.farm.check()
        async with host.connected(master), asyncio.timeout(20):
            while host.attempts or {*master.farm.jobs, *master.farm.leaving} - {4}:
                for (job, attempt), held in list(host.attempts.items()):
                    if held.result is None:
                        work(host, job, attempt)
                await asyncio.sleep(0.001)  # both sides of the link tell of nothing else that could be waited for
        check(master, moment)


def work(host: FakeCoordinator, job: int, attempt: int) -> None:
    """Run an attempt to its end, from wherever it was."""
    held = host.attempts[job, attempt]
    if not held.started:
        host.start(job, attempt)
    log = LOGS[job][:1000] if (job, attempt) == (2, 1) else LOGS[job]
    host.print(job, log[len(held.log) :], attempt)
    outcome = {(2, 1): Outcome.INFRA, (3, 1): Outcome.CANCELLED, (5, 1): Outcome.FAILED}.get((job, attempt))
    host.end(job, outcome or Outcome.PASSED, attempt, {} if outcome else ARTIFACTS.get(job))


def check(master: Master, moment: Moment) -> None:
    master.farm.check()
    events = master.store.events_after(0, 10_000)
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    for job in (1, 2, 3, 5):
        if master.store.job_spec(job) is None:
            assert job not in moment.acknowledged
            continue
        view = master.view(job)
        assert view["state"] == "finished", view
        kinds = [event["kind"] for event in events if event["job"] == job]
        asked_again = sum(one == "job.finished" and two == "job.queued" for one, two in pairwise(kinds))
        assert kinds.count("job.finished") == 1 + asked_again
        assert asked_again <= (job == 5)
        if view["outcome"] in ("passed", "failed"):
            assert (master.spool.directory / f"{view['spool']}.log").read_bytes() == LOGS[job]
            assert view["log"]["complete"]
        wanted = ARTIFACTS.get(job, {}) if view["outcome"] == "passed" else {}
        assert {item["path"] for item in view["artifacts"]} == set(wanted)
        there = master.spool.directory / f"{view['spool']}.d"
        assert {
            os.path.relpath(path, there): path.read_bytes() for path in there.rglob("*") if path.is_file()
        } == wanted
    assert list((master.spool.directory / ".partial").iterdir()) == []


async def test_every_prefix_of_its_writes_is_a_state_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SYNC_S", 0.02)
    album = tmp_path / "album"
    album.mkdir()
    camera = Camera(tmp_path / "home", album, FakeCoordinator(slots=8))
    await a_life(camera, monkeypatch)
    acts = [moment.act for moment in camera.moments]
    print(len(acts), "moments:", {act: acts.count(act) for act in sorted(set(acts))})
    assert {"Store.prepare", "Store.commit", "Link.post", "replace", "pwrite", "link", "fsync"} <= set(acts)
    for number, moment in enumerate(camera.moments):
        try:
            await goes_on(moment)
        except BaseException as error:
            error.add_note(
                f"after a crash at act {number}, before {moment.act}; {acts[max(0, number - 8) : number + 3]}"
            )
            raise
