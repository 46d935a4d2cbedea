"""The few system calls by which a test puts its worker elsewhere."""

import ctypes
import os

import pytest

NEWNS, NEWPID = 0x00020000, 0x20000000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make namespaces and cgroups here")


def unshare(flags: int) -> None:
    """New namespaces; mounts made from now on stay in them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if flags & NEWNS and libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def mount(kind: str, target: str, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def become_init() -> None:
    """Go on as PID 1 of a new PID namespace; the process that stays outside ends as this one does."""
    unshare(NEWNS | NEWPID)
    pid = os.fork()
    if pid:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    mount("proc", "/proc")
