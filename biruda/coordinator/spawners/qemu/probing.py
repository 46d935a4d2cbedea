"""Whether machines can be made on this host at all: qemu is started without one and asked its version."""

import time

from biruda import injection
from biruda.coordinator.spawners.forked import remove_place
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.protocol import Capability
from biruda.coordinator.spawners.qemu.argv import SYSTEMS, Machine, bare_argv_of, program_of
from biruda.coordinator.spawners.qemu.qmp import open_qmp
from biruda.coordinator.spawners.qemu.running import end, start, throwaway
from biruda.errors import EnvironmentFault


async def probe(host: Host, arch: str) -> Capability:
    """Whether qemu for some architecture works here, this host's own before others; else the one thing missing."""
    try:
        program = _program(arch)
        injection.find(arch, host.cache)
        place = throwaway(host, "probe")
        machine = Machine(arch=arch, type="none", accel="tcg", memory_bytes=1 << 20, cpus=1, kernel="", initrd="")
        began_s = time.perf_counter()
        running = await start(host, place, bare_argv_of(program), machine)
        try:
            async with open_qmp(running.place.directory):
                measured_ms = (time.perf_counter() - began_s) * 1000
        finally:
            running.close()
            await end(running.place)
            await remove_place(host, running.place)
    except EnvironmentFault as fault:
        return Capability(usable=False, reason=f"{fault}{'; ' if fault.hint else ''}{fault.hint}")
    return Capability(usable=True, measured_ms=measured_ms)


def _program(arch: str) -> str:
    """Where qemu is; an environment of another architecture says itself when its own is missing."""
    own = SYSTEMS.get(arch)
    systems = [own] if own is not None else []
    systems += [system for system in SYSTEMS.values() if system not in systems]
    faults = []
    for system in systems:
        try:
            return program_of(system, "machines")
        except EnvironmentFault as fault:
            faults.append(fault)
    raise faults[0]
