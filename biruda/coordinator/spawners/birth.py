"""What a newborn does between the clone and its first word: the child's side of the zygote."""

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import cache
from typing import Final, NoReturn

from biruda.convert import decode
from biruda.coordinator.spawners import syscalls
from biruda.coordinator.spawners.cgroup import make, write
from biruda.coordinator.spawners.namespaces import carry_out
from biruda.coordinator.spawners.operations import load_plan
from biruda.coordinator.spawners.requests import BORN, MAX_BYTES, Address, Birth, Stillbirth, pack
from biruda.errors import EnvironmentFault
from biruda.worker.opening import Opening

Serve = Callable[[socket.socket, socket.socket, Opening], object]

_CRASHED: Final = 70
_BACKLOG: Final = 8

plan_of = cache(load_plan)
"""Plans by their text: the zygote reads each once, and its children find it read."""


class CoordinatorGone(Exception):
    """The other end of the report closed: nobody waits for this worker."""


def live(
    birth: Birth, connection_fd: int, report_fd: int, user: tuple[int, int], serve: Serve, *, joins: bool
) -> NoReturn:
    """Be the worker from its birth to its end.

    user: uid and gid before the clone. joins: it was not born in its cgroup, but has to go there.
    """
    status = _CRASHED
    try:
        signal.set_wakeup_fd(-1)  # the zygote's handler stays until serve() sets its own: there is no child before
        _close_all_but(connection_fd, report_fd)
        with socket.socket(fileno=report_fd) as report:
            try:
                listener = _settle(birth, report, user, joins=joins)
            except EnvironmentFault as fault:
                _say(report, pack(Stillbirth(problem=str(fault), hint=fault.hint)))
                os._exit(_CRASHED)
            _say(report, BORN)
        serve(socket.socket(fileno=connection_fd), listener, birth.opening)
        status = 0
    except CoordinatorGone:
        pass
    except BaseException:
        # The border of a process that has nobody to raise to.
        sys.stderr.write(f"biruda: worker {birth.opening.worker} has crashed\n")
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _close_all_but(*kept: int) -> None:
    """Also the ends that other sockets of the zygote have: a newborn that held one would keep its peer waiting."""
    low = 3
    for fd in (*sorted(kept), 1 << 20):
        os.closerange(low, fd)
        low = fd + 1


def _settle(birth: Birth, report: socket.socket, user: tuple[int, int], *, joins: bool) -> socket.socket:
    """Go where the worker belongs; its listener. Raises EnvironmentFault, which says why it cannot be."""
    opening = birth.opening
    try:
        if joins and birth.cgroup:
            write(f"{birth.cgroup.path}/cgroup.procs", "0")
        os.setsid()
        if birth.namespaces & syscalls.CLONE_NEWUSER:
            _be_root_here(*user)
        for order in birth.joined:
            make(order)
            # Its only thread: moving whole processes waits for the kernel's grace period, 10 ms and more.
            write(f"{order.path}/tasks", "0")
        _furnish(birth.directory, opening, inside=bool(birth.plan))
        listener = _listen()
        carry_out(plan_of(birth.plan) if birth.plan else (), lambda: _address(report))
        os.chdir("/")
        if birth.plan:
            _import_nothing_here()
        if opening.subreaper:
            syscalls.become_subreaper()
        syscalls.set_name(f"worker {opening.worker}")
        syscalls.hide_from_equals()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise EnvironmentFault(f"{where}{os.strerror(error.errno or 0)}", hint=_hint(error)) from None
    return listener


def _hint(error: OSError) -> str:
    return "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""


def _be_root_here(uid: int, gid: int) -> None:
    """In a user namespace of its own a user who is not root is uid 0, and no other uid is there."""
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {uid} 1")
    write("/proc/self/gid_map", f"0 {gid} 1")


def _furnish(directory: str, opening: Opening, *, inside: bool) -> None:
    """Make the place's directory, the working directory from here on, and open what cannot be reached from inside."""
    mode = 0o711 if opening.user and not inside else 0o700  # steps of a user pass through it to `work`
    try:
        os.mkdir(directory, mode)
    except FileNotFoundError:
        os.makedirs(directory, mode)
    except FileExistsError:
        os.chmod(directory, mode)
    os.chdir(directory)
    if inside and opening.room_fd >= 0:
        log_fd = os.open("log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.dup2(log_fd, opening.room_fd, inheritable=False)
        os.close(log_fd)


def _listen() -> socket.socket:
    """A socket in the working directory: the name of one has at most 108 bytes, a path may have more."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    listener.bind("sock")
    os.umask(umask)
    listener.listen(_BACKLOG)
    return listener


def _say(report: socket.socket, data: bytes) -> None:
    try:
        report.send(data)
    except ConnectionError:
        raise CoordinatorGone from None


def _address(report: socket.socket) -> Address:
    data = report.recv(MAX_BYTES)
    if not data:
        raise CoordinatorGone
    return decode(Address, json.loads(data))


def _import_nothing_here() -> None:
    """Python's own files are out of reach, and a root tree's must never be taken for them."""
    sys.path.clear()
    sys.path_importer_cache.clear()
