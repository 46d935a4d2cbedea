"""Carries out a plan of operations in a newborn process, which is alone in its namespaces and single-threaded."""

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, assert_never

from biruda.coordinator.spawners import operations as op
from biruda.coordinator.spawners import syscalls
from biruda.coordinator.spawners.requests import Address
from biruda.errors import EnvironmentFault

CAPABILITIES: Final = {
    "chown": 0,
    "dac_override": 1,
    "fowner": 3,
    "fsetid": 4,
    "kill": 5,
    "setgid": 6,
    "setuid": 7,
    "setpcap": 8,
    "net_bind_service": 10,
    "net_raw": 13,
    "sys_chroot": 18,
    "audit_write": 29,
    "setfcap": 31,
}
"""The capabilities that a plan may keep: what container runtimes keep, but no mknod."""

_MOUNT_FLAGS: Final = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
}
_SIOCADDRT: Final = 0x890B
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_IFF_UP: Final = 1
_RTF_UP_GATEWAY: Final = 3


def carry_out(plan: Sequence[op.Operation], address: Callable[[], Address]) -> None:
    """Do what the plan says, in its order. Raises EnvironmentFault, which names the operation that failed.

    address() waits for what the coordinator says about this process's network.
    """
    kept: dict[str, int] = {}
    for operation in plan:
        try:
            _do(operation, kept, address)
        except OSError as error:
            text = os.strerror(error.errno or 0)
            raise EnvironmentFault(f"`{operation.describe()}` failed: {text}", hint=_hint(operation, error)) from None
    for fd in kept.values():
        os.close(fd)


def _hint(operation: op.Operation, error: OSError) -> str:
    match operation:
        case op.MakeMountsPrivate() if error.errno == errno.EINVAL:
            return (
                "biruda itself runs in a plain chroot, whose root is no mount: mount --bind that root onto itself first"
            )
        case op.MountOverlay() if error.errno == errno.ENODEV:
            return "the kernel has no overlay file system: modprobe overlay"
        case op.MountOverlay() if os.getuid() and error.errno in (errno.EPERM, errno.EINVAL):
            return "without root this needs Linux 5.11 and a root tree without mounts in it"
        case op.Keep() | op.Bind() if error.errno == errno.ENOENT:
            return "make it, or take the bind out of the environment's configuration"
        case _:
            return ""


def _do(operation: op.Operation, kept: dict[str, int], address: Callable[[], Address]) -> None:
    match operation:  # the most frequent first
        case op.Bind():
            _bind(operation, kept[operation.kept])
        case op.Keep(path=path):
            kept[path] = os.open(path, os.O_PATH | os.O_CLOEXEC)
        case op.MakeDirectory(path=path, mode=mode):
            _make_directory(path, mode)
        case op.Mount():
            _mount(operation)
        case op.Hide(path=path):
            if os.path.lexists(path):
                syscalls.mount("/dev/null", path, flags=syscalls.MS_BIND)
        case op.Protect(path=path):
            if os.path.lexists(path):
                syscalls.mount(path, path, flags=syscalls.MS_BIND | syscalls.MS_REC)
                syscalls.make_read_only(path)
        case op.MakeSymlink(path=path, target=target):
            os.symlink(target, path)
        case op.Enter(path=path):
            os.chdir(path)
        case op.EnterMount():
            os.chdir(os.getcwd())
        case op.MakeMountsPrivate():
            syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
        case op.MountOverlay():
            _mount_overlay(operation, kept[operation.lower])
        case op.PivotRoot():
            syscalls.pivot_root(".", ".")
        case op.DetachOldRoot():
            # The old root lies over the new one, so "." is the old one.
            syscalls.unmount(".", syscalls.MNT_DETACH)
            os.chdir("/")
        case op.SetHostname(name=name):
            socket.sethostname(name)
        case op.RaiseLoopback():
            with _inet_socket() as query:
                _raise_interface(query, "lo")
        case op.SetUpInterface(name=name):
            _set_up_interface(name, address())
        case op.SetPersonality32():
            syscalls.set_personality(syscalls.PER_LINUX32)
        case op.KeepCapabilities(names=names):
            syscalls.keep_capabilities(frozenset(CAPABILITIES[name] for name in names))
        case op.ForbidNewPrivileges():
            syscalls.forbid_new_privileges()
        case _:
            assert_never(operation)


def _mount(operation: op.Mount) -> None:
    if operation.optional and not os.path.isdir(operation.target):
        return
    flags = sum(_MOUNT_FLAGS.get(option, 0) for option in operation.options)
    data = ",".join(option for option in operation.options if option not in _MOUNT_FLAGS)
    syscalls.mount(operation.type, operation.target, operation.type, flags, data)


def _mount_overlay(operation: op.MountOverlay, lower_fd: int) -> None:
    """By descriptor: a path could hold a comma or a colon, which separate options."""
    lower = os.fstat(lower_fd)
    if not stat.S_ISDIR(lower.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    os.chmod("upper", stat.S_IMODE(lower.st_mode))
    with suppress(OSError):  # an owner whom a user namespace does not know
        os.chown("upper", lower.st_uid, lower.st_gid)
    options = (f"lowerdir=/proc/self/fd/{lower_fd}", "upperdir=upper", "workdir=work", *operation.options)
    syscalls.mount("overlay", "merged", "overlay", syscalls.MS_NODEV, ",".join(options))


def _bind(operation: op.Bind, kept_fd: int) -> None:
    if stat.S_ISDIR(os.fstat(kept_fd).st_mode):
        _make_directory(operation.target, 0o755)
    else:
        _make_file(operation.target)
    flags = syscalls.MS_BIND | syscalls.MS_REC
    syscalls.mount(f"/proc/self/fd/{kept_fd}", operation.target, flags=flags)
    if operation.read_only:
        syscalls.make_read_only(operation.target)


def _make_file(path: str) -> None:
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o644)
    except FileNotFoundError:
        # Absolute links lead to places inside; /etc/resolv.conf is often one, to nowhere.
        path = os.path.realpath(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, flags, 0o644)
    os.close(fd)


def _make_directory(path: str, mode: int) -> None:
    try:
        os.mkdir(path)
    except FileNotFoundError:
        os.makedirs(path)
    except FileExistsError:
        if os.path.isdir(path):
            return
        os.makedirs(os.path.realpath(path))  # a link to nowhere, or else a file, which is an error
    os.chmod(path, mode)


def _inet_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _raise_interface(query: socket.socket, name: str) -> None:
    request = struct.pack("16sh22x", name.encode(), 0)
    (flags,) = struct.unpack_from("h", fcntl.ioctl(query, _SIOCGIFFLAGS, request), 16)
    fcntl.ioctl(query, _SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags | _IFF_UP))


def _set_up_interface(name: str, given: Address) -> None:
    with _inet_socket() as query:
        mask = socket.inet_ntoa(struct.pack("!I", 0xFFFFFFFF << (32 - given.prefix) & 0xFFFFFFFF))
        for code, value in ((_SIOCSIFADDR, given.address), (_SIOCSIFNETMASK, mask)):
            fcntl.ioctl(query, code, struct.pack("16s16s8x", name.encode(), _inet_address(value)))
        _raise_interface(query, name)
        any_address = _inet_address("0.0.0.0")
        route = (0, any_address, _inet_address(given.gateway), any_address, _RTF_UP_GATEWAY, 0, 0, 0, 0, 0, 0, 0, 0)
        fcntl.ioctl(query, _SIOCADDRT, struct.pack("@L16s16s16sHhLPhPLLH", *route))


def _inet_address(text: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
