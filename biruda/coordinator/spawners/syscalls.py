"""The kernel calls that Python 3.11 has no name for. Each changes the calling process only and raises OSError.

Standard library only, and little of it: the zygote keeps this in memory for as long as it lives.
"""

import ctypes
import errno
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
_CLONE_PIDFD: Final = 0x00001000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_CLONE_INTO_CGROUP: Final = 0x200000000
_SIGCHLD: Final = 17

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
PER_LINUX32: Final = 0x0008

_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_TID_ADDRESS: Final = 40
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522

_SYS_CLONE3: Final = 435  # these two have one number on every architecture
_SYS_MOUNT_SETATTR: Final = 442
_SYS_CLONE: Final = {
    "x86_64": 56,
    "i686": 120,
    "aarch64": 220,
    "armv7l": 120,
    "riscv64": 220,
    "loongarch64": 220,
    "ppc64le": 120,
    "s390x": 120,
}
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR_RDONLY: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock: for clone, between the fork hooks
_long = ctypes.c_long

# Looked up once and here: a newborn would pay for each with page faults, again and again.
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_clone_call = _held.syscall
_syscall, _prctl_call, _mount_call, _umount2 = _libc.syscall, _libc.prctl, _libc.mount, _libc.umount2
_pivot_root, _setns, _personality = _libc.pivot_root, _libc.setns, _libc.personality
_capget, _capset = _libc.capget, _libc.capset
_prctl_call.argtypes = (ctypes.c_int, ctypes.c_void_p, *[ctypes.c_ulong] * 3)
_mount_call.argtypes = (*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p)
_personality.argtypes = (ctypes.c_ulong,)


class _CloneArguments(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


@dataclass(frozen=True, slots=True)
class Cloned:
    """What clone() returns, in the caller and in the child."""

    pid: int  # 0 in the child
    pidfd: int  # -1 in the child
    in_cgroup: bool  # False: the child has to join by itself


def clone(flags: int, cgroup_fd: int = -1, *, legacy: bool = False) -> Cloned:
    """Fork into new namespaces and a cgroup v2 directory. The caller must be single-threaded. Raises OSError.

    One call where the kernel has clone3. Where a seccomp filter refuses it, or with `legacy`, clone does the same but
    for the cgroup. In the child nothing is raised: an exception there would run what is meant for the caller.
    """
    pidfd = ctypes.c_int(-1)
    tid_address = _cached_tid_address()
    flags |= _CLONE_PIDFD | (_CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID if tid_address else 0)
    arguments = _CloneArguments(
        flags=flags | (_CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0),
        pidfd=ctypes.addressof(pidfd),
        child_tid=tid_address,
        exit_signal=_SIGCHLD,
        cgroup=max(cgroup_fd, 0),
    )
    _before_fork()
    pid, in_cgroup = -1, False
    if not legacy:
        in_cgroup = cgroup_fd >= 0
        pid = _clone_call(_long(_SYS_CLONE3), ctypes.byref(arguments), _long(ctypes.sizeof(arguments)))
    if pid < 0:  # after any refusal: a filter may answer EPERM, an old kernel E2BIG or EINVAL
        in_cgroup = False
        pid = _clone_as_of_old(flags | _SIGCHLD, pidfd, tid_address)
    error = ctypes.get_errno()
    if pid == 0:
        _after_fork_child()
        return Cloned(0, -1, in_cgroup)
    _after_fork_parent()
    if pid < 0:
        raise OSError(error, os.strerror(error), "clone")
    return Cloned(pid, pidfd.value, in_cgroup)


def _clone_as_of_old(flags: int, pidfd: "ctypes.c_int", tid_address: int) -> int:
    machine = os.uname().machine
    number = _SYS_CLONE.get(machine)
    if number is None:
        return -1
    # The thread pointer, which is not looked at, and the thread number's address change places between architectures.
    first = (_long(0), _long(flags)) if machine == "s390x" else (_long(flags), _long(0))
    address = _long(tid_address)
    pid: int = _clone_call(_long(number), *first, ctypes.byref(pidfd), address, address)
    return pid


@cache
def _cached_tid_address() -> int:
    """Where the C library keeps the thread's number, which a raw clone must renew; 0 where it keeps none there."""
    address = ctypes.c_void_p()
    if _prctl_call(_PR_GET_TID_ADDRESS, ctypes.addressof(address), 0, 0, 0) != 0 or not address.value:
        return 0
    # musl has the kernel clear a lock at this address: only a word that holds the number now is the number's.
    is_number = ctypes.c_int.from_address(address.value).value == os.getpid()
    return address.value if is_number else 0


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); source and target as byte paths of the file system."""
    fields = (os.fsencode(text) if text else None for text in (source, target, kind))
    source_bytes, target_bytes, kind_bytes = fields
    options = os.fsencode(data) if data else None
    _check(_mount_call(source_bytes, target_bytes, kind_bytes, flags, options), target)


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_umount2(os.fsencode(target), flags), target)


def make_read_only(target: str) -> None:
    """The mount at target and those below it take no writes; before Linux 5.12 only the mount itself."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = ctypes.c_uint(_AT_RECURSIVE)
    number, size = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_size_t(len(attributes))
    if _syscall(number, ctypes.c_int(-100), os.fsencode(target), flags, attributes, size) == 0:
        return
    kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)  # a user namespace must not lose these
    mount("", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _check(_pivot_root(os.fsencode(new), os.fsencode(old)), new)


def join_namespace(path: str, flag: int) -> None:
    """Enter the namespace that a /proc/PID/ns file names."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_setns(fd, flag), path)
    finally:
        os.close(fd)


def set_personality(personality: int) -> None:
    """What uname and others tell 32-bit programs."""
    _check(_personality(personality), "personality")


def set_name(name: str) -> None:
    """What ps shows; 15 bytes."""
    _prctl(_PR_SET_NAME, os.fsencode(name)[:15])


def become_subreaper() -> None:
    """Orphans among the descendants become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_from_equals() -> None:
    """Others of the same user can neither trace this process nor open what /proc/PID shows of it."""
    _prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """Set-user-id programs and file capabilities have no effect from here on, for descendants too."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int | bytes) -> None:
    _check(_prctl_call(option, value, 0, 0, 0), "prctl")


def keep_capabilities(kept: frozenset[int]) -> None:
    """Give up every other capability in all five sets, for descendants too; needs CAP_SETPCAP."""
    for capability in range(64):
        if capability in kept:
            continue
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # the kernel knows no more
    with suppress(OSError):  # before Linux 4.3 there is no such set
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    _check(_capget(header, sets), "capget")
    now = struct.unpack("=6I", sets.raw)
    effective, permitted = (_only(now[index], now[index + 3], kept) for index in (0, 1))
    words = (effective[0], permitted[0], 0, effective[1], permitted[1], 0)
    _check(_capset(header, struct.pack("=6I", *words)), "capset")


def _only(low: int, high: int, kept: frozenset[int]) -> tuple[int, int]:
    mask = sum(1 << capability for capability in kept)
    return low & mask & 0xFFFFFFFF, high & (mask >> 32)
