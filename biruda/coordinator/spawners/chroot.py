"""Kind chroot: a worker in a throw-away copy of a root tree, in namespaces of its own."""

import asyncio
import os
import re
import socket
import tempfile
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

from biruda.config import Environment, Network
from biruda.coordinator.spawners import emulation, syscalls
from biruda.coordinator.spawners.forked import (
    READY_LIMIT_S,
    attach,
    bear,
    bounds_of,
    end_place,
    narrow,
    reap_cgroups,
    remove_place,
)
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.injected import ROOM_BYTES
from biruda.coordinator.spawners.limits import Bounds, require
from biruda.coordinator.spawners.operations import dump_plan
from biruda.coordinator.spawners.process import facts_of_root, refuse_foreign_user
from biruda.coordinator.spawners.protocol import Capability, Place, Spawned
from biruda.coordinator.spawners.requests import ROOM_FD, Birth, Resize
from biruda.coordinator.spawners.roots import Root, root_plan
from biruda.coordinator.spawners.selftest import try_out
from biruda.coordinator.spawners.zygote_link import hear
from biruda.errors import EnvironmentFault
from biruda.guessenv import canonical_arch, relation
from biruda.model import Facts, Kind, Limits
from biruda.worker.opening import Opening

DEFAULT_PIDS: Final = 4096
"""What the configuration says when nobody said anything; not insisted on where it cannot be held."""

WORK: Final = "/build"

_NAMESPACES: Final = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS


class ChrootSpawner:
    """Workers in a copy of the environment's root, for one attempt each."""

    kind = Kind.CHROOT

    def __init__(self, host: Host) -> None:
        self._host = host

    async def probe(self) -> Capability:
        """A real self-test of this kind on this host, in an empty root: a worker needs nothing of it."""
        lacking = self._host.cgroups.missing(Bounds(pids=DEFAULT_PIDS))
        notes = [f"the number of processes has no limit, as there is no {name} controller" for name in lacking]
        if os.geteuid() != 0:
            notes.append("without root only files of this user can be changed inside, so few packages can be installed")
        with tempfile.TemporaryDirectory(prefix="biruda-root-") as root:
            environment = Environment(name="probe", kind=self.kind, root=root)
            return await try_out(self, environment, Facts(arch=host_arch(), platform=""), "; ".join(notes))

    async def prepare(self, environment: Environment) -> Facts:
        """The facts of an environment that can be used. Raises EnvironmentFault: missing, empty, foreign root."""
        return await asyncio.to_thread(self._examine, environment)

    def _examine(self, environment: Environment) -> Facts:
        where = f"environment {environment.name}"
        _look_at(where, environment)
        refuse_foreign_user(environment)
        if os.geteuid() != 0 and environment.network is Network.BRIDGE:
            raise EnvironmentFault(f'{where}: network "bridge" needs root', hint='set network = "none" or "host"')
        require(self._host.cgroups, self._insisted(environment))
        facts = facts_of_root(environment.root)
        arch = environment.arch or facts.arch
        if arch == "unknown":
            raise EnvironmentFault(
                f"{where}: nothing in {environment.root} tells its architecture: no /bin/sh nor another known program",
                hint="set arch in its configuration, or make the root tree again",
            )
        if relation(arch, host_arch()) != "foreign":
            return facts
        emulation.require(where, arch, host_arch())
        return replace(facts, emulated=True)

    def _insisted(self, environment: Environment) -> Bounds:
        """The bounds that must hold: all but a default."""
        bounds = bounds_of(environment)
        if bounds.pids != DEFAULT_PIDS:
            return bounds
        return Bounds(memory_bytes=bounds.memory_bytes, cpus=bounds.cpus)

    def plan(self, environment: Environment, worker: str, nonce: str, directory: Path) -> Place:
        """What spawn() will make. Pure."""
        return Place(
            worker=worker,
            kind=self.kind,
            environment=environment.name,
            nonce=nonce,
            directory=str(directory),
            cgroups=self._host.cgroups.directories(self._host.cgroup_name(self.kind, worker)),
            veth=self._host.bridge.veth(worker) if environment.network is Network.BRIDGE else "",
        )

    async def spawn(
        self, environment: Environment, place: Place, facts: Facts, *, lease_s: float, guess: bool
    ) -> Spawned:
        """Make it. Raises EnvironmentFault; then nothing of the place is left."""
        require(self._host.cgroups, self._insisted(environment))
        name = self._host.cgroup_name(self.kind, place.worker)
        unified, joined = self._host.cgroups.orders(name, bounds_of(environment))
        opening = Opening(
            worker=place.worker,
            nonce=place.nonce,
            kind=self.kind,
            work=WORK,
            lease_s=lease_s,
            room_fd=-1 if environment.permanent else ROOM_FD,  # a file inside cannot be changed for the next attempt
            room_bytes=self._host.room_bytes,
            memory_room_bytes=ROOM_BYTES,
            reuse=environment.permanent,
            owns_pids=True,
            guess=guess,
            user=environment.user,
        )
        namespaces = _NAMESPACES
        namespaces |= 0 if environment.network is Network.HOST else syscalls.CLONE_NEWNET
        namespaces |= 0 if os.geteuid() == 0 else syscalls.CLONE_NEWUSER
        birth = Birth(
            directory=place.directory,
            opening=opening,
            cgroup=unified,
            joined=joined,
            namespaces=namespaces,
            plan=_plan_text(environment_root(environment, facts)),
            cgroups=place.cgroups,
        )
        return await bear(self._host, place, birth)

    async def attach(self, place: Place) -> Spawned:
        """Another connection to the living worker of a place. Raises OSError."""
        return await attach(place)

    async def limit(self, place: Place, limits: Limits) -> None:
        """Narrow a spare worker to an attempt's limits. Raises EnvironmentFault where they cannot be held."""
        await narrow(self._host, place, limits)
        if limits.disk_bytes:
            await self._resize(place, limits.disk_bytes)

    async def _resize(self, place: Place, size_bytes: int) -> None:
        report, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        report.setblocking(False)
        with report:
            with child:
                request = Resize(pid=place.pid, start_ticks=place.start_ticks, size_bytes=size_bytes)
                await self._host.zygote.ask(request, child)
            await hear(report, READY_LIMIT_S)

    async def kill(self, place: Place) -> None:
        """Every process of the place has ended on return. Raises EnvironmentFault if one cannot be killed."""
        await end_place(place)

    async def dispose(self, place: Place) -> None:
        """Cgroups, interfaces and directory of a dead place are gone on return; its mounts went with it."""
        await remove_place(self._host, place)

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End and remove what carries this instance's mark but is of no worker in `owned`; one sentence for each."""
        found = await reap_cgroups(self._host, self.kind, owned)
        if os.geteuid() == 0 and os.path.exists(f"/sys/class/net/{self._host.bridge.name}"):
            found += [f"removed the interface {name}" for name in await self._host.bridge.reap(owned)]
        return found


