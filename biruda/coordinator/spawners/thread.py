"""Kind thread: a worker inside the coordinator. Its attempts end with the coordinator."""

import asyncio
import os
import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from biruda.config import Environment
from biruda.coordinator.spawners.cgroup import make
from biruda.coordinator.spawners.forked import bounds_of, end_place, narrow, reap_cgroups, remove_place
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.limits import Bounds
from biruda.coordinator.spawners.process import facts_of_host, refuse_disk_limit
from biruda.coordinator.spawners.protocol import Capability, Place, Spawned
from biruda.coordinator.spawners.requests import Guard
from biruda.coordinator.spawners.selftest import try_out
from biruda.errors import EnvironmentFault
from biruda.model import Facts, Kind, Limits
from biruda.worker.opening import Opening
from biruda.worker.serve import serve

_END_LIMIT_S: Final = 15.0


class _Running:
    """A worker's thread, and how to end it: its connection is shut, and without a listener that is the end."""

    def __init__(self, theirs: socket.socket, opening: Opening) -> None:
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._switch = theirs.dup()
        self._thread = threading.Thread(
            target=self._run, args=(theirs, opening), name=f"worker {opening.worker}", daemon=True
        )
        self._thread.start()

    def _run(self, theirs: socket.socket, opening: Opening) -> None:
        try:
            with theirs:
                serve(theirs, None, opening)
        finally:
            self._switch.close()
            with suppress(RuntimeError):  # the loop was closed: the daemon is ending
                self._loop.call_soon_threadsafe(self.ended.set)

    def shut(self) -> None:
        with suppress(OSError):
            self._switch.shutdown(socket.SHUT_RDWR)


class ThreadSpawner:
    """Workers that are threads of this process; what they start is in a cgroup which the zygote guards."""

    kind = Kind.THREAD

    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: dict[str, _Running] = {}

    async def probe(self) -> Capability:
        """A real self-test of this kind on this host."""
        problem = self._host.cgroups.problem
        reservation = (
            f"without cgroups, so what an attempt started outlives a killed coordinator: {problem}" if problem else ""
        )
        return await try_out(self, Environment(name="probe", kind=self.kind), Facts(arch="", platform=""), reservation)

    async def prepare(self, environment: Environment) -> Facts:
        """The facts of the host. Raises EnvironmentFault for limits or a user that cannot be."""
        self._require(environment.name, bounds_of(environment))
        return await asyncio.to_thread(facts_of_host, self._host, environment)

    def _require(self, what: str, bounds: Bounds) -> None:
        """Only version 2 will do: what a thread starts goes into one cgroup, and the thread itself into none."""
        missing = [name for name in bounds.controllers if name not in self._host.cgroups.controllers]
        if missing:
            raise EnvironmentFault(
                f"{what}: a limit on {missing[0]} cannot be held in an environment of kind thread on this host",
                hint="use an environment of kind process, or take the limit out",
            )

    def plan(self, environment: Environment, worker: str, nonce: str, directory: Path) -> Place:
        """What spawn() will make. Pure."""
        unified, _ = self._host.cgroups.orders(self._host.cgroup_name(self.kind, worker), Bounds())
        return Place(
            worker=worker,
            kind=self.kind,
            environment=environment.name,
            nonce=nonce,
            directory=str(directory),
            cgroups=(unified.path,) if unified else (),
        )

    async def spawn(
        self, environment: Environment, place: Place, facts: Facts, *, lease_s: float, guess: bool
    ) -> Spawned:
        """Make it. Raises EnvironmentFault; then nothing of the place is left."""
        bounds = bounds_of(environment)
        self._require(environment.name, bounds)
        unified, _ = self._host.cgroups.orders(self._host.cgroup_name(self.kind, place.worker), bounds)
        opening = Opening(
            worker=place.worker,
            nonce=place.nonce,
            kind=self.kind,
            work=f"{place.directory}/work",
            lease_s=lease_s,
            room_path=f"{place.directory}/log",
            room_bytes=self._host.room_bytes,
            cgroup=unified.path if unified else "",
            reuse=True,
            guess=guess,
            user=environment.user,
        )
        try:
            os.makedirs(place.directory, mode=0o711, exist_ok=True)
            if unified:
                make(unified)
                await self._host.zygote.guard(Guard(directory=place.directory, cgroups=place.cgroups))
        except BaseException as error:
            await self.dispose(place)
            if not isinstance(error, OSError):
                raise
            raise EnvironmentFault(f"{error.filename}: {os.strerror(error.errno or 0)}") from None
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._running[place.worker] = _Running(theirs, opening)
        return Spawned(place=place, connection=ours, pidfd=-1)

    async def attach(self, place: Place) -> Spawned:
        """There is none: a thread's end is that of its connection."""
        raise ConnectionRefusedError(f"worker {place.worker} is a thread")

    async def limit(self, place: Place, limits: Limits) -> None:
        """Narrow a spare worker's cgroup to an attempt's limits. Raises EnvironmentFault where they cannot be held."""
        refuse_disk_limit(self.kind, limits)
        self._require(
            f"worker {place.worker}", Bounds(memory_bytes=limits.memory_bytes, pids=limits.pids, cpus=limits.cpus)
        )
        await narrow(self._host, place, limits)

    async def kill(self, place: Place) -> None:
        """The thread and all that it started have ended on return. Raises EnvironmentFault if something does not."""
        running = self._running.get(place.worker)
        if running is not None:
            running.shut()
        await end_place(place)
        if running is None:
            return
        try:
            async with asyncio.timeout(_END_LIMIT_S):
                await running.ended.wait()
        except TimeoutError:
            raise EnvironmentFault(f"worker {place.worker}: its thread does not end") from None
        await end_place(place)  # what it started between the two

    async def dispose(self, place: Place) -> None:
        """Cgroup and directory of a dead place are gone on return."""
        self._running.pop(place.worker, None)
        await remove_place(self._host, place)

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End and remove what carries this instance's mark but is of no worker in `owned`; one sentence for each."""
        return await reap_cgroups(self._host, self.kind, owned)
