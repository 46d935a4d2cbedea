"""The one seam behind which environments of every kind are made.

Order of calls for one worker: plan() (pure), then the caller writes the Place into its ledger, then spawn(), limit() at
most once when an attempt is given to it (a worker that was limited is not used again), kill(), dispose(). kill() and
dispose() work from the Place alone, so also in a later process, may be called twice, and at once for different places.
probe() and prepare() may be slow and are cached by the caller. reap() finds what carries this instance's mark and this
kind's, and belongs to no place that is still owned.
"""

import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from biruda.config import Environment
from biruda.model import Facts, Kind, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Whether a kind works on this host: the result of a real self-test."""

    usable: bool
    reason: str = ""  # why not, and the one thing that is missing
    measured_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Everything that one worker will occupy on the host, known before any of it is made. Has a JSON form (convert)."""

    worker: str
    kind: Kind
    environment: str
    nonce: str
    directory: str  # on the host, made by spawn(): `sock` (the listening socket), `log` (the room), `work`
    cgroups: tuple[str, ...] = ()  # directories that may come to be, the cgroup v2 one first where there is one
    veth: str = ""  # the host's end
    pid: int = 0  # known after spawn()
    start_ticks: int = 0  # with pid names a process for ever (proc(5), stat field 22)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """A worker that has been made; its WorkerHello comes over the connection."""

    place: Place  # with pid and start_ticks
    connection: socket.socket  # non-blocking stream, the caller's to close
    pidfd: int  # readable when the worker has ended, the caller's to close; -1 for kind thread


class Spawner(Protocol):
    """One kind of environment."""

    kind: Kind

    async def probe(self) -> Capability:
        """A real self-test of this kind on this host."""

    async def prepare(self, environment: Environment) -> Facts:
        """The facts of an environment that can be used, by looking. Raises EnvironmentFault: missing, foreign root."""

    def plan(self, environment: Environment, worker: str, nonce: str, directory: Path) -> Place:
        """What spawn() will make. Pure."""

    async def spawn(
        self, environment: Environment, place: Place, facts: Facts, *, lease_s: float, guess: bool
    ) -> Spawned:
        """Make it. Raises EnvironmentFault; then nothing of the place is left."""

    async def limit(self, place: Place, limits: Limits) -> None:
        """Narrow a spare worker's cgroups to an attempt's limits. Raises EnvironmentFault where they cannot be held."""

    async def kill(self, place: Place) -> None:
        """Every process of the place has ended on return. Raises EnvironmentFault if one cannot be killed."""

    async def dispose(self, place: Place) -> None:
        """Cgroups, interfaces and directory of a dead place are gone on return."""

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End and remove what carries this instance's mark but is of no worker in `owned`; one sentence for each."""
