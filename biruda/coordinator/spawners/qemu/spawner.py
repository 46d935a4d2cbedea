"""Kind qemu: a worker as the init of a virtual machine with a kernel of its own."""

import asyncio
import logging
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from biruda.config import Accel, Environment, Network
from biruda.coordinator.spawners import injected
from biruda.coordinator.spawners.chroot import host_arch
from biruda.coordinator.spawners.forked import open_pidfd, reap_cgroups, remove_place
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.protocol import Capability, Place, Spawned
from biruda.coordinator.spawners.qemu import accel, machines, probing, template
from biruda.coordinator.spawners.qemu.argv import Memory, argv_of, user_of
from biruda.coordinator.spawners.qemu.machines import Made
from biruda.coordinator.spawners.qemu.qmp import connect
from biruda.coordinator.spawners.qemu.running import Running, end, hear_ready, send, start, sweep, wake
from biruda.coordinator.spawners.qemu.template import Template
from biruda.errors import EnvironmentFault
from biruda.guessenv import relation
from biruda.model import Facts, Kind, Limits
from biruda.worker.card import Network as Card

log = logging.getLogger("biruda.coordinator")

BOOT_LIMIT_S: Final = 60.0
"""How long a machine may take to its first word; one that is emulated on a busy host takes a tenth."""

_USER_NETWORK: Final = Card(address="10.0.2.15", netmask="255.255.255.0", gateway="10.0.2.2", nameserver="10.0.2.3")


@dataclass(slots=True)
class _Known:
    """What is known of one environment."""

    environment: Environment
    content: str  # of the files that it was made of
    made: Made
    verdict: accel.Verdict
    template: Template | None = None
    problem: str = ""  # why there is no template, or it is not used


