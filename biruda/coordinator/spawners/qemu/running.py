"""A machine that runs: how it is started, heard, told what it is, and ended."""

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from biruda.convert import decode, encode
from biruda.coordinator.spawners.forked import end_place, remove_place
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.limits import Bounds
from biruda.coordinator.spawners.protocol import Place
from biruda.coordinator.spawners.qemu.argv import LISTENING, OVERHEAD_BYTES, Machine
from biruda.coordinator.spawners.qemu.qmp import connect, open_qmp
from biruda.coordinator.spawners.requests import MAX_BYTES, Launch, Settled, Stillbirth
from biruda.coordinator.spawners.zygote_link import Answered, ZygoteLost
from biruda.errors import EnvironmentFault
from biruda.model import Kind
from biruda.worker.card import Network
from biruda.worker.machine import WAKE_HEAD_BYTES, Ready, Wake
from biruda.worker.opening import Opening

LAUNCH_LIMIT_S: Final = 30.0
QUIT_LIMIT_S: Final = 1.0
ENTROPY_BYTES: Final = 64

_THROWAWAY: Final = "machine-"
_MOST_LINE: Final = 64 * 1024
_LAST_WORDS: Final = 300
_MOST_SAID: Final = 4096
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STAMPED: Final = re.compile(r"\[\s*[0-9.]+\]")  # what the kernel says besides


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A machine that was started. Whoever has it closes it or gives its parts on."""

    place: Place  # with pid and start_ticks
    connection: socket.socket  # to its port
    pidfd: int

    def close(self) -> None:
        """The descriptors; the machine goes on."""
        self.connection.close()
        os.close(self.pidfd)


def throwaway(host: Host, what: str) -> Place:
    """The place of a machine that is no worker: the zygote ends it with this process, and sweep() in a later one."""
    name = f"{_THROWAWAY}{os.getpid()}-{what}-{os.urandom(4).hex()}"
    return Place(
        worker=name,
        kind=Kind.QEMU,
        environment="",
        nonce="",
        directory=str(_running(host) / name),
        cgroups=host.cgroups.directories(name),
    )


def _running(host: Host) -> Path:
    return host.cache / "machines" / "running"


async def sweep(host: Host) -> None:
    """End and remove what is left of machines that were no workers and whose process died with its zygote."""
    names = await asyncio.to_thread(host.cgroups.names)
    with suppress(OSError):
        names |= set(await asyncio.to_thread(os.listdir, _running(host)))
    for name in names:
        if name.startswith(_THROWAWAY) and not name.startswith(f"{_THROWAWAY}{os.getpid()}-"):
            directory = str(_running(host) / name)
            place = replace(throwaway(host, ""), directory=directory, cgroups=host.cgroups.directories(name))
            await end(place)
            await remove_place(host, place)


async def start(
    host: Host,
    place: Place,
    argv: Sequence[str],
    machine: Machine,
    *,
    cpus: float | None = None,
    writes_memory: bool = False,
) -> Running:
    """A machine that has begun, though maybe not to boot. Raises EnvironmentFault; then nothing of it is left.

    writes_memory: its memory is a file that it may fill.
    """
    file_bytes = max(machine.file_bytes, machine.memory_bytes if writes_memory else 0)
    bounds = Bounds(memory_bytes=machine.memory_bytes + OVERHEAD_BYTES, cpus=cpus)
    try:
        return await _start_once(host, place, argv, bounds, file_bytes)
    except ZygoteLost:
        return await _start_once(host, place, argv, bounds, file_bytes)


async def _start_once(host: Host, place: Place, argv: Sequence[str], bounds: Bounds, file_bytes: int) -> Running:
    if "memory" in host.cgroups.missing(bounds):
        bounds = replace(bounds, memory_bytes=None)  # the machine's own memory is bounded anyhow
    name = os.path.basename(place.cgroups[0]) if place.cgroups else ""
    unified, joined = host.cgroups.orders(name, bounds)
    launch = Launch(
        directory=place.directory,
        argv=tuple(argv),
        cgroup=unified,
        joined=joined,
        cgroups=place.cgroups,
        listening=LISTENING,
        file_bytes=file_bytes,
    )
    report, newborn = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report.setblocking(False)
    asked = None
    try:
        with report, newborn:
            asked = host.zygote.send(launch, newborn)
            answered = await host.zygote.answer(asked)
            newborn.close()
            born = answered.answer
            place = replace(place, pid=born.pid, start_ticks=born.start_ticks)
            await _begun(report)
        return Running(place=place, connection=connect(place.directory, "sock"), pidfd=answered.pidfd)
    except BaseException:
        await _undo(host, place, asked)
        raise


async def _begun(report: socket.socket) -> None:
    """Wait until the child of the zygote has become the program. Raises EnvironmentFault with what it says instead."""
    try:
        async with asyncio.timeout(LAUNCH_LIMIT_S):
            data = await asyncio.get_running_loop().sock_recv(report, MAX_BYTES)
    except TimeoutError:
        raise EnvironmentFault(f"qemu was not started within {LAUNCH_LIMIT_S:g} s") from None
    if data:
        said = decode(Stillbirth, json.loads(data))
        raise EnvironmentFault(f"qemu cannot be started: {said.problem}", hint=said.hint)


async def _undo(host: Host, place: Place, asked: "asyncio.Future[Answered] | None") -> None:
    if asked is not None:
        with suppress(EnvironmentFault):
            answered = await host.zygote.answer(asked)
            os.close(answered.pidfd)
            place = replace(place, pid=answered.answer.pid, start_ticks=answered.answer.start_ticks)
    await end_place(place)
    await remove_place(host, place)


async def hear_ready(running: Running, limit_s: float) -> Ready:
    """What a machine says when it can be told what it is. Raises EnvironmentFault: it cannot, or says nothing."""
    heard = b""
    try:
        async with asyncio.timeout(limit_s):
            while b"\n" not in heard and len(heard) < _MOST_LINE:
                data = await _received(running)
                heard += data
    except TimeoutError:
        raise EnvironmentFault(
            f"the machine said nothing within {limit_s:g} s{_said(running.place)}",
            hint="the host may be too busy; biruda env probe tries again",
        ) from None
    try:
        ready = decode(Ready, json.loads(heard.partition(b"\n")[0]))
    except ValueError:
        raise EnvironmentFault("what the machine says is not what a worker would say") from None
    if ready.problem:
        raise EnvironmentFault(f"the machine cannot be used: {ready.problem[:_LAST_WORDS]}{_said(running.place)}")
    return ready


async def _received(running: Running) -> bytes:
    try:
        data = await asyncio.get_running_loop().sock_recv(running.connection, _MOST_LINE)
    except OSError:
        data = b""
    if not data:
        raise EnvironmentFault(f"the machine ended before it was ready{_said(running.place)}")
    return data


async def wake(
    host: Host, running: Running, opening: Opening, hostname: str, pids: int, network: Network | None
) -> None:
    """Tell a machine what it is; from now on it ends by itself. Raises EnvironmentFault."""
    now_ns = time.time_ns()
    told = Wake(
        opening=opening,
        seconds=now_ns // 1_000_000_000,
        nanoseconds=now_ns % 1_000_000_000,
        entropy=os.urandom(ENTROPY_BYTES).hex(),
        hostname=hostname,
        pids=pids,
        network=network,
    )
    data = json.dumps(encode(told)).encode()
    await send(running, f"{len(data):0{WAKE_HEAD_BYTES}x}".encode() + data)
    host.zygote.settle(Settled(directory=running.place.directory))


async def send(running: Running, data: bytes) -> None:
    """Write to the machine's port. Raises EnvironmentFault."""
    try:
        async with asyncio.timeout(LAUNCH_LIMIT_S):
            await asyncio.get_running_loop().sock_sendall(running.connection, data)
    except (OSError, TimeoutError):
        raise EnvironmentFault(f"the machine does not listen{_said(running.place)}") from None


async def end(place: Place) -> None:
    """The machine has ended on return: asked to, else killed. Raises EnvironmentFault if it does not."""
    with suppress(EnvironmentFault, TimeoutError):
        async with asyncio.timeout(QUIT_LIMIT_S), open_qmp(place.directory) as qmp:
            await qmp.tell("quit")
            await qmp.event("SHUTDOWN")
    await end_place(place)


def _said(place: Place) -> str:
    """The last words of qemu or of the kernel in it, as the end of a sentence."""
    for name in ("output", "console"):
        with suppress(OSError), Path(place.directory, name).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_SAID))
            text = _ESCAPE.sub("", file.read(_MOST_SAID).decode("utf-8", "replace"))
            lines = ["".join(char for char in line if char.isprintable()).strip() for line in text.splitlines()]
            told = [line for line in lines if line and not _STAMPED.match(line)] or [line for line in lines if line]
            if told:
                return f": {' '.join(told[-2:])[-_LAST_WORDS:]}"
    return ""
