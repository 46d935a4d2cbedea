"""The one seam behind which environments of every kind are made.

Order of calls for one worker: plan() (pure), then the caller writes the Place into its ledger, then spawn(), limit() at
most once when an attempt is given to it (a worker that was limited is not used again), kill(), dispose(). attach()
gives another connection to what lives, after one that broke. attach(), kill() and dispose() work from the Place alone,
so also in a later process; kill() and dispose() may be called twice, and at once for different places.
probe() and prepare() may be slow and are cached by the caller. reap() finds what carries this instance's mark and this
kind's, and belongs to no place that is still owned.
"""

import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from biruda.config import Environment
from biruda.model import Facts, Kind, Limits
from biruda.worker.opening import log_path


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
    directory: str  # on the host, made by spawn(): `sock` (the listening socket), log_file(), `work`
    cgroups: tuple[str, ...] = ()  # directories that may come to be, the cgroup v2 one first where there is one
    veth: str = ""  # the host's end
    pid: int = 0  # known after spawn()
    start_ticks: int = 0  # with pid names a process for ever (proc(5), stat field 22)
    permanent: bool = False  # its worker serves attempt after attempt, and none of them finds it as new


HOST_KINDS: Final = frozenset({Kind.THREAD, Kind.PROCESS, Kind.CHROOT})
"""Their workers see this host's files, and write what an attempt prints to its file themselves."""


def log_file(place: "Place", job: int, attempt: int) -> str:
    """The file on this host in which the log of a place's attempt is."""
    path = f"{place.directory}/log"
    return log_path(path, job, attempt) if place.kind in (Kind.THREAD, Kind.PROCESS) else path


MOST_LEASE_S: Final[Mapping[Kind, float]] = {Kind.SSH: 90.0}
"""Where nobody can come back, a worker ends itself before its coordinator gives up, so that no attempt runs twice."""


class Incoming(Protocol):
    """Makes the bytes of frames of what comes over a connection, where that is not all it carries."""

    farewell: bytes  # to be written when the connection is given up; b"": who is left sees that by itself

    def feed(self, data: bytes) -> bytes:
        """The bytes of frames in the connection's next bytes."""

    @property
    def said(self) -> str:
        """What the worker wrote to its standard error lately, where the connection carries that too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """A worker that has been made or found again; its WorkerHello comes over the connection."""

    place: Place  # with pid and start_ticks
    connection: socket.socket  # non-blocking stream, the caller's to close
    pidfd: int  # readable when the worker has ended, the caller's to close; -1 for kind thread
    incoming: Incoming | None = None  # None: what comes is frames
    arch: str = ""  # that the injected executable was made for, "" where there is none


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

    async def attach(self, place: Place) -> Spawned:
        """Another connection to the living worker of a place. Raises OSError: it has ended, or cannot be reached."""

    async def limit(self, place: Place, limits: Limits) -> None:
        """Narrow a spare worker's cgroups to an attempt's limits. Raises EnvironmentFault where they cannot be held."""

    async def kill(self, place: Place) -> None:
        """Every process of the place has ended on return. Raises EnvironmentFault if one cannot be killed."""

    async def dispose(self, place: Place) -> None:
        """Cgroups, interfaces and directory of a dead place are gone on return."""

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End and remove what carries this instance's mark but is of no worker in `owned`; one sentence for each."""


@runtime_checkable
class Warming(Protocol):
    """A spawner that can make later spawns of an environment faster by work of seconds."""

    async def warm(self, environment: Environment) -> tuple[str, ...]:
        """Do it, in the background after prepare(); what came of it, in sentences for who looks at the environment.

        May be called again. Where it fails, spawn() works all the same, and the sentences say why it is slower.
        """

    async def cool(self, environment: Environment) -> None:
        """Nothing of what warm() made is left: the environment was removed."""
