"""What a child of the zygote does before it becomes another program, which then outlives the coordinator."""

import os
import resource
import signal
import socket
from typing import Final, NoReturn

from biruda.coordinator.spawners.cgroup import make, write
from biruda.coordinator.spawners.requests import FIRST_LISTENER_FD, Launch, Stillbirth, pack

_FAILED: Final = 127
_REPORT_FD: Final = 9
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def become(launch: Launch, report_fd: int, *, joins: bool) -> NoReturn:
    """Go where the program belongs and be it. joins: this process was not born in its cgroup, but has to go there."""
    try:
        signal.set_wakeup_fd(-1)
        os.dup2(report_fd, _REPORT_FD, inheritable=False)
        os.closerange(3, _REPORT_FD)
        os.closerange(_REPORT_FD + 1, 1 << 20)
        _go(launch, joins=joins)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        os.write(_REPORT_FD, pack(Stillbirth(problem=f"{where}{os.strerror(error.errno or 0)}")))
    finally:
        os._exit(_FAILED)


def _go(launch: Launch, *, joins: bool) -> NoReturn:
    if joins and launch.cgroup:
        write(f"{launch.cgroup.path}/cgroup.procs", "0")
    os.setsid()
    for order in launch.joined:
        make(order)
        write(f"{order.path}/tasks", "0")
    os.makedirs(launch.directory, 0o700, exist_ok=True)
    os.chdir(launch.directory)
    for fd, name in enumerate(launch.listening, FIRST_LISTENER_FD):
        _listen(name, fd)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for fd, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, fd)
    if launch.file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (launch.file_bytes, launch.file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(launch.argv[0], launch.argv, _ENVIRONMENT)


def _listen(name: str, fd: int) -> None:
    """Be reachable before the program has begun: who connects waits in the queue, and need not ask again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        umask = os.umask(0o177)
        listener.bind(name)
        os.umask(umask)
        listener.listen(2)
        os.dup2(listener.fileno(), fd)
