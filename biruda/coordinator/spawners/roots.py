"""The plan by which a newborn gets a throw-away copy of a root tree with a small /dev, /proc and /sys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from biruda.coordinator.spawners.namespaces import CAPABILITIES
from biruda.coordinator.spawners.operations import (
    Bind,
    DetachOldRoot,
    Enter,
    EnterMount,
    ForbidNewPrivileges,
    Hide,
    Keep,
    KeepCapabilities,
    MakeDirectory,
    MakeMountsPrivate,
    MakeSymlink,
    Mount,
    MountOverlay,
    Operation,
    PivotRoot,
    Protect,
    RaiseLoopback,
    SetHostname,
    SetPersonality32,
    SetUpInterface,
)

DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
INTERFACE: Final = "eth0"
_NO_TRICKS: Final = ("nosuid", "nodev", "noexec")
_LINKS: Final = {
    "/dev/ptmx": "pts/ptmx",
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
# What container runtimes hide and protect: steps are uid 0 to these files, whatever capabilities they lack.
_HIDDEN_FILES: Final = ("kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug")
_HIDDEN_DIRECTORIES: Final = ("/proc/acpi", "/proc/asound", "/proc/scsi")
_PROTECTED: Final = ("bus", "fs", "irq", "sys", "sysrq-trigger")


class BindLike(Protocol):
    """A directory or file of the host that is to be seen inside."""

    @property
    def host(self) -> str: ...

    @property
    def inside(self) -> str: ...

    @property
    def read_only(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """What decides a plan. Equal values have equal plans, so a plan is made once for an environment."""

    directory: str
    size_bytes: int  # of the throw-away layer and /dev/shm together; 0: no bound but the memory's
    hostname: str
    network: str  # none, bridge or host
    binds: Sequence[BindLike] = ()
    personality32: bool = False
    rootless: bool = False


def root_plan(root: Root) -> tuple[Operation, ...]:
    """How a newborn in namespaces of its own, in its place's directory, becomes an inhabitant of the root. Pure."""
    return (*_overlay(root), *_file_systems(root), *_binds(root), DetachOldRoot(), *_identity(root))


def _overlay(root: Root) -> Iterator[Operation]:
    """A tmpfs holds the layer that is thrown away, and bounds it: a directory on a disk would not."""
    yield MakeMountsPrivate()
    yield Keep(path=root.directory)
    yield from (Keep(path=f"/dev/{name}") for name in DEVICES)
    yield from (Keep(path=path) for path in dict.fromkeys(bind.host for bind in root.binds))
    if root.network == "host":
        yield Keep(path="/etc/resolv.conf")
    size = (f"size={root.size_bytes}",) if root.size_bytes else ()
    yield Mount(type="tmpfs", target=".", options=("nosuid", "nodev", "mode=700", *size))
    yield EnterMount()
    yield from (MakeDirectory(path=path) for path in ("upper", "work", "merged"))
    yield MakeDirectory(path="shm", mode=0o1777)
    yield Keep(path="shm")
    yield MountOverlay(lower=root.directory, options=("userxattr",) if root.rootless else ())
    yield Enter(path="merged")
    yield PivotRoot()


def _file_systems(root: Root) -> Iterator[Operation]:
    yield MakeDirectory(path="/proc", mode=0o555)
    yield Mount(type="proc", target="/proc", options=_NO_TRICKS)
    yield MakeDirectory(path="/dev")
    yield Mount(type="tmpfs", target="/dev", options=("nosuid", "noexec", "mode=755", "size=64k", "nr_inodes=256"))
    yield from (Bind(kept=f"/dev/{name}", target=f"/dev/{name}") for name in DEVICES)
    yield MakeDirectory(path="/dev/pts")
    group = () if root.rootless else ("gid=5",)  # a group that the user namespace does not know
    options = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=620", *group)
    yield Mount(type="devpts", target="/dev/pts", options=options)
    yield Bind(kept="shm", target="/dev/shm")
    yield from (MakeSymlink(path=path, target=target) for path, target in _LINKS.items())
    yield MakeDirectory(path="/tmp", mode=0o1777)
    if root.network != "host":  # sysfs shows the network that it is mounted in
        yield MakeDirectory(path="/sys", mode=0o555)
        yield Mount(type="sysfs", target="/sys", options=("ro", *_NO_TRICKS))
        yield Mount(type="tmpfs", target="/sys/firmware", options=("ro", *_NO_TRICKS), optional=True)
    yield from (Hide(path=f"/proc/{name}") for name in _HIDDEN_FILES)
    for path in _HIDDEN_DIRECTORIES:
        yield Mount(type="tmpfs", target=path, options=("ro", *_NO_TRICKS), optional=True)
    yield from (Protect(path=f"/proc/{name}") for name in _PROTECTED)


def _binds(root: Root) -> Iterator[Operation]:
    for bind in root.binds:
        yield Bind(kept=bind.host, target=bind.inside, read_only=bind.read_only)
    if root.network == "host":
        yield Bind(kept="/etc/resolv.conf", target="/etc/resolv.conf", read_only=True)


def _identity(root: Root) -> Iterator[Operation]:
    yield SetHostname(name=root.hostname)
    if root.network != "host":
        yield RaiseLoopback()
    if root.network == "bridge":
        yield SetUpInterface(name=INTERFACE)
    if root.personality32:
        yield SetPersonality32()
    yield KeepCapabilities(names=tuple(CAPABILITIES))
    yield ForbidNewPrivileges()
