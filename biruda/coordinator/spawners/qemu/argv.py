"""A virtual machine as data, and as the command line that makes it."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from biruda.coordinator.spawners.requests import FIRST_LISTENER_FD
from biruda.errors import EnvironmentFault

PORT: Final = "biruda"
"""The name of the virtio port by which the machine is talked to."""

LISTENING: Final = ("sock", "qmp")
"""The sockets of a machine in its place's directory: the port's other end, and qemu's own."""

MMIO: Final = ("microvm", "virt")
"""Machines whose devices are at fixed addresses, and on no PCI bus."""

RAM: Final = "ram"
SCRATCH: Final = "scratch"

MEMORY_BYTES: Final = 1 << 30
"""What a machine has when nobody said anything."""

OVERHEAD_BYTES: Final = 768 << 20
"""What qemu may use beside a machine's memory: its code cache, devices and libraries."""

_MIB: Final = 1 << 20
_CODE_CACHE_MIB: Final = 256
_CONSOLE_BYTES: Final = 16 * _MIB
_SEARCH_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_LESS_TO_DO: Final = ("psi=0", "noautogroup", "nowatchdog", "audit=0", "hardened_usercopy=off", "lsm=landlock,yama,bpf")
"""What a kernel may leave out that runs one job: an emulated processor does it ten times slower."""
_USERS_FROM: Final = 0x70000000  # far from what hosts and containers give out


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """How machines of one architecture are made."""

    program: str
    package: str  # of Debian
    types: tuple[str, ...]  # the first is the default
    console: str
    cpu: str


