"""System calls that Python has no name for, and a fast SHA-256, by the builtin of every static worker.

A Python without that builtin imports this module all the same; calling a function then raises MissingBuiltin. Failures
of the calls raise OSError, as the functions of os do.
"""

import os
from typing import Any, Final

from biruda.errors import EnvironmentFault

try:
    import _biruda  # type: ignore[import-not-found]  # linked into static workers only
except ImportError:
    _biruda = None

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2

MODULE_INIT_COMPRESSED_FILE: Final = 4  # the kernel itself unpacks it, where it was built to

RB_AUTOBOOT: Final = 0x01234567
RB_HALT_SYSTEM: Final = 0xCDEF0123
RB_POWER_OFF: Final = 0x4321FEDC

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

PER_LINUX: Final = 0
PER_LINUX32: Final = 8

MAX_ENTROPY_BYTES: Final = 1024


class MissingBuiltin(EnvironmentFault):
    """This Python is no static worker's."""


def has_builtin() -> bool:
    """Whether the functions here work at all: True in every static worker."""
    return _biruda is not None


def built_for() -> str:
    """The architecture that this worker was compiled for, "" where it is no static one."""
    return str(_biruda.arch) if _biruda is not None else ""


def mount(
    source: str | None, target: str | os.PathLike[str], fstype: str | None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2). Raises OSError with the target's path."""
    _builtin("mount").mount(source, target, fstype, flags, data)


def umount2(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2). Raises OSError."""
    _builtin("umount2").umount2(target, flags)


def pivot_root(new_root: str | os.PathLike[str], put_old: str | os.PathLike[str]) -> None:
    """pivot_root(2). Raises OSError."""
    _builtin("pivot_root").pivot_root(new_root, put_old)


def finit_module(fd: int, parameters: str = "", flags: int = 0) -> None:
    """Load the kernel module that is open as fd. Raises OSError, FileExistsError where it is loaded already."""
    _builtin("finit_module").finit_module(fd, parameters, flags)


def reboot(command: int) -> None:
    """Restart, halt or power off the machine, or the PID namespace, at once: nothing is synced. Raises OSError."""
    _builtin("reboot").reboot(command)


def prctl(option: int, argument: int = 0, third: int = 0, fourth: int = 0, fifth: int = 0) -> int:
    """prctl(2) for options whose arguments are numbers. Raises OSError."""
    return int(_builtin("prctl").prctl(option, argument, third, fourth, fifth))


def personality(wanted: int) -> int:
    """Set the execution domain; the former one. Raises OSError."""
    return int(_builtin("personality").personality(wanted))


def sethostname(name: str) -> None:
    """Raises OSError."""
    _builtin("sethostname").sethostname(name)


def unshare(flags: int) -> None:
    """unshare(2) of this thread. Raises OSError."""
    _builtin("unshare").unshare(flags)


def set_time(seconds: int, nanoseconds: int = 0) -> None:
    """Set the clock of the system, in time since the epoch. Raises OSError."""
    _builtin("set_time").set_time(seconds, nanoseconds)


def add_entropy(data: bytes) -> None:
    """Add and credit 1 to MAX_ENTROPY_BYTES bytes to the kernel's generator, which uses them at once.

    Raises OSError, ValueError for another size.
    """
    _builtin("add_entropy").add_entropy(data)


def has_sha256() -> bool:
    """Whether sha256_blocks() works here: in a static worker, on a processor with instructions for it."""
    return _biruda is not None and bool(_biruda.has_sha256)


def sha256_blocks(state: bytearray, data: bytes | memoryview) -> None:
    """Take whole blocks of 64 bytes into a state of eight words of this machine."""
    _builtin("sha256_blocks").sha256_blocks(state, data)


def _builtin(function: str) -> Any:
    if _biruda is None:
        raise MissingBuiltin(
            f"{function}() is not there in this Python, only in a static worker",
            hint="make one with ./build-static.sh --workers",
        )
    return _biruda
