"""What is done, step by step, to turn a newborn process into one that lives in a root tree of its own.

A plan is a tuple of these values: it can be printed, compared and sent, and `namespaces` carries it out. Paths before
PivotRoot are the host's (relative ones below the place's directory), after it those of the new root.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from biruda.convert import decode, encode


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeMountsPrivate:
    """Nothing mounted from here on is seen outside."""

    def describe(self) -> str:
        return "mount --make-rprivate /"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Mount a file system; options as mount(8) has them. With `optional`, only where the target is there."""

    type: str
    target: str
    options: tuple[str, ...] = ()
    optional: bool = False

    def describe(self) -> str:
        options = f" -o {','.join(self.options)}" if self.options else ""
        return f"mount -t {self.type}{options} {self.type} {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOverlay:
    """Mount a throw-away layer, ./upper, over the kept root, on ./merged."""

    lower: str
    options: tuple[str, ...] = ()

    def describe(self) -> str:
        options = ",".join((f"lowerdir={self.lower}", "upperdir=upper", "workdir=work", *self.options))
        return f"mount -t overlay -o {options},nodev overlay merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Hold on to a file or directory of the host, to be bound after PivotRoot."""

    path: str

    def describe(self) -> str:
        return f"keep {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """Show a kept file or directory at target, which is made where it is missing."""

    kept: str
    target: str
    read_only: bool = False

    def describe(self) -> str:
        return f"mount --rbind{' -o ro' if self.read_only else ''} {self.kept} {self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protect:
    """What is at this path, if anything is, takes no writes."""

    path: str

    def describe(self) -> str:
        return f"mount --bind -o ro {self.path} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hide:
    """The file at this path, if there is one, reads as empty."""

    path: str

    def describe(self) -> str:
        return f"mount --bind /dev/null {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDirectory:
    """Make a directory, and those above it, where it is missing; one that is there keeps its mode."""

    path: str
    mode: int = 0o755

    def describe(self) -> str:
        return f"mkdir -p -m {self.mode:o} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSymlink:
    path: str
    target: str

    def describe(self) -> str:
        return f"ln -s {self.target} {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Change the working directory."""

    path: str

    def describe(self) -> str:
        return f"cd {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnterMount:
    """Go to what was just mounted over the working directory."""

    def describe(self) -> str:
        return 'cd "$PWD"'


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotRoot:
    """The working directory becomes the root; the old one stays attached under it until DetachOldRoot."""

    def describe(self) -> str:
        return "pivot_root . ."


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachOldRoot:
    """The host's files are out of reach from here on."""

    def describe(self) -> str:
        return "umount -l . && cd /"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHostname:
    name: str

    def describe(self) -> str:
        return f"hostname {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RaiseLoopback:
    """`lo` of a new network namespace is up."""

    def describe(self) -> str:
        return "ip link set lo up"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUpInterface:
    """Wait for the interface that the coordinator puts here, and give it the address that it says."""

    name: str

    def describe(self) -> str:
        return f"ip address add ADDRESS dev {self.name}; ip link set {self.name} up; ip route add default via GATEWAY"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPersonality32:
    """uname names the 32-bit machine."""

    def describe(self) -> str:
        return "setarch linux32"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepCapabilities:
    """Every capability but these is given up."""

    names: tuple[str, ...]

    def describe(self) -> str:
        return f"capsh --drop=all --keep={','.join(self.names)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForbidNewPrivileges:
    def describe(self) -> str:
        return "setpriv --no-new-privs"


Operation = (
    MakeMountsPrivate
    | Mount
    | MountOverlay
    | Keep
    | Bind
    | Protect
    | Hide
    | MakeDirectory
    | MakeSymlink
    | Enter
    | EnterMount
    | PivotRoot
    | DetachOldRoot
    | SetHostname
    | RaiseLoopback
    | SetUpInterface
    | SetPersonality32
    | KeepCapabilities
    | ForbidNewPrivileges
)

_OPERATIONS: Final[Mapping[str, type]] = {kind.__name__: kind for kind in Operation.__args__}


def describe(plan: Iterable[Operation]) -> str:
    """A plan as lines of shell, for people to read."""
    return "\n".join(operation.describe() for operation in plan)


def dump_plan(plan: Iterable[Operation]) -> str:
    """A plan's JSON."""
    fields = [[type(operation).__name__, encode(operation)] for operation in plan]
    return json.dumps(fields, separators=(",", ":"))


def load_plan(text: str) -> tuple[Operation, ...]:
    """The plan that dump_plan() wrote."""
    return tuple(decode(_OPERATIONS[name], fields) for name, fields in json.loads(text))