def environment_root(environment: Environment, facts: Facts) -> Root:
    """What the plan for an environment depends on; `describe(root_plan(...))` shows it."""
    assert environment.network is not None
    return Root(
        directory=environment.root,
        size_bytes=environment.disk_bytes,
        hostname=environment.hostname or _hostname(environment.name),
        network=environment.network.value,
        binds=environment.binds,
        personality32=relation(environment.arch or facts.arch, host_arch()) == "personality32",
        rootless=os.geteuid() != 0,
    )


@cache
def _plan_text(root: Root) -> str:
    return dump_plan(root_plan(root))


@cache
def host_arch() -> str:
    """What this kernel runs without help."""
    machine = os.uname().machine
    return canonical_arch(machine) or machine


def _hostname(name: str) -> str:
    """An environment's name as a host's: at most 63 letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)[:63].strip("-") or "biruda"


def _look_at(where: str, environment: Environment) -> None:
    """Raises EnvironmentFault when there is no tree, or nothing to bind."""
    root = environment.root
    try:
        if not os.listdir(root):
            raise EnvironmentFault(f"{where}: the root {root} is empty", hint="make it: biruda env build")
    except FileNotFoundError:
        hint = "make it: biruda env build, or correct `root` in its configuration"
        raise EnvironmentFault(f"{where}: the root {root} does not exist", hint=hint) from None
    except NotADirectoryError:
        raise EnvironmentFault(
            f"{where}: the root {root} is not a directory", hint="unpack it, and name the directory"
        ) from None
    except OSError as error:
        raise EnvironmentFault(f"{where}: the root {root} cannot be read: {os.strerror(error.errno or 0)}") from None
    for bind in environment.binds:
        if not os.path.exists(bind.host):
            hint = "make it, or take the bind out of its configuration"
            raise EnvironmentFault(f"{where}: {bind.host}, which it binds, does not exist", hint=hint)
