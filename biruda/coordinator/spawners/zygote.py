"""The process that all workers of kind process and chroot are forked from, and machines launched: `python -m … FD`.

Small and single-threaded, with a worker's code loaded, it clones one child for each birth that the coordinator asks
for at the other end of FD; tracebacks go to the descriptor after FD. It is the parent of all workers and outlives the
coordinator while one of them lives: it then takes no more requests, ends what it was told to guard, and removes what
each worker leaves as it ends.
"""

import contextlib
import gc
import os
import resource  # noqa: F401 - os.wait4 loads it when it is first called, and inside another root it is not found
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from biruda.coordinator.spawners import cgroup, syscalls
from biruda.coordinator.spawners.birth import Serve, live, plan_of
from biruda.coordinator.spawners.launching import become
from biruda.coordinator.spawners.processes import end_family, family, start_ticks
from biruda.coordinator.spawners.requests import (
    BORN,
    MAX_BYTES,
    Answer,
    Birth,
    Forget,
    Guard,
    Launch,
    Request,
    Resize,
    Settled,
    Stillbirth,
    pack,
    unpack_request,
)
from biruda.errors import EnvironmentFault
from biruda.worker.cleanup import remove_tree
from biruda.worker.opening import is_log
from biruda.worker.serve import preload
from biruda.worker.serve import serve as worker_serve

_END_LIMIT_S: Final = 5.0
_DESCRIPTORS: Final = socket.CMSG_SPACE(2 * struct.calcsize("i"))


class _Place:
    """What the zygote removes when nobody else will."""

    def __init__(self, directory: str, cgroups: Iterable[str]) -> None:
        self.directory = directory
        self.cgroups = tuple(cgroups)
        self.pid = 0  # 0: not this process's child, or ended
        self.is_settled = True  # it can end without a coordinator

    def clean(self) -> None:
        """End what is left of it and remove all but what was printed."""
        for path in self.cgroups:
            with contextlib.suppress(EnvironmentFault):
                cgroup.end(path, _END_LIMIT_S)
        for path in self.cgroups:
            with contextlib.suppress(EnvironmentFault):
                cgroup.remove(path)
        with contextlib.suppress(OSError):
            for name in os.listdir(self.directory):
                if not is_log(name) or os.path.getsize(f"{self.directory}/{name}") == 0:
                    remove_tree(f"{self.directory}/{name}")
            Path(self.directory).rmdir()


