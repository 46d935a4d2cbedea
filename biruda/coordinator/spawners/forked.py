"""What the kinds have in common whose workers are processes of their own, forked from the zygote."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Final

from biruda.config import Environment
from biruda.coordinator.spawners import cgroup
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.limits import Bounds
from biruda.coordinator.spawners.processes import end_family, has_ended, is_alive, start_ticks
from biruda.coordinator.spawners.protocol import Place, Spawned
from biruda.coordinator.spawners.requests import Birth, Forget
from biruda.coordinator.spawners.zygote_link import Answered, ZygoteLost, hear, say_address
from biruda.errors import EnvironmentFault
from biruda.model import Kind, Limits
from biruda.worker.cleanup import remove_tree

READY_LIMIT_S: Final = 30.0
END_LIMIT_S: Final = 10.0


async def bear(host: Host, place: Place, birth: Birth) -> Spawned:
    """The worker of a place, ready. Raises EnvironmentFault; then nothing of the place is left."""
    try:
        return await _bear_once(host, place, birth)
    except ZygoteLost:
        return await _bear_once(host, place, birth)


async def _bear_once(host: Host, place: Place, birth: Birth) -> Spawned:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    report, newborn = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report.setblocking(False)
    asked = None
    try:
        with report, theirs, newborn:
            asked = host.zygote.send(birth, theirs, newborn)
            answered = await host.zygote.answer(asked)
            theirs.close()
            newborn.close()  # else its end would not be seen
            born = answered.answer
            place = replace(place, pid=born.pid, start_ticks=born.start_ticks)
            if place.veth:
                say_address(report, await host.bridge.attach(place.veth, place.pid))
            await hear(report, READY_LIMIT_S)
    except BaseException:
        ours.close()
        await _undo(host, place, asked)
        raise
    return Spawned(place=place, connection=ours, pidfd=answered.pidfd)


async def _undo(host: Host, place: Place, asked: "asyncio.Future[Answered] | None") -> None:
    """Nothing is left of a place that was asked for, also when the zygote is only now about to make it."""
    if asked is not None:
        with suppress(EnvironmentFault):
            answered = await host.zygote.answer(asked)
            os.close(answered.pidfd)
            place = replace(place, pid=answered.answer.pid, start_ticks=answered.answer.start_ticks)
    await end_place(place)
    await remove_place(host, place)


async def attach(place: Place) -> Spawned:
    """A connection to a worker that listens in its place's directory. Raises OSError."""
    pidfd = open_pidfd(place)
    try:
        return Spawned(place=place, connection=_connect(place), pidfd=pidfd)
    except OSError:
        os.close(pidfd)
        raise


def _connect(place: Place) -> socket.socket:
    """By a short name, as a Unix address has room for 107 bytes only."""
    directory = os.open(place.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/sock")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def open_pidfd(place: Place) -> int:
    """A descriptor that is readable when the place's process has ended. Raises OSError when it has."""
    if not place.pid:
        raise ProcessLookupError(f"worker {place.worker} has no process")
    pidfd = os.pidfd_open(place.pid)
    if start_ticks(place.pid) != place.start_ticks:
        os.close(pidfd)
        raise ProcessLookupError(place.pid)
    return pidfd


async def end_place(place: Place) -> None:
    """Every process of a place has ended on return. Raises EnvironmentFault if one does not."""
    await asyncio.to_thread(_end, place)


def _end(place: Place) -> None:
    deadline = time.monotonic() + END_LIMIT_S
    sure = [path for path in place.cgroups if cgroup.can_end(path)]
    for path in sure:
        cgroup.end(path, END_LIMIT_S)
    if not sure and place.kind is not Kind.CHROOT:
        end_family(place.pid, place.start_ticks, END_LIMIT_S)
    if not sure and is_alive(place.pid, place.start_ticks):
        with suppress(ProcessLookupError):
            os.kill(place.pid, signal.SIGKILL)
    # PID 1 of a namespace leaves its cgroup, but ends only after all others in the namespace.
    if not has_ended(place.pid, place.start_ticks, deadline):
        raise EnvironmentFault(f"worker {place.worker}: process {place.pid} does not end")


async def remove_place(host: Host, place: Place) -> None:
    """Cgroups, interfaces and directory of a dead place are gone on return. Raises EnvironmentFault."""
    if place.veth:
        await host.bridge.detach(place.veth)
    await asyncio.to_thread(_remove, place)
    host.zygote.tell(Forget(directory=place.directory), place.directory)


def _remove(place: Place) -> None:
    _remove_cgroups(place)
    problems = remove_tree(place.directory)
    if problems:
        hint = "something is mounted there, or a file has the immutable flag"
        raise EnvironmentFault(f"worker {place.worker}: cannot remove {problems[0]}", hint=hint)


async def reap_cgroups(host: Host, kind: Kind, owned: Collection[str]) -> list[str]:
    """End and remove the cgroups of this instance and kind whose workers are not owned; one sentence for each."""
    kept = {host.cgroup_name(kind, worker) for worker in owned}
    found = []
    for name in await asyncio.to_thread(host.cgroups.names):
        if name.startswith(f"{kind}-") and name not in kept:
            worker = name.removeprefix(f"{kind}-")
            left = Place(
                worker=worker,
                kind=kind,
                environment="",
                nonce="",
                directory="",
                cgroups=host.cgroups.directories(name),
            )
            await end_place(left)
            await asyncio.to_thread(_remove_cgroups, left)
            found.append(f"ended what was left of worker {worker} ({kind})")
    return found


def _remove_cgroups(place: Place) -> None:
    for path in place.cgroups:
        cgroup.remove(path)


def bounds_of(environment: Environment) -> Bounds:
    """What an environment allows one worker."""
    return Bounds(
        memory_bytes=environment.memory_bytes or None,
        pids=environment.pids or None,
        cpus=environment.cpus or None,
    )


async def narrow(host: Host, place: Place, limits: Limits) -> None:
    """Hold a worker to the memory, processes and CPUs of an attempt. Raises EnvironmentFault."""
    bounds = Bounds(memory_bytes=limits.memory_bytes, pids=limits.pids, cpus=limits.cpus)
    if not bounds.controllers:
        return
    name = host.cgroup_name(place.kind, place.worker)
    try:
        await asyncio.to_thread(host.cgroups.narrow, name, place.pid, bounds)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise EnvironmentFault(f"the attempt's limits cannot be held: {where}{os.strerror(error.errno or 0)}") from None
