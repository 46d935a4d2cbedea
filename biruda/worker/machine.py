"""The worker as the first process of a virtual machine: makes of a kernel and two disks a place to run a job in.

    modules · file systems · the port · "ready" … told what it is · the channel, until it is over · power off

Until it is told what it is it does nothing that one clone of it may not share with another: a coordinator keeps its
memory as a template. It says one line of JSON, Ready, and is told a Wake, with its length before it. Runs in static
workers only, as PID 1, with a root of its own that nobody else has.
"""

import errno
import glob
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn

from biruda.convert import decode, encode
from biruda.errors import BirudaError, EnvironmentFault
from biruda.model import Kind, Limits
from biruda.worker import kernel
from biruda.worker.card import Network, join, up
from biruda.worker.entry import prepare
from biruda.worker.holding import SCRATCH_FD, hold, make_group
from biruda.worker.opening import Opening
from biruda.worker.serve import rehearse_in_machine, serve_over

PORT: Final = "biruda"
WORK: Final = "/build"
MODULES: Final = "/modules"
WAKE_HEAD_BYTES: Final = 8
"""What stands before a Wake: its length in hexadecimal digits."""

_PORTS_S: Final = 10.0
_DISKS_S: Final = 10.0
_WAKE_S: Final = 300.0  # a machine that nobody talks to
_LOOK_S: Final = 0.002
_MOST_WAKE: Final = 64 * 1024
_NEW_ROOT: Final = "/new"
_SCRATCH: Final = "/scratch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a machine says when it can be told what it is."""

    boot_id: str = ""
    kernel: str = ""
    problem: str = ""  # why it never will be


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """What a machine is told first: its clock and its generator stand where its template's stood."""

    opening: Opening
    seconds: int  # since the epoch
    nanoseconds: int
    entropy: str  # hex
    hostname: str
    pids: int = 0  # processes of the attempt; 0: no limit
    network: Network | None = None


@dataclass(slots=True)
class _Arguments:
    root: str = ""  # file system of the disk; "": there is none
    scratch: str = ""
    rehearses: bool = False  # it becomes a template


def main(arguments: Sequence[str]) -> int:
    """Be the machine's init, which never returns; elsewhere the status to exit with. Arguments are argv_of()'s."""
    if os.getpid() == 1 and kernel.has_builtin():
        _be_init(arguments)
    sys.stderr.write("biruda: --init is for the first process of a machine that biruda makes\n")
    return 2


def _be_init(arguments: Sequence[str]) -> NoReturn:
    try:
        _live(_parsed(arguments))
    except BaseException as error:  # a PID 1 that ends is a kernel panic, which says less
        with suppress(Exception):
            said = str(error) if isinstance(error, BirudaError) else "".join(traceback.format_exception(error))
            sys.stderr.write(f"biruda: {said}\n")
    power_off()


def _parsed(arguments: Sequence[str]) -> _Arguments:
    parsed = _Arguments()
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "root":
            parsed.root = value
        elif name == "scratch":
            parsed.scratch = value
        elif name == "rehearse":
            parsed.rehearses = True
    return parsed


def _live(arguments: _Arguments) -> None:
    _mount_kernel_file_systems()
    port = -1
    try:
        _load_modules()
        port = _open_port()
        if arguments.root:
            _enter_root(arguments)
    except (OSError, EnvironmentFault) as error:
        if port < 0:
            raise
        _say(port, Ready(problem=str(error)))
        _wait_until_read(port)
        return
    if arguments.rehearses:
        _rehearse()
    _say(port, Ready(boot_id=_read("/proc/sys/kernel/random/boot_id"), kernel=os.uname().release))
    wake = _told(port)
    if wake is not None:
        _awake(wake)
        prepare(wake.opening)
        serve_over(port, port, wake.opening, reopens=True)


def _mount_kernel_file_systems() -> None:
    for fstype, target, flags in (
        ("devtmpfs", "/dev", kernel.MS_NOSUID),
        ("proc", "/proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC),
        ("sysfs", "/sys", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC),
    ):
        with suppress(FileExistsError):
            os.mkdir(target)
        try:
            kernel.mount(fstype, target, fstype, flags)
        except OSError as error:
            if error.errno != errno.EBUSY:  # the kernel has mounted it itself
                raise
    console = os.open("/dev/console", os.O_RDWR)
    for fd in range(3):
        os.dup2(console, fd)
    if console > 2:
        os.close(console)


def _load_modules() -> None:
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(MODULES)):
            path = f"{MODULES}/{name}"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                kernel.finit_module(fd)
            except FileExistsError:
                pass
            except OSError as error:
                sys.stderr.write(f"biruda: {path}: {error.strerror}\n")
            finally:
                os.close(fd)
            os.unlink(path)  # its memory is the machine's


def _open_port() -> int:
    """The port, which comes to be some time after its driver."""
    end_s = time.monotonic() + _PORTS_S
    while time.monotonic() < end_s:
        for path in glob.glob("/sys/class/virtio-ports/*/name"):
            if _read(path) == PORT:
                node = f"/dev/{path.split('/')[-2]}"
                if os.path.exists(node):
                    return os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        time.sleep(_LOOK_S)
    raise EnvironmentFault("the machine has no port to talk by")


def _disk(serial: str) -> str:
    """The device that says it has this serial number."""
    end_s = time.monotonic() + _DISKS_S
    while time.monotonic() < end_s:
        for path in glob.glob("/sys/block/vd*/serial"):
            if _read(path) == serial:
                node = f"/dev/{path.split('/')[-2]}"
                if os.path.exists(node):
                    return node
        time.sleep(_LOOK_S)
    raise EnvironmentFault(f"the machine has no disk {serial!r}")


