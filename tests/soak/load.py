"""The jobs of a round, and who submits them, cancels some, and follows the event stream all the while."""

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.soak.field import Field

SIZES = (0, 1, 200, 4096, 20_000, 70_000, 70_001, 300_000)
STATUSES = (0, 0, 0, 0, 0, 1, 3, 77)


@dataclass
class Job:
    """One job: what it will print, write and exit with; and what became of asking for it."""

    key: str
    at_s: float  # after the round's begin
    requirements: dict[str, str]
    seed: int
    size: int
    chunk: int
    pause_us: int
    status: int
    artifacts: list[tuple[str, int, int]]  # path, seed, bytes
    lingers: bool
    retries: int | None
    priority: int
    cancel_after_s: float | None
    number: int | None = None  # None: nobody said that it was taken
    cancelled: bool = False  # asked for, and taken

    def body(self) -> dict[str, Any]:
        """The request."""
        steps = [
            {"name": "print", "argv": ["noise", "out", *map(str, (self.seed, self.size, self.chunk, self.pause_us))]}
        ]
        if self.artifacts:
            steps.append({"name": "mkdir", "argv": ["mkdir", "-p", "out/deep"]})
        for path, seed, size in self.artifacts:
            steps.append({"name": path, "argv": ["noise", "file", str(seed), str(size), path]})
        if self.lingers:
            steps.append({"name": "linger", "argv": ["noise", "linger"]})
        steps.append({"name": "end", "argv": ["sh", "-c", f"exit {self.status}"]})
        body = {
            "name": self.key,
            "requirements": self.requirements,
            "priority": self.priority,
            "recipe": {
                "steps": steps,
                "artifacts": ["out/**"] if self.artifacts else [],
                "limits": {"grace_s": 0.5},
            },
        }
        return body if self.retries is None else {**body, "retries": self.retries}


def plan(chance: random.Random, name: str, span_s: float, rate: float, offers: Sequence[dict[str, str]]) -> list[Job]:
    """The jobs of a round, by time."""
    jobs: list[Job] = []
    at_s = 0.0
    while at_s < span_s:
        burst = chance.choice((1, 1, 1, 1, 2, 5))
        for _ in range(burst):
            jobs.append(_job(chance, f"{name}-{len(jobs)}", at_s, offers))
        at_s += chance.expovariate(rate) * burst
    return jobs


def _job(chance: random.Random, key: str, at_s: float, offers: Sequence[dict[str, str]]) -> Job:
    size = chance.choice(SIZES)
    chunk = max(1, min(size // chance.randint(1, 40), 60_000))
    pieces = size / chunk
    length_s = chance.choice((0.0, 0.0, 0.2, 0.5, 1.5, 3.0))
    artifacts = []
    if chance.random() < 0.3:
        for number in range(chance.randint(1, 3)):
            where = chance.choice(("out/", "out/deep/"))
            seed = chance.randint(1, 5) if chance.random() < 0.3 else chance.getrandbits(62) | 1  # some are equal
            artifacts.append((f"{where}file {number}", seed, chance.choice((0, 1, 5000, 100_000))))
    return Job(
        key=key,
        at_s=round(at_s, 3),
        requirements=dict(chance.choice(offers)),
        seed=chance.getrandbits(62) | 1,
        size=size,
        chunk=chunk,
        pause_us=int(length_s * 1e6 / pieces) if pieces else 0,
        status=chance.choice(STATUSES),
        artifacts=artifacts,
        lingers=chance.random() < 0.1,
        retries=0 if chance.random() < 0.1 else None,
        priority=chance.choice((0, 0, 0, 5, -5)),
        cancel_after_s=chance.uniform(0, 1.5) if chance.random() < 0.08 else None,
    )


async def ask_for_all(field_: Field, jobs: Sequence[Job], begin_s: float) -> None:
    """Submit each in its time. What is refused or not answered is not asked for again."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        for at_s in sorted({job.at_s for job in jobs}):
            await asyncio.sleep(max(0.0, begin_s + at_s - loop.time()))
            batch = [job for job in jobs if job.at_s == at_s]
            tasks.create_task(_ask(field_, batch))


async def _ask(field_: Field, batch: Sequence[Job]) -> None:
    try:
        async with asyncio.timeout(30):
            status, answer = await field_.post("/api/v1/jobs", {"jobs": [job.body() for job in batch]})
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return
    assert status == 201, f"{status} {answer}"
    for job, number in zip(batch, answer["jobs"], strict=True):
        job.number = number
    async with asyncio.TaskGroup() as tasks:
        for job in batch:
            if job.cancel_after_s is not None:
                tasks.create_task(_cancel(field_, job, job.cancel_after_s))


async def _cancel(field_: Field, job: Job, after_s: float) -> None:
    await asyncio.sleep(after_s)
    with suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
        status, _ = await field_.post(f"/api/v1/jobs/{job.number}/cancel", {"reason": "the soak does not want it"})
        job.cancelled = status == 202


@dataclass
class Watcher:
    """A follower of the event stream, which goes on after the last event that it has seen."""

    field_: Field
    path: Path  # a JSON line for each event
    last: int = 0
    gaps: list[str] = field(default_factory=list)
    connections: int = 0

    async def run(self) -> None:
        """For ever."""
        assert self.field_.session is not None
        with self.path.open("a") as file:
            while True:
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    url = f"http://m/api/v1/events?after={self.last}"
                    async with self.field_.session.ws_connect(url, heartbeat=5) as socket:
                        self.connections += 1
                        async for message in socket:
                            if message.type is aiohttp.WSMsgType.TEXT:
                                self._take(json.loads(message.data), file)
                await asyncio.sleep(0.1)

    def _take(self, event: dict[str, Any], file: Any) -> None:
        if event["id"] is None:
            return
        if event["id"] != self.last + 1:
            self.gaps.append(f"after event {self.last} came {event['id']}")
        self.last = event["id"]
        file.write(json.dumps(event) + "\n")
        file.flush()
