"""Makes, empties and removes control groups of both versions. Standard library only: the zygote uses it."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from select import POLLIN, POLLPRI, poll
from typing import Final

from biruda.coordinator.spawners.processes import has_ended, start_ticks
from biruda.coordinator.spawners.requests import CgroupOrder
from biruda.errors import EnvironmentFault

CONTROLLERS: Final = ("memory", "pids", "cpu")
_WATCHED: Final = 16
_WITHOUT_SWAP: Final = ("memory.swap.max", "memory.memsw.limit_in_bytes")  # not there where swap is not accounted for


def make_base(base: str) -> None:
    """Make an instance's base; in version 2 its children hold the controllers, as far as this process may say so."""
    os.makedirs(base, exist_ok=True)
    for directory in map(str, (*reversed(Path(base).parents), base)):
        # One with processes cannot hand out controllers; asked to, it may turn threaded, and its children invalid.
        if not os.path.exists(f"{directory}/cgroup.type") or not read(f"{directory}/cgroup.procs"):
            _hand_out_controllers(directory)


def _hand_out_controllers(directory: str) -> None:
    for controller in CONTROLLERS:
        with suppress(OSError):  # no control group, not ours, or the parent does not have this one
            write(f"{directory}/cgroup.subtree_control", f"+{controller}")


def make(order: CgroupOrder) -> None:
    """Make a cgroup and write its settings. Raises OSError."""
    make_directory(order.path)
    for file, value in order.settings.items():
        write_unless_optional(f"{order.path}/{file}", value)


def make_directory(path: str) -> bool:
    """Make a cgroup and its base; False when it was there. The base of an idle instance may go at any time."""
    for _ in range(10):
        try:
            os.mkdir(path)
        except FileNotFoundError:
            make_base(os.path.dirname(path))
        except FileExistsError:
            return False
        else:
            return True
    os.mkdir(path)
    return True


def write(path: str, text: str) -> None:
    """Write to a file of the kernel in one call."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_unless_optional(path: str, text: str) -> None:
    """Write a setting, but not one that this kernel cannot have nor need."""
    try:
        write(path, text)
    except FileNotFoundError:
        if os.path.basename(path) not in _WITHOUT_SWAP:
            raise


def read(path: str) -> str:
    """What a file of the kernel says; "" when it is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def end(path: str, limit_s: float) -> None:
    """No process is left in the cgroup on return, nor in one below. Raises EnvironmentFault if one does not end.

    Only for what can end them all at once: the version 2 tree, or version 1's freezer.
    """
    deadline = time.monotonic() + limit_s
    try:
        if os.path.exists(f"{path}/cgroup.events"):
            _end_unified(path, deadline)
        elif os.path.exists(f"{path}/freezer.state"):
            _end_frozen(path, f"{path}/freezer.state", ("FROZEN", "THAWED"), deadline)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # which say that it was removed, so it had no process
            raise EnvironmentFault(f"{path}: {os.strerror(error.errno or 0)}") from None


def can_end(path: str) -> bool:
    """True for a cgroup that is there and that end() can empty."""
    return os.path.exists(f"{path}/cgroup.events") or os.path.exists(f"{path}/freezer.state")


def _end_unified(path: str, deadline: float) -> None:
    events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if b"populated 0" in os.pread(events, 4096, 0):
            return
        watch = poll()
        watch.register(events, POLLPRI)
        with _watching(path, watch) as pidfds:
            try:
                write(f"{path}/cgroup.kill", "1")
            except FileNotFoundError:  # before Linux 5.14
                _end_frozen(path, f"{path}/cgroup.freeze", ("1", "0"), deadline)
            while b"populated 0" not in os.pread(events, 4096, 0):
                ready = watch.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ready:
                    raise EnvironmentFault(_stuck(path))
                for fd, _ in ready:
                    if fd in pidfds:
                        watch.unregister(fd)
    finally:
        os.close(events)


@contextmanager
def _watching(path: str, watch: "poll") -> Iterator[set[int]]:
    """Descriptors of some members, watched too: within 10 ms of a birth the kernel holds back news of the cgroup."""
    pidfds: set[int] = set()
    try:
        for pid in islice(_members(path), _WATCHED):
            with suppress(OSError):
                pidfds.add(os.pidfd_open(pid))
        for fd in pidfds:
            watch.register(fd, POLLIN)
        yield pidfds
    finally:
        for fd in pidfds:
            os.close(fd)


def _end_frozen(path: str, switch: str, states: tuple[str, str], deadline: float) -> None:
    """Stop them all, so that none has a child unseen, kill them and let them go; until none is left."""
    frozen, thawed = states
    while members := {pid: start_ticks(pid) for pid in _members(path)}:
        write(switch, frozen)
        for pid in {*members, *_members(path)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        write(switch, thawed)
        for pid, ticks in members.items():
            if not has_ended(pid, ticks, deadline):
                raise EnvironmentFault(_stuck(path))


def _stuck(path: str) -> str:
    pids = " ".join(map(str, list(_members(path))[:8]))
    return f"processes of {path} do not end: {pids} (state D waits for a device or a server)"


def _members(path: str) -> Iterator[int]:
    for directory, _, _ in os.walk(path):
        yield from map(int, read(f"{directory}/cgroup.procs").split())


def remove(path: str, limit_s: float = 1.0) -> None:
    """A cgroup without processes, those below and a base that becomes empty are gone. Raises EnvironmentFault."""
    deadline = time.monotonic() + limit_s
    for directory, _, _ in os.walk(path, topdown=False):
        while not _removed(directory):
            if time.monotonic() > deadline:
                raise EnvironmentFault(_stuck(directory))
            time.sleep(0.001)  # version 1 says nowhere when the last dying process has left
    remove_base(os.path.dirname(path))


def _removed(path: str) -> bool:
    try:
        Path(path).rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise EnvironmentFault(f"{path}: {os.strerror(error.errno or 0)}") from None
    return True


def remove_base(base: str) -> None:
    """The base of an instance, and the directory of all instances, are gone where nothing is in them."""
    with suppress(OSError):
        Path(base).rmdir()
        if Path(base).parent.name == "biruda":
            Path(base).parent.rmdir()
