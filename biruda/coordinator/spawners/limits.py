"""What one worker may use, and which control groups of this host can hold it.

Every worker has directories `<base>/<kind>-<worker>`: in the version 2 tree, which is also what kills surely, and where
version 1 has a controller, in that one's tree. A base is there only while a worker is.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from biruda.coordinator.spawners.cgroup import (
    CONTROLLERS,
    make_base,
    make_directory,
    read,
    remove_base,
    write,
    write_unless_optional,
)
from biruda.coordinator.spawners.requests import CgroupOrder
from biruda.errors import EnvironmentFault

_PERIOD_US: Final = 100_000
_WORDS: Final = {"memory": "memory", "pids": "number of processes", "cpu": "CPU"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one worker may use; None: no bound."""

    memory_bytes: int | None = None
    pids: int | None = None
    cpus: float | None = None

    @property
    def controllers(self) -> tuple[str, ...]:
        """The controllers that can hold them."""
        wanted = (self.memory_bytes, self.pids, self.cpus)
        return tuple(name for name, bound in zip(CONTROLLERS, wanted, strict=True) if bound)

    def settings(self, controller: str, version: int) -> dict[str, str]:
        """What is written to which files of a controller, in this order."""
        match controller, version:
            case "memory", 2:
                return {"memory.max": str(self.memory_bytes), "memory.swap.max": "0"}
            case "memory", _:
                bound = str(self.memory_bytes)
                return {"memory.limit_in_bytes": bound, "memory.memsw.limit_in_bytes": bound}
            case "cpu", 2:
                return {"cpu.max": f"{self._quota_us} {_PERIOD_US}"}
            case "cpu", _:
                return {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(self._quota_us)}
            case _:
                return {"pids.max": str(self.pids)}

    @property
    def _quota_us(self) -> int:
        return max(1000, round((self.cpus or 0) * _PERIOD_US))  # the kernel takes no less than 1 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroups:
    """Where one instance makes its cgroups."""

    unified: str = ""  # base in the version 2 tree; "": none
    controllers: frozenset[str] = frozenset()  # that version 2 holds there
    version1: Mapping[str, str] = field(default_factory=dict)  # controller -> base in its own tree
    problem: str = ""  # why there is no version 2 base

    def directories(self, name: str) -> tuple[str, ...]:
        """Everything that a worker of this name may come to occupy, version 2 first."""
        bases = dict.fromkeys((*([self.unified] if self.unified else ()), *self.version1.values()))
        return tuple(f"{base}/{name}" for base in bases)

    def missing(self, bounds: Bounds) -> tuple[str, ...]:
        """The controllers that the bounds need and no tree has."""
        return tuple(name for name in bounds.controllers if name not in self.controllers and name not in self.version1)

    def orders(self, name: str, bounds: Bounds) -> tuple[CgroupOrder | None, tuple[CgroupOrder, ...]]:
        """The version 2 cgroup to be born in, and the version 1 cgroups to join, that hold the bounds."""
        unified: dict[str, str] = {}
        joined: dict[str, dict[str, str]] = {}
        for controller in bounds.controllers:
            if controller in self.controllers:
                unified |= bounds.settings(controller, 2)
            elif controller in self.version1:
                path = f"{self.version1[controller]}/{name}"
                joined.setdefault(path, {}).update(bounds.settings(controller, 1))
        if not self.unified and "freezer" in self.version1:
            joined.setdefault(f"{self.version1['freezer']}/{name}", {})
        first = CgroupOrder(path=f"{self.unified}/{name}", settings=unified) if self.unified else None
        return first, tuple(CgroupOrder(path=path, settings=settings) for path, settings in joined.items())

    def narrow(self, name: str, pid: int, bounds: Bounds) -> None:
        """Lower what a worker with one process may use, never raise it. Raises EnvironmentFault, OSError."""
        require(self, bounds)
        for controller in bounds.controllers:
            version = 2 if controller in self.controllers else 1
            path = f"{self.unified if version == 2 else self.version1[controller]}/{name}"
            is_new = make_directory(path)
            for file, value in bounds.settings(controller, version).items():
                _write_lower(f"{path}/{file}", value)
            if is_new:
                write(f"{path}/cgroup.procs", str(pid))

    def names(self) -> set[str]:
        """The names of all workers that have a cgroup here."""
        found: set[str] = set()
        for path in self.directories("."):
            with suppress(OSError), os.scandir(path) as entries:
                found |= {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        return found


def require(cgroups: Cgroups, bounds: Bounds) -> None:
    """Raises EnvironmentFault when a bound cannot be held."""
    for controller in cgroups.missing(bounds):
        raise EnvironmentFault(
            f"a limit on {_WORDS[controller]} was asked for, but no {controller} controller can be used here",
            hint=cgroups.problem
            or f"give the daemon a control group with the {controller} controller, or take the limit out",
        )


def detect(instance: str, setting: str = "auto", *, proc: str = "/proc/self") -> Cgroups:
    """The cgroups that this process may make. setting: "auto", "off" or a control group's path."""
    if setting == "off":
        return Cgroups(problem='cgroup = "off"')
    unified, version1 = _trees(proc)
    inside = _inside(setting, unified, proc)
    base = f"{unified}{inside}/{instance}" if unified else ""
    problem = "" if unified else "no cgroup version 2 tree is mounted"
    if unified and not _can_make(base):
        problem = f"this user may not make the control group {base}"
        base = ""
    if base:
        version1.pop("freezer", None)  # of no use beside version 2
    bases = {name: f"{tree}{inside}/{instance}" for name, tree in version1.items()}
    usable = {name: path for name, path in bases.items() if _can_make(path)}
    return Cgroups(unified=base, controllers=_controllers(base), version1=usable, problem=problem)


def _trees(proc: str) -> tuple[str, dict[str, str]]:
    """Where the version 2 tree is mounted, and the version 1 tree of each controller of interest."""
    unified, version1 = "", {}
    with open(f"{proc}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            kind, _, options = rest.strip().split(" ", 2)
            target = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields.split(" ")[4])
            if kind == "cgroup2":
                unified = unified or target
            elif kind == "cgroup":
                names = {*CONTROLLERS, "freezer"}.intersection(options.split(","))
                version1.update(dict.fromkeys(names, target))
    return unified, version1


def _inside(setting: str, unified: str, proc: str) -> str:
    """The path below a tree's mount point, "" or with a leading slash, under which instances are."""
    if setting != "auto":
        return "/" + setting.removeprefix(unified).strip("/")
    if os.geteuid() == 0:
        return "/biruda"
    with open(f"{proc}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        own = next((line[3:].strip() for line in file if line.startswith("0::")), "/")
    return f"{own.rstrip('/')}/biruda"


def _can_make(path: str) -> bool:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return os.access(path, os.W_OK)


def _controllers(base: str) -> frozenset[str]:
    """What version 2 can hold below a base, by trying."""
    if not base:
        return frozenset()
    try:
        make_base(base)
        return frozenset(read(f"{base}/cgroup.subtree_control").split()).intersection(CONTROLLERS)
    finally:
        remove_base(base)


def _write_lower(path: str, text: str) -> None:
    """Write a bound where it is lower than the one that is there."""
    now, wanted = read(path).split(), text.split()
    if now and now[0].isdigit() and int(now[0]) < int(wanted[0]) and "period" not in path:
        return
    write_unless_optional(path, text)
