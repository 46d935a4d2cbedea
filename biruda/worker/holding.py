"""Limits that a worker holds its attempt to by itself: in a virtual machine it owns the kernel that can hold them."""

import os
from contextlib import suppress
from typing import Final

from biruda.errors import EnvironmentFault
from biruda.model import Limits

SCRATCH_FD: Final = 100
"""Descriptor of the disk on which the throw-away layer is, out of the job's sight."""

_GROUPS: Final = "/sys/fs/cgroup"
_GROUP: Final = f"{_GROUPS}/attempt"
_CONTROLLERS: Final = ("cpu", "memory", "pids")


def hold_to(limits: Limits) -> None:
    """Hold this process and what it starts from now on to an attempt's limits. Raises EnvironmentFault."""
    try:
        hold(limits)
        if limits.disk_bytes:
            _leave_free(limits.disk_bytes)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise EnvironmentFault(
            f"the attempt's limits cannot be held in this machine: {where}{os.strerror(error.errno or 0)}"
        ) from None


def make_group() -> None:
    """Be in a control group of its own, with what this process starts from now on. Raises OSError."""
    for controller in _CONTROLLERS:
        with suppress(OSError):  # a kernel may have been built without one; that it lacks one is seen by hold()
            _write(f"{_GROUPS}/cgroup.subtree_control", f"+{controller}")
    os.mkdir(_GROUP)
    _write(f"{_GROUP}/cgroup.procs", "0")


def hold(limits: Limits) -> None:
    """Hold the group to them as far as control groups do. Raises OSError."""
    if limits.memory_bytes:
        _write(f"{_GROUP}/memory.max", str(limits.memory_bytes))
    if limits.pids:
        _write(f"{_GROUP}/pids.max", str(limits.pids))
    if limits.cpus:
        _write(f"{_GROUP}/cpu.max", f"{max(1000, round(limits.cpus * 100_000))} 100000")


def _leave_free(size_bytes: int) -> None:
    """Occupy what of the disk an attempt may not use."""
    about = os.fstatvfs(SCRATCH_FD)
    ballast_bytes = about.f_bavail * about.f_frsize - size_bytes
    if ballast_bytes > 0:
        fd = os.open("ballast", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=SCRATCH_FD)
        try:
            os.posix_fallocate(fd, 0, ballast_bytes)
        finally:
            os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