class _Zygote:
    """The coordinator's requests and the children that came of them."""

    def __init__(self, control: socket.socket, serve: Serve) -> None:
        self._control = control
        self._serve = serve
        self._user = (os.getuid(), os.getgid())
        self._places: dict[str, _Place] = {}  # by directory
        self._workers: dict[int, _Place] = {}  # by pid, while they live

    def run(self) -> None:
        """Until the coordinator is gone and no child is left."""
        wake, waker = socket.socketpair()
        for end in (wake, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if wake.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    wake.recv(4096)
                self._reap()
            if self._control.fileno() in ready and not self._handle():
                break
        self._control.close()
        for place in self._places.values():
            if not place.pid:
                place.clean()
            elif not place.is_settled:
                os.kill(place.pid, signal.SIGKILL)
        while pid := _ended_child(0):
            if worker := self._take_leave(pid):
                worker.clean()

    def _reap(self) -> None:
        while pid := _ended_child(os.WNOHANG):
            self._take_leave(pid)

    def _take_leave(self, pid: int) -> _Place | None:
        """Note that a child has ended; its place, if it was a worker."""
        place = self._workers.pop(pid, None)
        if place is not None:
            place.pid = 0
            if not any(map(cgroup.can_end, place.cgroups)):
                self._end_orphans()
        return place

    def _end_orphans(self) -> None:
        """Children that are no workers were left by a worker which ended before them, and which had no cgroup."""
        for pid in family([os.getpid()]) - {os.getpid()} - family(self._workers):
            with contextlib.suppress(EnvironmentFault):
                end_family(pid, start_ticks(pid), _END_LIMIT_S)

    def _handle(self) -> bool:
        """One request; False at the end of them."""
        try:
            data, ancillary, _, _ = self._control.recvmsg(MAX_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # it is gone, and there was an answer that it had not read
            return False
        fds = [fd for _, _, raw in ancillary for (fd,) in struct.iter_unpack("i", raw[: len(raw) // 4 * 4])]
        if not data:
            return False
        try:
            number, request = unpack_request(data)
            try:
                return self._do(number, request, fds)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                return self._answer(Answer(id=number, problem=f"{where}{os.strerror(error.errno or 0)}"))
            except EnvironmentFault as fault:
                return self._answer(Answer(id=number, problem=str(fault), hint=fault.hint))
        finally:
            for fd in fds:
                os.close(fd)

    def _do(self, number: int, request: Request, fds: list[int]) -> bool:
        match request:
            case Birth():
                return self._bear(number, request, *fds)
            case Launch():
                return self._launch(number, request, *fds)
            case Settled(directory=directory):
                if directory in self._places:
                    self._places[directory].is_settled = True
                return True
            case Resize():
                self._resize(number, request, *fds)
                return True
            case Guard(directory=directory, cgroups=cgroups):
                self._places[directory] = _Place(directory, cgroups)
                return self._answer(Answer(id=number))
            case Forget(directory=directory):
                self._places.pop(directory, None)
                return True

    def _answer(self, answer: Answer, *fds: int) -> bool:
        """False when nobody is there to hear it."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        try:
            self._control.sendmsg([pack(answer)], rights)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _bear(self, number: int, birth: Birth, connection_fd: int, report_fd: int) -> bool:
        if birth.plan:
            plan_of(birth.plan)
        place = _Place(birth.directory, birth.cgroups)
        with _cgroup_of(birth, place) as cgroup_fd:
            cloned = _clone(birth.namespaces, cgroup_fd)
            if cloned.pid == 0:
                joins = birth.cgroup is not None and not cloned.in_cgroup
                live(birth, connection_fd, report_fd, self._user, self._serve, joins=joins)
        return self._born(number, place, cloned)

    def _launch(self, number: int, launch: Launch, report_fd: int) -> bool:
        place = _Place(launch.directory, launch.cgroups)
        place.is_settled = False
        with _cgroup_of(launch, place) as cgroup_fd:
            cloned = _clone(0, cgroup_fd)
            if cloned.pid == 0:
                become(launch, report_fd, joins=launch.cgroup is not None and not cloned.in_cgroup)
        return self._born(number, place, cloned)

    def _born(self, number: int, place: _Place, cloned: syscalls.Cloned) -> bool:
        place.pid = cloned.pid
        self._places[place.directory] = self._workers[cloned.pid] = place
        answer = Answer(id=number, pid=cloned.pid, start_ticks=start_ticks(cloned.pid))
        answered = self._answer(answer, cloned.pidfd)
        os.close(cloned.pidfd)
        return answered

    def _resize(self, number: int, request: Resize, report_fd: int) -> None:
        """By a child that enters the worker's mount namespace, which this process never leaves its own for."""
        if start_ticks(request.pid) != request.start_ticks:
            raise EnvironmentFault("the worker has ended")
        cloned = syscalls.clone(0)
        if cloned.pid:
            os.close(cloned.pidfd)
            self._answer(Answer(id=number))
            return
        status = 1
        try:
            report = socket.socket(fileno=report_fd)
            report.send(_resized(request))
            status = 0
        finally:
            os._exit(status)


def _ended_child(options: int) -> int:
    """Wait for a child, as waitpid's options say; 0 when there is none."""
    try:
        return os.waitpid(-1, options)[0]
    except ChildProcessError:
        return 0


@contextlib.contextmanager
def _cgroup_of(request: Birth | Launch, place: _Place) -> Iterator[int]:
    """The version 2 cgroup of a newborn, -1 for none; what goes wrong within the block leaves nothing of the place."""
    cgroup_fd = -1
    try:
        if request.cgroup:
            cgroup.make(request.cgroup)
            cgroup_fd = os.open(request.cgroup.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        yield cgroup_fd
    except BaseException:
        place.clean()
        raise
    finally:
        if cgroup_fd >= 0:
            os.close(cgroup_fd)


def _clone(namespaces: int, cgroup_fd: int) -> syscalls.Cloned:
    try:
        return syscalls.clone(namespaces, cgroup_fd)
    except PermissionError:
        if not namespaces:
            raise
        raise EnvironmentFault(
            "this user may not make namespaces",
            hint="run the daemon as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1",
        ) from None


def _resized(request: Resize) -> bytes:
    """The report of a child that bounds a throw-away layer anew."""
    process = f"/proc/{request.pid}/ns"
    try:
        if os.stat(f"{process}/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            syscalls.join_namespace(f"{process}/user", syscalls.CLONE_NEWUSER)
        syscalls.join_namespace(f"{process}/mnt", syscalls.CLONE_NEWNS)
        flags = syscalls.MS_REMOUNT | syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("", "/dev/shm", flags=flags, data=f"size={request.size_bytes}")
    except OSError as error:
        return pack(Stillbirth(problem=f"the layer cannot be made smaller: {os.strerror(error.errno or 0)}"))
    return BORN


def main(control_fd: int, serve: Serve = worker_serve) -> None:
    """Be the zygote of the coordinator at the other end of a socket, until it and all workers are gone."""
    preload()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir("/")
    os.umask(0o022)
    syscalls.become_subreaper()
    syscalls.set_name("biruda-zygote")
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    # Start-up has succeeded: what was a pipe to the coordinator must not keep anybody waiting for its end.
    os.dup2(control_fd + 1, 2)
    os.close(control_fd + 1)
    gc.collect()
    gc.freeze()
    _Zygote(control, serve).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
