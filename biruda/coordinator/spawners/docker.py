"""Kind docker: a worker in a container of its own, made from an image, by the daemon of this host.

The container is new for each attempt and thrown away after it. Its worker is the injected executable, as process 1,
over the container's standard streams; these can be attached to again, so the attempt outlives the coordinator. The
daemon removes a container whose worker has ended, also when no coordinator is there.
"""

import asyncio
import io
import os
import re
import signal
import socket
import tarfile
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from biruda.config import Environment
from biruda.coordinator.spawners import emulation, injected
from biruda.coordinator.spawners.docker_api import Demultiplexer, Docker, DockerRefused
from biruda.coordinator.spawners.docker_container import (
    EXECUTABLE,
    INSTANCE,
    WORKER,
    Image,
    container_name,
    narrowed,
    specification,
    work_of,
)
from biruda.coordinator.spawners.forked import bounds_of, open_pidfd
from biruda.coordinator.spawners.host import Host, checked
from biruda.coordinator.spawners.limits import Bounds
from biruda.coordinator.spawners.process import refuse_disk_limit
from biruda.coordinator.spawners.processes import has_ended, is_alive, start_ticks
from biruda.coordinator.spawners.protocol import Capability, Place, Spawned
from biruda.coordinator.spawners.selftest import ended_early, try_out
from biruda.errors import EnvironmentFault, Unreachable
from biruda.guessenv import canonical_arch, relation
from biruda.injection import Executable
from biruda.model import Facts, Kind, Limits
from biruda.worker.cleanup import remove_tree

END_LIMIT_S: Final = 20.0

_AGAIN_S: Final = 0.2
_QUICK_S: Final = 10.0
_LAST_WORDS_S: Final = 2.0
_SCRATCH: Final = "biruda-probe"
_EMPTY_TAR: Final = bytes(10240)
_ID: Final = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
_WORDS: Final = {
    "memory": ("MemoryLimit", "memory"),
    "pids": ("PidsLimit", "number of processes"),
    "cpu": ("CpuCfsQuota", "CPU"),
}