def _enter_root(arguments: _Arguments) -> None:
    """Make a throw-away layer over the root disk the root of this and all later processes.

    The scratch's own root is not to be seen from inside: the job could write around its layer.
    """
    for directory in ("/base", _SCRATCH, _NEW_ROOT):
        os.mkdir(directory)
    kernel.mount(_disk("root"), "/base", arguments.root, kernel.MS_RDONLY)
    if arguments.scratch:
        kernel.mount(_disk("scratch"), _SCRATCH, arguments.scratch, 0, "noinit_itable")
    else:
        kernel.mount("tmpfs", _SCRATCH, "tmpfs", 0, "size=50%")
    scratch = os.open(_SCRATCH, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(scratch, SCRATCH_FD, inheritable=False)
    os.close(scratch)
    for name in ("upper", "work"):
        with suppress(FileExistsError):
            os.mkdir(f"{_SCRATCH}/{name}", 0o755)
    layers = f"lowerdir=/base,upperdir={_SCRATCH}/upper,workdir={_SCRATCH}/work"
    kernel.mount("overlay", _NEW_ROOT, "overlay", 0, layers)
    for name in ("dev", "proc", "sys", "tmp", "run", "build"):
        with suppress(FileExistsError):
            os.mkdir(f"{_NEW_ROOT}/{name}", 0o1777 if name == "tmp" else 0o755)
    for name in ("dev", "proc", "sys"):
        kernel.mount(f"/{name}", f"{_NEW_ROOT}/{name}", None, kernel.MS_MOVE)
    os.unlink("/init")
    os.chdir(_NEW_ROOT)
    kernel.mount(".", "/", None, kernel.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    _furnish()


def _furnish() -> None:
    """What programs expect and a bare kernel has not."""
    for target, fstype, data in (
        ("/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=620,gid=5"),
        ("/dev/shm", "tmpfs", "mode=1777"),
        ("/run", "tmpfs", "mode=755,size=20%"),
    ):
        os.makedirs(target, exist_ok=True)
        with suppress(OSError):
            kernel.mount(fstype, target, fstype, kernel.MS_NOSUID | kernel.MS_NODEV, data)
    for path, link in (("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")):
        with suppress(OSError):
            os.symlink(path, f"/dev/{link}")
    with suppress(OSError):
        os.unlink("/dev/ptmx")
    with suppress(OSError):
        os.symlink("pts/ptmx", "/dev/ptmx")
    for path, mode in (("/dev/null", 0o666), ("/dev/zero", 0o666), ("/dev/full", 0o666), ("/dev/tty", 0o666)):
        with suppress(OSError):
            os.chmod(path, mode)
    with suppress(OSError):
        kernel.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        make_group()  # that it lacks something is seen when it is to hold a limit
    up("lo")


def _rehearse() -> None:
    """Do once what a template's clones then need not."""
    opening = Opening(worker="", nonce="", kind=Kind.QEMU, work=WORK, lease_s=1.0, owns_pids=True)
    decode(Wake, encode(Wake(opening=opening, seconds=0, nanoseconds=0, entropy="", hostname="")))
    rehearse_in_machine(opening)
    os.sync()  # else each clone would write to its disk what this one did


def _awake(wake: Wake) -> None:
    """Be nobody's clone any more. Raises OSError."""
    kernel.set_time(wake.seconds, wake.nanoseconds)
    kernel.add_entropy(bytes.fromhex(wake.entropy))
    kernel.sethostname(wake.hostname)
    if wake.network is not None:
        join(wake.network)
    hold(Limits(pids=wake.pids or None))


def _say(port: int, ready: Ready) -> None:
    data = json.dumps(encode(ready)).encode() + b"\n"
    end_s = time.monotonic() + _WAKE_S
    while data and time.monotonic() < end_s:
        try:
            data = data[os.write(port, data) :]
        except BlockingIOError:  # the host's side is not connected, or slow
            time.sleep(_LOOK_S)


def _wait_until_read(port: int) -> None:
    """Give the host the time to read before the machine is gone."""
    end_s = time.monotonic() + 1.0
    while time.monotonic() < end_s and not _is_cut(port):
        time.sleep(_LOOK_S)


def _is_cut(port: int) -> bool:
    try:
        return not os.read(port, 1)
    except BlockingIOError:
        return False


def _told(port: int) -> Wake | None:
    """What this machine is; None when nobody says so in time."""
    end_s = time.monotonic() + _WAKE_S
    size = _taken(port, WAKE_HEAD_BYTES, end_s)
    data = _taken(port, min(int(size, 16), _MOST_WAKE), end_s) if size else b""
    return decode(Wake, json.loads(data)) if data else None


def _taken(port: int, size: int, end_s: float) -> bytes:
    """So many bytes and no more: what follows is the channel's. b"" when they do not come in time."""
    taken = b""
    while len(taken) < size:
        try:
            piece = os.read(port, size - len(taken))
        except BlockingIOError:
            piece = b""
        taken += piece
        if not piece:  # nothing there, or the host's side is not connected
            if time.monotonic() > end_s:
                return b""
            time.sleep(_LOOK_S)
    return taken


def power_off() -> NoReturn:
    """End the machine. Nothing is written back: all its disks are thrown away."""
    for command in (kernel.RB_POWER_OFF, kernel.RB_AUTOBOOT):
        with suppress(OSError):
            kernel.reboot(command)
        time.sleep(1.0)  # for a machine that cannot do the first
    os._exit(1)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
