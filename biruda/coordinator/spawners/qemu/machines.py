"""What an environment of kind qemu is made of: its files looked at, and the machine that they make."""

import json
import math
import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda import injection
from biruda.config import Accel, Environment, Network
from biruda.coordinator.spawners.qemu import images
from biruda.coordinator.spawners.qemu.argv import MEMORY_BYTES, MMIO, Machine, program_of, system_of
from biruda.errors import EnvironmentFault
from biruda.guessenv import relation

_LEAST_MEMORY_BYTES: Final = 128 << 20
_MOST_CPUS: Final = 8
_PCI: Final = ("virtio_pci", "virtio_pci_modern_dev", "virtio_pci_legacy_dev")
_MMIO: Final = ("virtio_mmio",)
_CARD: Final = ("virtio_net", "net_failover", "failover")
_MAGICS: Final = ((0, b"hsqs", "squashfs"), (0x438, b"\x53\xef", "ext4"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An environment that can be started, but for who it is."""

    program: str
    machine: Machine
    scratch: Path
    arch: str  # of the root


def make(environment: Environment, host_arch: str, accel: Accel, cache: Path) -> Made:
    """Look at an environment's files and make what of its machines is always the same. Blocking.

    Raises EnvironmentFault: something is missing, or not what it should be.
    """
    where = f"environment {environment.name}"
    kernel = kernel_arch(environment.kernel, where)
    arch = environment.arch or kernel
    if arch != kernel and relation(arch, kernel) != "personality32":
        raise EnvironmentFault(
            f"{where}: its root is for {arch}, its kernel {environment.kernel} for {kernel}",
            hint="give it a kernel of the root's architecture, or correct arch",
        )
    system = system_of(kernel, where)
    kind = environment.machine or system.types[0]
    if kind not in system.types:
        raise EnvironmentFault(
            f"{where}: there is no machine {kind!r} for {kernel}", hint=f"one of {', '.join(system.types)}"
        )
    program = program_of(system, where)
    modules = Path(environment.modules) if environment.modules else None
    if modules is not None and not modules.is_dir():
        raise EnvironmentFault(
            f"{where}: there is no directory of modules {modules}", hint="make it again: biruda env build"
        )
    worker = injection.find(arch, cache)
    directory = (cache / "machines").resolve()  # two names of one directory are one template
    memory_bytes = environment.memory_bytes or MEMORY_BYTES
    machine = Machine(
        arch=kernel,
        type=kind,
        accel=accel.value,
        memory_bytes=max(_LEAST_MEMORY_BYTES, memory_bytes) >> 20 << 20,
        cpus=cpus_of(environment),
        kernel=os.path.abspath(environment.kernel),
        initrd=str(images.initrd(directory, worker, modules, _unneeded(environment, kind))),
        root=os.path.abspath(environment.root),
        root_format=root_format(environment.root, where),
        scratch_bytes=environment.disk_bytes >> 12 << 12,
        user_network=environment.network is Network.USER,
        tsc_khz=_tsc_khz() if kind == "microvm" else 0,
    )
    return Made(program=program, machine=machine, scratch=images.scratch(directory, machine.scratch_bytes), arch=arch)


def _unneeded(environment: Environment, kind: str) -> set[str]:
    """Modules that this machine has no device for: each takes an emulated processor some 40 ms."""
    unneeded = set(_PCI if kind in MMIO else _MMIO)
    return unneeded | set(_CARD) if environment.network is Network.NONE else unneeded


def cpus_of(environment: Environment) -> int:
    """How many processors a machine has: what the environment allows, else the host's, within reason."""
    host = len(os.sched_getaffinity(0))
    return max(1, min(math.ceil(environment.cpus) if environment.cpus else host, _MOST_CPUS))


def kernel_arch(path: str, where: str) -> str:
    """What a kernel was built for, by its header. Raises EnvironmentFault."""
    try:
        with open(path, "rb") as file:
            head = file.read(0x240)
    except OSError as error:
        hint = "make it: biruda env build NAME --kind qemu, or correct `kernel` in its configuration"
        raise EnvironmentFault(
            f"{where}: the kernel {path}: {os.strerror(error.errno or 0).lower()}", hint=hint
        ) from None
    if head[0x202:0x206] == b"HdrS":
        (flags,) = struct.unpack_from("<H", head, 0x236)
        return "amd64" if flags & 1 else "i386"
    if head[0x38:0x3C] == b"ARM\x64":
        return "arm64"
    if head[:4] == b"\x7fELF":
        found = {0x3E: "amd64", 3: "i386", 0xB7: "arm64"}.get(struct.unpack_from("<H", head, 18)[0])
        if found:
            return found
    raise EnvironmentFault(
        f"{where}: {path} is no kernel that a machine can start",
        hint="a bzImage or vmlinux; for arm64 an uncompressed Image",
    )


def root_format(path: str, where: str) -> str:
    """What file system an image holds. Raises EnvironmentFault."""
    try:
        with open(path, "rb") as file:
            head = file.read(0x440)
    except OSError as error:
        hint = "make it: biruda env build NAME --kind qemu, or correct `root` in its configuration"
        raise EnvironmentFault(
            f"{where}: the root {path}: {os.strerror(error.errno or 0).lower()}", hint=hint
        ) from None
    for at, magic, name in _MAGICS:
        if head[at : at + len(magic)] == magic:
            return name
    raise EnvironmentFault(f"{where}: {path} holds neither squashfs nor ext4", hint="make it again: biruda env build")


def content_key(environment: Environment) -> str:
    """What an environment's facts hold for, whatever it is called: its files, as far as their names and times tell."""
    facts = []
    for path in (environment.root, environment.kernel, environment.modules):
        with suppress(OSError):
            about = os.stat(path)
            facts.append((path, about.st_size, about.st_mtime_ns, about.st_ino))
    return json.dumps(facts)


def _tsc_khz() -> int:
    """How fast this host's clock counts; 0 when it does not say."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        if match := re.search(r"^cpu MHz\s*:\s*(\d+)\.(\d{3})", file.read(), re.MULTILINE):
            return int(match[1] + match[2])
    return 0