_X86: Final = System(
    program="qemu-system-x86_64",
    package="qemu-system-x86",
    types=("pc", "q35", "microvm"),  # a pc has a timer that the kernel finds also when the host is busy
    console="ttyS0",
    cpu="max",
)
SYSTEMS: Final[Mapping[str, System]] = {
    "amd64": _X86,
    "i386": _X86,
    "arm64": System(
        program="qemu-system-aarch64",
        package="qemu-system-arm",
        types=("virt",),
        console="ttyAMA0",
        cpu="cortex-a57",  # "max" authenticates pointers, which costs much when it is emulated
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """All that a machine's behaviour depends on. Paths are absolute, or relative to the place's directory."""

    arch: str  # of the kernel
    type: str
    accel: str  # "tcg" or "kvm"
    memory_bytes: int
    cpus: int
    kernel: str
    initrd: str
    root: str = ""  # image of the root; "": none, the machine only says hello
    root_format: str = "squashfs"  # as the guest's mount calls it
    scratch_bytes: int = 0  # of the disk for what is written
    user_network: bool = False
    tap: str = ""  # the host's interface; "": none
    tsc_khz: int = 0  # of the host, for machines whose kernel could not measure it when the host is busy

    @property
    def file_bytes(self) -> int:
        """The longest file that qemu writes, but for a template's memory; nothing inside can make a longer one."""
        return max(self.scratch_bytes, _CONSOLE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A machine's memory in a file."""

    path: str
    shared: bool  # what is written reaches the file; else the machine is a clone with pages of its own


def system_of(arch: str, where: str) -> System:
    """How machines of an architecture are made. Raises EnvironmentFault for one that none are made of."""
    system = SYSTEMS.get(arch)
    if system is None:
        raise EnvironmentFault(
            f"{where}: no machine is made for {arch or 'an unknown architecture'}",
            hint=f"set arch to one of {', '.join(SYSTEMS)}",
        )
    return system


def program_of(system: System, where: str) -> str:
    """The path of qemu. Raises EnvironmentFault where it is not installed."""
    path = shutil.which(system.program, path=_SEARCH_PATH)
    if path is None:
        raise EnvironmentFault(f"{where}: {system.program} is not installed", hint=f"apt-get install {system.package}")
    return path


def argv_of(program: str, machine: Machine, memory: Memory | None = None, *, user: int = 0) -> tuple[str, ...]:
    """The command line. With a memory that is not shared the machine waits to be told whose clone it is.

    user: becomes this user when all is open; 0: stays who it is.
    """
    system = SYSTEMS[machine.arch]
    accel = f"tcg,tb-size={_CODE_CACHE_MIB}" if machine.accel == "tcg" else machine.accel
    argv = [program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny"]
    argv += ["-runas", f"{user}:{user}"] if user else []
    argv += ["-accel", accel, "-cpu", system.cpu, "-smp", str(machine.cpus)]
    argv += ["-m", f"{machine.memory_bytes // _MIB}M"]
    argv += ["-machine", _type(machine, memory)]
    if memory is not None:
        backend = f"memory-backend-file,id={RAM},size={machine.memory_bytes // _MIB}M,mem-path={memory.path}"
        argv += ["-object", f"{backend},share={'on' if memory.shared else 'off'}"]
    argv += [
        "-kernel",
        machine.kernel,
        "-initrd",
        machine.initrd,
        "-append",
        _append(machine, of_template=memory is not None),
    ]
    argv += ["-chardev", "file,id=console,path=console", "-serial", "chardev:console"]
    argv += [*_port(machine), *_disks(machine), *_network(machine)]
    argv += _control()
    return (*argv, "-incoming", "defer") if memory is not None and not memory.shared else tuple(argv)


def bare_argv_of(program: str) -> tuple[str, ...]:
    """The command line of a qemu that makes no machine, and only answers."""
    return (program, "-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", *_control())


def _control() -> list[str]:
    return [
        *("-chardev", f"socket,id=qmp,fd={FIRST_LISTENER_FD + 1},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
    ]


def _type(machine: Machine, memory: Memory | None) -> str:
    options = [machine.type]
    if machine.type == "microvm":
        options += ["pic=on", "pit=on", "rtc=on", "isa-serial=on"]
    if memory is not None:
        options.append(f"memory-backend={RAM}")
    return ",".join(options)


def _append(machine: Machine, *, of_template: bool) -> str:
    """The kernel's command line; what follows the two dashes is for the init."""
    console = SYSTEMS[machine.arch].console
    words = ["quiet", "loglevel=1", f"console={console}", "panic=-1", "random.trust_cpu=on", "mitigations=off"]
    if machine.arch != "arm64":
        words += ["reboot=t", "8250.nr_uarts=1", "cryptomgr.notests"]
    if machine.tsc_khz and machine.type == "microvm":
        words.append(f"tsc_early_khz={machine.tsc_khz}")
    words += _LESS_TO_DO
    words += ["--", "--init"]
    if machine.root:
        words.append(f"root={machine.root_format}")
    if machine.scratch_bytes:
        words.append("scratch=ext4")
    if of_template:
        words.append("rehearse")
    return " ".join(words)


def _bus(machine: Machine) -> str:
    return "device" if machine.type in MMIO else "pci"


def _port(machine: Machine) -> list[str]:
    return [
        *("-chardev", f"socket,id=port,fd={FIRST_LISTENER_FD},server=on,wait=off"),
        *("-device", f"virtio-serial-{_bus(machine)},max_ports=2"),
        *("-device", f"virtserialport,chardev=port,name={PORT},nr=1"),
    ]


def _disks(machine: Machine) -> list[str]:
    """The root is the first disk, the scratch the second; the guest finds them by their serial numbers."""
    argv: list[str] = []
    if machine.root:
        argv += ["-drive", f"if=none,id=root,format=raw,readonly=on,file={_escaped(machine.root)}"]
        argv += ["-device", f"virtio-blk-{_bus(machine)},drive=root,serial=root"]
    if machine.scratch_bytes:
        argv += ["-drive", f"if=none,id=scratch,format=raw,cache=unsafe,discard=unmap,file={SCRATCH}"]
        argv += ["-device", f"virtio-blk-{_bus(machine)},drive=scratch,serial=scratch"]
    return argv


def _network(machine: Machine) -> list[str]:
    if not machine.user_network and not machine.tap:
        return ["-nic", "none"]
    back = f"tap,id=net,ifname={machine.tap},script=no,downscript=no" if machine.tap else "user,id=net"
    return ["-netdev", back, "-device", f"virtio-net-{_bus(machine)},netdev=net,romfile="]


def _escaped(path: str) -> str:
    """A path in qemu's lists of options."""
    return path.replace(",", ",,")


def user_of(worker: str) -> int:
    """The user that a worker's qemu becomes: one of its own, so that no machine can touch another's; 0 when not root.

    Two workers may have the same by chance, one in millions; they are then as apart as two of one user.
    """
    if os.geteuid() != 0:
        return 0
    number = int.from_bytes(worker.encode()[-16:], "big") % ((1 << 27) - 39)
    return _USERS_FROM + number