class QemuSpawner:
    """Workers in virtual machines, for one attempt each: clones of a template, or booted."""

    kind = Kind.QEMU

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[str, _Known] = {}  # by name of the environment
        self._warming = asyncio.Lock()  # one after the other: they take whole processors
        self._capability: Capability | None = None

    async def probe(self) -> Capability:
        """A real self-test: qemu is started and answers. What a machine needs besides is prepare()'s to say."""
        if self._capability is None or not self._capability.usable:
            self._capability = await probing.probe(self._host, host_arch())
        return self._capability

    async def prepare(self, environment: Environment) -> Facts:
        """The facts of an environment that can be started, by looking. Raises EnvironmentFault for what is missing."""
        if environment.network is Network.BRIDGE and os.geteuid() != 0:
            raise EnvironmentFault(
                f'environment {environment.name}: network "bridge" needs root', hint='set network = "none" or "user"'
            )
        content = await asyncio.to_thread(machines.content_key, environment)
        known = self._known.get(environment.name)
        if known is not None and known.content != content:  # it was built again
            del self._known[environment.name]
        made = (await self._look_at(environment)).made
        return Facts(
            arch=made.arch,
            platform=environment.platform or "unknown",
            bits=64 if made.arch.endswith("64") else 32,
            emulated=relation(made.arch, host_arch()) == "foreign",
            evidence=(f"the kernel {environment.kernel} is for {made.machine.arch}",),
            content=content,
        )

    async def _look_at(self, environment: Environment) -> _Known:
        """What is known of it; looked at anew when its configuration has changed."""
        known = self._known.get(environment.name)
        if known is None or known.environment != environment:
            known = await asyncio.to_thread(self._examine, environment)
            self._known[environment.name] = known
        return known

    def _examine(self, environment: Environment) -> _Known:
        content = machines.content_key(environment)
        made = machines.make(environment, host_arch(), Accel.TCG, self._host.cache)
        verdict = accel.chosen(environment.accel, made.machine.arch, host_arch())
        if verdict is None:
            verdict = accel.remembered(self._directory, accel.key_of(made.program, made.machine))
        known = _Known(environment, content, made, verdict or accel.Verdict(Accel.TCG, "TCG, until KVM was tested"))
        self._decide(known, known.verdict)
        if verdict is not None:
            key = template.key_of(known.made.program, known.made.machine)
            known.template = template.find(self._templates(environment), key)
        return known

    @property
    def _directory(self) -> Path:
        return self._host.cache / "machines"

    def _templates(self, environment: Environment) -> Path:
        return self._directory / "templates" / environment.name

    def _decide(self, known: _Known, verdict: accel.Verdict) -> None:
        known.verdict = verdict
        known.made = replace(known.made, machine=replace(known.made.machine, accel=verdict.accel.value))

    async def warm(self, environment: Environment) -> tuple[str, ...]:
        """Test what processor its machines have, and make a template of them: seconds, in the background.

        What came of it, in sentences for who looks at the environment. Raises nothing that a person could act on.
        """
        async with self._warming:
            known = await self._look_at(environment)
            try:
                await self._find_processor(known)
                if known.template is None and environment.network is not Network.BRIDGE:
                    await self._make_template(known)
            except EnvironmentFault as fault:
                known.problem = f"{fault}{'; ' if fault.hint else ''}{fault.hint}"
                log.warning("environment=%s: each machine boots: %s", environment.name, known.problem)
        return self.about(environment)

    async def cool(self, environment: Environment) -> None:
        """Nothing of what warm() made is left: the environment was removed."""
        async with self._warming:
            self._known.pop(environment.name, None)
            await asyncio.to_thread(shutil.rmtree, self._templates(environment), ignore_errors=True)

    def about(self, environment: Environment) -> tuple[str, ...]:
        """How machines of this environment come to be, in sentences."""
        known = self._known.get(environment.name)
        if known is None:
            return ()
        said = [f"machine {known.made.machine.type}, {known.verdict.reason}"]
        if known.template is not None:
            said.append(f"clones of a RAM template: they share the boot id {known.template.ready.boot_id}")
        elif known.problem:
            said.append(f"each machine boots, as there is no template: {known.problem}")
        return tuple(said)

    async def _find_processor(self, known: _Known) -> None:
        made = known.made
        if accel.chosen(known.environment.accel, made.machine.arch, host_arch()) is not None:
            return
        key = accel.key_of(made.program, made.machine)
        if await asyncio.to_thread(accel.remembered, self._directory, key) is None:
            verdict = await accel.test(self._host, made.program, made.machine)
            await asyncio.to_thread(accel.remember, self._directory, key, verdict)
            self._decide(known, verdict)

    async def _make_template(self, known: _Known) -> None:
        made, directory = known.made, self._templates(known.environment)
        key = await asyncio.to_thread(template.key_of, made.program, made.machine)
        known.template = await asyncio.to_thread(template.find, directory, key) or await template.make(
            self._host, made.program, made.machine, made.scratch, directory, key, BOOT_LIMIT_S
        )
        known.problem = ""

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
        known = await self._look_at(environment)
        opening = injected.opening_of(
            environment,
            place,
            self.kind,
            arch=known.made.arch,
            kernel_arch=known.made.machine.arch,
            lease_s=lease_s,
            guess=guess,
        )
        running = None
        try:
            card = await self._plug_in(environment, place)
            running = await self._started(known, place)
            await wake(self._host, running, opening, _hostname(environment, place), environment.pids, card)
            mark, incoming = injected.connect(place.nonce)
            await send(running, mark)
        except BaseException:
            if running is not None:
                running.close()
                place = running.place
            await end(place)
            await remove_place(self._host, place)
            raise
        return Spawned(place=running.place, connection=running.connection, pidfd=running.pidfd, incoming=incoming)

    async def _plug_in(self, environment: Environment, place: Place) -> Card | None:
        if environment.network is Network.USER:
            return _USER_NETWORK
        if not place.veth:
            return None
        address = await self._host.bridge.attach_tap(place.veth)
        netmask = (0xFFFFFFFF << (32 - address.prefix)) & 0xFFFFFFFF
        dotted = ".".join(str(netmask >> shift & 255) for shift in (24, 16, 8, 0))
        return Card(address=address.address, netmask=dotted, gateway=address.gateway)

    async def _started(self, known: _Known, place: Place) -> Running:
        """A machine that can be told what it is."""
        if known.template is not None:
            try:
                return await self._clone(known, known.template, place)
            except EnvironmentFault as fault:
                known.template, known.problem = None, f"it could not be cloned: {fault}"
                log.warning("environment=%s: machines boot from now on: %s", known.environment.name, known.problem)
        return await self._boot(known, place)

    async def _clone(self, known: _Known, original: Template, place: Place) -> Running:
        running = await self._start(known, place, original.scratch, original.memory)
        try:
            await template.restore(running, original)
        except BaseException:
            running.close()
            await end(running.place)
            await remove_place(self._host, replace(running.place, veth=""))
            raise
        return running

    async def _boot(self, known: _Known, place: Place) -> Running:
        running = await self._start(known, place, known.made.scratch, None)
        try:
            await hear_ready(running, BOOT_LIMIT_S)
        except BaseException:
            running.close()
            raise
        return running

    async def _start(self, known: _Known, place: Place, scratch: Path, memory: Memory | None) -> Running:
        user = user_of(place.worker)
        try:
            await asyncio.to_thread(template.furnish, Path(place.directory), scratch, user)
        except OSError as error:
            raise EnvironmentFault(f"{error.filename}: {os.strerror(error.errno or 0)}") from None
        machine = replace(known.made.machine, tap=place.veth)
        argv = argv_of(known.made.program, machine, memory, user=user)
        return await start(self._host, place, argv, machine, cpus=known.environment.cpus or None)

    async def attach(self, place: Place) -> Spawned:
        """Another connection to the living worker of a place. Raises OSError: it has ended, or cannot be reached."""
        pidfd = open_pidfd(place)
        try:
            connection = connect(place.directory, "sock")
            try:
                mark, incoming = injected.connect(place.nonce)
                await asyncio.get_running_loop().sock_sendall(connection, mark)
            except BaseException:
                connection.close()
                raise
        except EnvironmentFault as fault:
            os.close(pidfd)
            raise ConnectionError(str(fault)) from None
        except BaseException:
            os.close(pidfd)
            raise
        return Spawned(place=place, connection=connection, pidfd=pidfd, incoming=incoming)

    async def limit(self, place: Place, limits: Limits) -> None:
        """Nothing to be done here: the worker holds the attempt to them, in a machine that is bounded anyhow."""

    async def kill(self, place: Place) -> None:
        """The machine has ended on return. Raises EnvironmentFault if it cannot be ended."""
        await end(place)

    async def dispose(self, place: Place) -> None:
        """Cgroups, interface, disks and directory of a dead place are gone on return."""
        await remove_place(self._host, place)

    async def reap(self, owned: Collection[str]) -> list[str]:
        """End and remove what carries this instance's mark but is of no worker in `owned`; one sentence for each."""
        await sweep(self._host)
        return await reap_cgroups(self._host, self.kind, owned)


def _hostname(environment: Environment, place: Place) -> str:
    """The name that is configured, else one that no other machine has."""
    if environment.hostname:
        return environment.hostname
    name = re.sub(r"[^A-Za-z0-9-]+", "-", f"{environment.name[:40]}-{place.worker[-20:]}").strip("-")
    return name or "biruda"