class DockerSpawner:
    """Workers in containers, for one attempt each."""

    kind = Kind.DOCKER

    def __init__(self, host: Host) -> None:
        self._host = host
        self._docker = Docker(host.docker_socket)
        self._images: dict[str, Image] = {}  # what the name of an image meant when it was looked up
        self._info: dict[str, Any] = {}  # of the daemon; empty: ask
        self._uploads = False  # the daemon does not see this host's files
        self._looks = True  # there may be containers of ours

    async def probe(self) -> Capability:
        """A real self-test of this kind on this host, in a container without any file."""
        try:
            self._info = await self._ask_info()
            image = await self._scratch_image()
        except EnvironmentFault as fault:
            return Capability(usable=False, reason=f"{fault}; {fault.hint}" if fault.hint else str(fault))
        try:
            environment = Environment(name="probe", kind=self.kind, image=image)
            return await try_out(self, environment, Facts(arch=self._arch, platform=""))
        finally:
            with suppress(EnvironmentFault):
                await self._docker.call("DELETE", f"/images/{image}", force=1)

    async def _ask_info(self) -> dict[str, Any]:
        info = await self._docker.call("GET", "/info", limit_s=_QUICK_S)
        if not isinstance(info, dict) or info.get("OSType", "linux") != "linux":
            raise EnvironmentFault(f"what answers at {self._docker.address} makes no containers of Linux")
        return info

    @property
    def _arch(self) -> str:
        """That of the daemon's kernel."""
        machine = str(self._info.get("Architecture", "")) or os.uname().machine
        return canonical_arch(machine) or machine

    async def _scratch_image(self) -> str:
        tag = f"{_SCRATCH}:{self._host.instance}"
        answers = self._docker.follow(
            "POST", "/images/create", data=_EMPTY_TAR, fromSrc="-", repo=_SCRATCH, tag=self._host.instance
        )
        async for line in answers:
            if isinstance(line, dict) and _ID.fullmatch(str(line.get("status", ""))):
                return str(line["status"])  # Podman keeps it under a longer name than the one that was asked for
        return tag

    async def prepare(self, environment: Environment) -> Facts:
        """The facts of an environment that can be used; its image is from now on the one that the name means now.

        Raises EnvironmentFault: no daemon, no such image, a limit that cannot be held, no worker for its architecture.
        """
        where = f"environment {environment.name}"
        self._info = await self._ask_info()
        self._require(where, bounds_of(environment))
        image = await self._look_up(where, environment.image)
        arch = environment.arch or image.arch
        is_foreign = relation(arch, self._arch) == "foreign"
        if is_foreign:
            emulation.require(where, arch, self._arch)
        await injected.executable(arch, self._host.cache)
        self._images[environment.name] = image
        return Facts(
            arch=arch,
            platform="unknown",
            emulated=is_foreign,
            content=image.id,
            evidence=(f"image {environment.image}: {image.id}, for {image.arch}",),
        )

    def _require(self, where: str, bounds: Bounds) -> None:
        for controller in bounds.controllers:
            flag, words = _WORDS[controller]
            if self._info.get(flag) is False:
                raise EnvironmentFault(
                    f"{where}: a limit on {words} was asked for, which Docker cannot hold on this host",
                    hint=f"docker info says which control groups it lacks ({flag}); or take the limit out",
                )

    async def _look_up(self, where: str, name: str) -> Image:
        try:
            return Image.of(await self._docker.call("GET", f"/images/{name}/json"))
        except DockerRefused as refusal:
            if refusal.status != 404:
                raise
        except (KeyError, TypeError, ValueError):
            raise EnvironmentFault(f"{where}: Docker's description of the image {name} cannot be read") from None
        raise EnvironmentFault(
            f"{where}: there is no image {name} on this host",
            hint=f"docker pull {name}, or biruda env build NAME --kind docker --image {name}",
        )

    def plan(self, environment: Environment, worker: str, nonce: str, directory: Path) -> Place:
        """What spawn() will make. Pure. The container's name follows from the worker's."""
        return Place(
            worker=checked(worker), kind=self.kind, environment=environment.name, nonce=nonce, directory=str(directory)
        )

    def _name(self, place: Place) -> str:
        return container_name(self._host.instance, place.worker)

    async def spawn(
        self, environment: Environment, place: Place, facts: Facts, *, lease_s: float, guess: bool
    ) -> Spawned:
        """Make it. Raises EnvironmentFault; then nothing of the place is left."""
        where = f"environment {environment.name}"
        self._info = self._info or await self._ask_info()
        self._require(where, bounds_of(environment))
        self._looks = True
        image = self._images.get(environment.name) or await self._look_up(where, environment.image)
        arch = environment.arch or facts.arch
        worker = await injected.executable(arch, self._host.cache)
        opening = injected.opening_of(
            environment, place, self.kind, arch=arch, kernel_arch=self._arch, lease_s=lease_s, guess=guess
        )
        variables = {name: value for name, value in image.env.items() if name not in ("PATH", "HOME", "PWD")}
        opening = replace(
            opening, work=work_of(environment), variables=variables, path=image.env.get("PATH") or opening.path
        )
        try:
            injected.make_directory(place)
            return await self._make(environment, place, image, worker, injected.birth(opening))
        except DockerRefused as refusal:
            await self._undo(place)
            raise EnvironmentFault(f"{where}: Docker does not start its container: {refusal}") from None
        except BaseException:
            await self._undo(place)
            raise

    async def _make(
        self, environment: Environment, place: Place, image: Image, worker: Executable, birth: bytes
    ) -> Spawned:
        await self._create(environment, place, image, worker)
        connection, incoming = await self._connect(place, birth)
        try:
            await self._docker.call("POST", f"/containers/{self._name(place)}/start")
            try:
                place, pidfd = await self._watched(place)
            except ProcessLookupError:
                await _hear_last_words(connection, incoming)
                raise EnvironmentFault(ended_early("the worker", incoming)) from None
        except BaseException:
            connection.close()
            raise
        return Spawned(place=place, connection=connection, pidfd=pidfd, incoming=incoming, arch=worker.arch)

    async def _create(self, environment: Environment, place: Place, image: Image, worker: Executable) -> None:
        path = None if self._uploads else worker.path
        try:
            await self._ask_to_create(specification(environment, place.worker, image, self._host.instance, path), place)
        except DockerRefused as refusal:
            if refusal.status == 409:  # of a try that was cut off
                await self._remove(place)
            elif path is not None and f"source path does not exist: {path}" in str(refusal):
                self._uploads = True
            else:
                raise
            path = None if self._uploads else worker.path
            await self._ask_to_create(specification(environment, place.worker, image, self._host.instance, path), place)
        if path is None:
            await self._docker.put_archive(self._name(place), await asyncio.to_thread(_packed, worker.path))

    async def _ask_to_create(self, body: dict[str, Any], place: Place) -> None:
        """A cancel waits for the answer: the daemon goes on with it, and the container would be there after _undo()."""
        faults: list[EnvironmentFault] = []

        async def ask() -> None:
            try:
                await self._docker.call("POST", "/containers/create", body=body, name=self._name(place))
            except EnvironmentFault as fault:
                faults.append(fault)

        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(), name=f"create container of {place.worker}")
            try:
                await asyncio.shield(asked)
            except asyncio.CancelledError:
                await asyncio.wait((asked,), timeout=END_LIMIT_S)
                raise
        if faults:
            raise faults[0]

    async def _connect(self, place: Place, birth: bytes = b"") -> tuple[socket.socket, injected.Incoming]:
        """A connection over the container's standard streams, with its mark written."""
        connection, early = await self._docker.attach(self._name(place))
        try:
            mark, incoming = injected.connect(place.nonce, Demultiplexer())
            incoming.feed(early)
            await asyncio.get_running_loop().sock_sendall(connection, birth + mark)
        except BaseException:
            connection.close()
            raise
        return connection, incoming

    async def _watched(self, place: Place) -> tuple[Place, int]:
        """The place with its process, and what is readable when that has ended. Raises ProcessLookupError: it has."""
        try:
            about = await self._docker.call("GET", f"/containers/{self._name(place)}/json")
            pid, number = int(about["State"]["Pid"]), str(about["Id"])
        except DockerRefused as refusal:
            if refusal.status != 404:
                raise
            raise ProcessLookupError(place.worker) from None
        if not about["State"].get("Running"):
            raise ProcessLookupError(place.worker)
        if _is_of(pid, number):
            place = replace(place, pid=pid, start_ticks=start_ticks(pid))
            return place, open_pidfd(place)
        try:  # the daemon counts processes elsewhere than we do
            return place, (await self._docker.watch(self._name(place))).detach()
        except DockerRefused:
            raise ProcessLookupError(place.worker) from None

    async def attach(self, place: Place) -> Spawned:
        """Another connection to the living worker of a place. Raises OSError: it has ended, or cannot be reached."""
        try:
            place, pidfd = await self._watched(place)
            try:
                connection, incoming = await self._connect(place)
            except BaseException:
                os.close(pidfd)
                raise
        except EnvironmentFault as fault:
            raise ConnectionRefusedError(str(fault)) from None
        return Spawned(place=place, connection=connection, pidfd=pidfd, incoming=incoming)

    async def limit(self, place: Place, limits: Limits) -> None:
        """Narrow a spare worker's container to an attempt's limits. Raises EnvironmentFault: they cannot be held."""
        refuse_disk_limit(self.kind, limits)
        bounds = Bounds(memory_bytes=limits.memory_bytes, pids=limits.pids, cpus=limits.cpus)
        if not bounds.controllers:
            return
        self._info = self._info or await self._ask_info()
        self._require(f"worker {place.worker}", bounds)
        try:
            about = await self._docker.call("GET", f"/containers/{self._name(place)}/json")
            change = narrowed(about["HostConfig"], bounds)
            if change:
                await self._docker.call("POST", f"/containers/{self._name(place)}/update", body=change)
        except DockerRefused as refusal:
            raise EnvironmentFault(f"the attempt's limits cannot be held: {refusal}") from None

    async def kill(self, place: Place) -> None:
        """Every process of the container has ended on return. Raises EnvironmentFault if one does not.

        Its worker is process 1 of a namespace: when that has ended, so have all. Raises Unreachable when the daemon has
        gone too: then it is known why the worker ended.
        """
        if place.pid and await asyncio.to_thread(_end_process, place):
            await self._docker.call("GET", "/version", limit_s=_QUICK_S)
            return
        try:
            await self._docker.call("POST", f"/containers/{self._name(place)}/kill")
            await self._docker.call(
                "POST", f"/containers/{self._name(place)}/wait", limit_s=END_LIMIT_S, condition="not-running"
            )
        except DockerRefused as refusal:
            if refusal.status not in (404, 409):  # it is not there, or does not run
                raise EnvironmentFault(f"worker {place.worker}: its container does not end: {refusal}") from None

    async def dispose(self, place: Place) -> None:
        """Container and directory of a dead place are gone on return. Raises EnvironmentFault."""
        await self._remove(place)
        problems = await asyncio.to_thread(remove_tree, place.directory)
        if problems:
            raise EnvironmentFault(f"worker {place.worker}: cannot remove {problems[0]}")

    async def _remove(self, place: Place) -> None:
        """The container is gone on return; the daemon may be about to remove it by itself."""
        end_s = time.monotonic() + END_LIMIT_S
        while True:
            try:
                await self._docker.call("DELETE", f"/containers/{self._name(place)}", force=1, v=1)
            except DockerRefused as refusal:
                if refusal.status == 404:
                    return
                if time.monotonic() > end_s:
                    raise EnvironmentFault(
                        f"worker {place.worker}: its container cannot be removed: {refusal}",
                        hint=f"docker rm -f {self._name(place)}",
                    ) from None
                await asyncio.sleep(_AGAIN_S / 10)  # the daemon gives no other sign
            else:
                return

    async def _undo(self, place: Place) -> None:
        """Nothing is left of a place whose making was cut off; the daemon may only now be about to make it."""
        with suppress(EnvironmentFault):  # what stays is reaped
            await self._remove(place)
            await asyncio.sleep(_AGAIN_S)
            await self._remove(place)
        await asyncio.to_thread(remove_tree, place.directory)

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End and remove what carries this instance's mark but is of no worker in `owned`; one sentence for each."""
        if not self._looks:
            return []
        try:
            containers = await self._docker.call(
                "GET", "/containers/json", all=1, filters={"label": [f"{INSTANCE}={self._host.instance}"]}
            )
        except Unreachable:
            return []  # then there are none, or it will be looked for them again
        workers = [str(each["Labels"].get(WORKER, "")) for each in containers]
        found = []
        for worker in workers:
            if worker in owned:
                continue
            left = Place(worker=worker, kind=self.kind, environment="", nonce="", directory="")
            await self.kill(left)
            await self._remove(left)
            found.append(f"ended what was left of worker {worker} ({self.kind})")
        self._looks = bool(owned) or bool(workers)
        return found


def _is_of(pid: int, container: str) -> bool:
    """Whether the process of this number, as we count, is in that container."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            return pid > 0 and bool(re.search(rf"\b{re.escape(container)}\b", file.read()))
    except OSError:
        return False


def _end_process(place: Place) -> bool:
    """Kill a place's process and wait for its end; False where this user may not."""
    if not is_alive(place.pid, place.start_ticks):
        return True
    try:
        fd = open_pidfd(place)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except PermissionError:
        return False
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)
    if not has_ended(place.pid, place.start_ticks, time.monotonic() + END_LIMIT_S):
        raise EnvironmentFault(f"worker {place.worker}: process {place.pid} does not end")
    return True


def _packed(path: Path) -> io.BytesIO:
    """A tar archive with the executable under the name that it has in a container."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        about = tarfile.TarInfo(EXECUTABLE.lstrip("/"))
        about.size, about.mode = path.stat().st_size, 0o555
        with path.open("rb") as file:
            archive.addfile(about, file)
    packed.seek(0)
    return packed


async def _hear_last_words(connection: socket.socket, incoming: injected.Incoming) -> None:
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(_LAST_WORDS_S):
            while data := await asyncio.get_running_loop().sock_recv(connection, 65536):
                incoming.feed(data)
