"""Workers of every kind: made by a spawner, spoken with through the worker's own test peer. Needs no pytest."""

import asyncio
import itertools
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biruda.config import Environment
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.protocol import Place, Spawned, Spawner
from biruda.model import AttemptResult, Facts, Kind, Step
from tests.worker.peer import NONCE, Peer, recipe_of

_counter = itertools.count(1)


def script(text: str) -> Step:
    """A step whose command line does not show its text."""
    return Step(name="check", argv=("/bin/sh",), script=text)


@dataclass
class Made:
    """A worker that a spawner made, and a peer to speak with it."""

    spawner: Spawner
    spawned: Spawned
    peer: Peer

    @property
    def place(self) -> Place:
        return self.spawned.place

    async def run(self, text: str, **fields: Any) -> AttemptResult:
        """Run one step of shell in it."""
        return await asyncio.to_thread(self.peer.run, script(text), **fields)

    async def begin(self, text: str, until: str = "ready\n") -> None:
        """Start one step of shell and wait for what it prints."""
        await asyncio.to_thread(self._begin, text, until)

    def _begin(self, text: str, until: str) -> None:
        self.peer.attach()
        self.peer.assign(recipe_of(script(text)))
        self.peer.until(lambda: until.encode() in bytes(self.peer.log.head))

    @property
    def output(self) -> str:
        return bytes(self.peer.log.head).decode()

    async def unmake(self) -> None:
        """Kill and dispose, and close what is the caller's."""
        await self.spawner.kill(self.place)
        await self.spawner.dispose(self.place)
        self.close()

    def close(self) -> None:
        self.peer.close()
        if self.spawned.pidfd >= 0:
            with suppress(OSError):
                os.close(self.spawned.pidfd)


@dataclass
class Kit:
    """One kind on one host."""

    host: Host
    spawner: Spawner
    environment: Environment
    directory: Path
    made: list[Made] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        return self.spawner.kind

    async def make(self, environment: Environment | None = None, facts: Facts | None = None) -> Made:
        """A new worker, undone at the end of the test."""
        environment = environment or self.environment
        facts = facts or await self.spawner.prepare(environment)
        worker = f"w{next(_counter)}"
        place = self.spawner.plan(environment, worker, NONCE, self.directory / worker)
        spawned = await self.spawner.spawn(environment, place, facts, lease_s=20, guess=False)
        made = Made(self.spawner, spawned, Peer(spawned.connection, spawned.incoming))
        self.made.append(made)
        return made

    async def close(self) -> None:
        for made in self.made:
            await made.unmake()
