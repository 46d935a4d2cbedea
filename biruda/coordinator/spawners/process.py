"""Kind process: a worker on this host, in a process and a cgroup of its own. Needs no rights."""

import asyncio
import os
from collections.abc import Collection
from pathlib import Path

from biruda.config import Environment
from biruda.coordinator.spawners.forked import attach, bear, bounds_of, end_place, narrow, reap_cgroups, remove_place
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.limits import require
from biruda.coordinator.spawners.protocol import Capability, Place, Spawned
from biruda.coordinator.spawners.requests import Birth
from biruda.coordinator.spawners.selftest import try_out
from biruda.errors import EnvironmentFault
from biruda.guessenv import guess
from biruda.model import Facts, Kind, Limits
from biruda.worker.opening import Opening


class ProcessSpawner:
    """Workers that see the host as it is, and serve attempt after attempt."""

    kind = Kind.PROCESS

    def __init__(self, host: Host) -> None:
        self._host = host

    async def probe(self) -> Capability:
        """A real self-test of this kind on this host."""
        problem = self._host.cgroups.problem
        reservation = (
            f"without cgroups, so attempts are ended by looking for their processes: {problem}" if problem else ""
        )
        return await try_out(self, Environment(name="probe"), Facts(arch="", platform=""), reservation)

    async def prepare(self, environment: Environment) -> Facts:
        """The facts of the host. Raises EnvironmentFault for limits or a user that cannot be."""
        return await asyncio.to_thread(facts_of_host, self._host, environment)

    def plan(self, environment: Environment, worker: str, nonce: str, directory: Path) -> Place:
        """What spawn() will make. Pure."""
        return Place(
            worker=worker,
            kind=self.kind,
            environment=environment.name,
            nonce=nonce,
            directory=str(directory),
            cgroups=self._host.cgroups.directories(self._host.cgroup_name(self.kind, worker)),
        )

    async def spawn(
        self, environment: Environment, place: Place, facts: Facts, *, lease_s: float, guess: bool
    ) -> Spawned:
        """Make it. Raises EnvironmentFault; then nothing of the place is left."""
        bounds = bounds_of(environment)
        require(self._host.cgroups, bounds)
        unified, joined = self._host.cgroups.orders(self._host.cgroup_name(self.kind, place.worker), bounds)
        opening = Opening(
            worker=place.worker,
            nonce=place.nonce,
            kind=self.kind,
            work=f"{place.directory}/work",
            lease_s=lease_s,
            room_path=f"{place.directory}/log",
            room_bytes=self._host.room_bytes,
            subreaper=True,
            cgroup=unified.path if unified else "",
            reuse=True,
            guess=guess,
            user=environment.user,
        )
        birth = Birth(directory=place.directory, opening=opening, cgroup=unified, joined=joined, cgroups=place.cgroups)
        return await bear(self._host, place, birth)

    async def attach(self, place: Place) -> Spawned:
        """Another connection to the living worker of a place. Raises OSError."""
        return await attach(place)

    async def limit(self, place: Place, limits: Limits) -> None:
        """Narrow a spare worker's cgroups to an attempt's limits. Raises EnvironmentFault where they cannot be held."""
        refuse_disk_limit(self.kind, limits)
        await narrow(self._host, place, limits)

    async def kill(self, place: Place) -> None:
        """Every process of the place has ended on return. Raises EnvironmentFault if one cannot be killed."""
        await end_place(place)

    async def dispose(self, place: Place) -> None:
        """Cgroups and directory of a dead place are gone on return."""
        await remove_place(self._host, place)

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End and remove what carries this instance's mark but is of no worker in `owned`; one sentence for each."""
        return await reap_cgroups(self._host, self.kind, owned)


def facts_of_host(host: Host, environment: Environment) -> Facts:
    """What this host is. Raises EnvironmentFault when it cannot give what the environment's configuration promises."""
    require(host.cgroups, bounds_of(environment))
    refuse_foreign_user(environment)
    return facts_of_root("/")


def facts_of_root(root: str) -> Facts:
    """What a root tree is, by looking. Raises OSError when it is no directory."""
    seen = guess(root)
    return Facts(
        arch=seen.arch,
        platform=seen.platform,
        libc=seen.libc,
        bits=seen.bits or 64,
        emulated=seen.emulated,
        evidence=seen.evidence,
    )


def refuse_foreign_user(environment: Environment) -> None:
    """Raises EnvironmentFault for steps that are to run as another user than this daemon is allowed to become."""
    if environment.user and os.geteuid() != 0 and environment.user != str(os.geteuid()):
        raise EnvironmentFault(
            f"environment {environment.name}: user {environment.user!r} needs a daemon that runs as root",
            hint="take the user out, or run biruda as root",
        )


def refuse_disk_limit(kind: Kind, limits: Limits) -> None:
    """Raises EnvironmentFault where there is no throw-away layer that could be bounded."""
    if limits.disk_bytes:
        raise EnvironmentFault(
            f"a limit on disk space cannot be held in an environment of kind {kind}",
            hint="use one of kind chroot, or take the limit out",
        )
