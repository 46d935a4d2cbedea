"""Whether a machine's processor is this host's own or an emulated one: by a test, never by a device's being there.

A /dev/kvm can be opened where it is itself emulated; a kernel then boots a hundred times slower than under TCG.
"""

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from biruda.config import Accel
from biruda.coordinator.spawners.forked import remove_place
from biruda.coordinator.spawners.host import Host
from biruda.coordinator.spawners.qemu.argv import Machine, argv_of, user_of
from biruda.coordinator.spawners.qemu.running import end, hear_ready, start, throwaway
from biruda.errors import EnvironmentFault
from biruda.guessenv import relation

DEVICE: Final = "/dev/kvm"
BOOT_LIMIT_S: Final = 60.0

_TIMES: Final = 3.0
_LEAST_S: Final = 2.0
_MEMORY_BYTES: Final = 256 << 20


class Verdict(NamedTuple):
    """Which one is taken, and why in a sentence."""

    accel: Accel
    reason: str


def chosen(wanted: Accel, arch: str, host_arch: str) -> Verdict | None:
    """What can be said without a test; None: it takes one. Raises EnvironmentFault: KVM is wanted, but not there."""
    if wanted is Accel.TCG:
        return Verdict(Accel.TCG, "TCG: so it is configured")
    problem = ""
    if relation(arch, host_arch) == "foreign":
        problem = f"this host is {host_arch}, the machine {arch}"
    elif not os.path.exists(DEVICE):
        problem = f"there is no {DEVICE}"
    elif not os.access(DEVICE, os.R_OK | os.W_OK):
        problem = f"this user may not open {DEVICE}"
    if wanted is Accel.KVM:
        if problem:
            raise EnvironmentFault(f'accel = "kvm" cannot be: {problem}', hint='set accel = "auto"')
        return Verdict(Accel.KVM, "KVM: so it is configured")
    return Verdict(Accel.TCG, f"TCG: {problem}") if problem else None


def remembered(cache: Path, key: str) -> Verdict | None:
    """The verdict of an earlier test of the same things. Blocking."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads((cache / "accel.json").read_text())
        if stored["key"] == key:
            return Verdict(Accel(stored["accel"]), str(stored["reason"]))
    return None


def remember(cache: Path, key: str, verdict: Verdict) -> None:
    """Keep a verdict for the next start. Blocking."""
    cache.mkdir(parents=True, exist_ok=True)
    new = cache / "accel.json.new"
    new.write_text(json.dumps({"key": key, "accel": verdict.accel.value, "reason": verdict.reason}))
    new.replace(cache / "accel.json")


def key_of(program: str, machine: Machine) -> str:
    """What a verdict holds for: this processor and kernel of the host, qemu, the machine's kernel and its init."""
    about = os.stat(program)
    model = ""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        model = next((line for line in file if line.startswith("model name")), "").strip()
    kernel = os.stat(machine.kernel)
    facts = (about.st_mtime_ns, about.st_size, platform.release(), model, kernel.st_mtime_ns, kernel.st_size)
    return json.dumps([*facts, os.path.basename(machine.initrd), machine.type])


async def test(host: Host, program: str, machine: Machine) -> Verdict:
    """Boot a small machine with each and compare. Takes seconds, at most BOOT_LIMIT_S. Raises EnvironmentFault.

    Without its disks: what differs is the processor.
    """
    small = replace(machine, memory_bytes=_MEMORY_BYTES, cpus=1, root="", scratch_bytes=0, user_network=False, tap="")
    tcg_s = await _time(host, program, replace(small, accel=Accel.TCG.value), BOOT_LIMIT_S)
    limit_s = max(_LEAST_S, _TIMES * tcg_s)
    try:
        kvm_s = await _time(host, program, replace(small, accel=Accel.KVM.value), limit_s)
    except EnvironmentFault as fault:
        why = str(fault)[:160]
        return Verdict(Accel.TCG, f"TCG, which took {tcg_s:.1f} s to a worker; KVM's self-test failed: {why}")
    if kvm_s > tcg_s:
        return Verdict(Accel.TCG, f"TCG: KVM's self-test took {kvm_s:.1f} s, TCG's {tcg_s:.1f} s")
    return Verdict(Accel.KVM, f"KVM: its self-test took {kvm_s:.1f} s, TCG's {tcg_s:.1f} s")


async def _time(host: Host, program: str, machine: Machine, limit_s: float) -> float:
    """Seconds to a machine's first word."""
    place = throwaway(host, "accel")
    began_s = time.monotonic()
    running = await start(host, place, argv_of(program, machine, user=user_of(place.worker)), machine)
    try:
        await hear_ready(running, limit_s)
        return time.monotonic() - began_s
    finally:
        running.close()
        await end(running.place)
        await remove_place(host, running.place)
