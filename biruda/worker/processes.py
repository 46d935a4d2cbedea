"""Every process of an attempt: found, killed and reaped, whatever it did to get away.

How they are found depends on where the worker is: as PID 1 of its namespace everything else is the attempt's; a
subreaper has every orphan of the attempt among its descendants, and a cgroup lists them; a thread of a daemon knows
the sessions that it started, and what carries the attempt's variables.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from biruda.errors import EnvironmentFault
from biruda.model import Kind
from biruda.worker.opening import Opening

with contextlib.suppress(ImportError):
    import resource  # noqa: F401 - os.wait4 imports it by itself, which must not happen in another root

_ROUNDS = 8
_NUMBERS_LAST_S = 10.0


class Processes(Protocol):
    """Processes of one attempt."""

    def started(self, pid: int) -> None:
        """A step runs; its process leads a session of the same number."""

    def sweep(self, leader: int) -> bool:
        """SIGKILL all that there is; True when nothing was left. The unreaped leader, or 0, is not waited for."""

    def reap(self, leader: int) -> bool:
        """Wait for orphans that have ended, never for the leader. True when no child is left."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the system's process table."""

    pid: int
    state: str
    parent: int
    group: int
    session: int

    @property
    def lives(self) -> bool:
        """False for a zombie: only its parent can end it further."""
        return self.state not in ("Z", "X")


class Namespace:
    """Of a worker that is PID 1 in its own PID namespace."""

    def started(self, pid: int) -> None:
        pass

    def sweep(self, leader: int) -> bool:
        if os.getpid() != 1:
            raise RuntimeError("only PID 1 of a PID namespace may kill everything")
        try:
            os.kill(-1, signal.SIGKILL)  # one pass under the kernel's lock: no fork slips through
        except ProcessLookupError:
            pass
        return self.reap(leader)

    def reap(self, leader: int) -> bool:
        return reap_orphans(leader)


class Descendants:
    """Of a worker that is a subreaper, maybe with a cgroup of its own."""

    def __init__(self, cgroup: str) -> None:
        self._cgroup = cgroup

    def started(self, pid: int) -> None:
        pass

    def sweep(self, leader: int) -> bool:
        if self.reap(leader):
            return True  # what has no child has no descendant
        kill_all(self._listed)
        return self.reap(leader)

    def reap(self, leader: int) -> bool:
        return reap_orphans(leader)

    def _listed(self) -> set[int]:
        own = os.getpid()
        members = set(_cgroup_members(self._cgroup)) if self._cgroup else set()
        if members - {own}:
            return members - {own}
        return descendants_of({own}, process_table()) - {own}


class Sessions:
    """Of a worker inside a process that has other children too: nothing is waited for, nothing else is touched.

    A cgroup, where there is one, is the attempt's alone: what is started joins it, and it is killed as a whole. The
    kernel's other rules hold too, for what a step forked before it had joined.
    """

    def __init__(self, marks: tuple[bytes, ...], cgroup: str = "") -> None:
        self._marks = marks  # all of them are in the environment of what an attempt starts
        self._cgroup = cgroup
        self._sessions: set[int] = set()
        self._before = set(_numbers())
        self._began_s = time.monotonic()

    def started(self, pid: int) -> None:
        self._sessions.add(pid)
        if self._cgroup:
            _join(self._cgroup, pid)

    def sweep(self, leader: int) -> bool:
        if not os.path.exists("/proc/self/stat"):
            return self._sweep_groups()
        if self._cgroup and _cgroup_members(self._cgroup):
            _write(os.path.join(self._cgroup, "cgroup.kill"), b"1")  # from Linux 5.14 on; else what follows does it
        return kill_all(lambda: self._listed(leader))

    def reap(self, leader: int) -> bool:
        return False

    def _sweep_groups(self) -> bool:
        """Where there is no process table to read: the group of each step, and what left it stays."""
        for pid in tuple(self._sessions):
            try:
                os.killpg(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._sessions.discard(pid)
        return not self._sessions

    def _listed(self, leader: int) -> set[int]:
        own = os.getpid()
        # What was there before is a stranger, until numbers may have come round again.
        skip = self._before if time.monotonic() < self._began_s + _NUMBERS_LAST_S else ()
        table = [entry for entry in process_table(skip) if entry.pid != own]
        # A living process with the number of a step that was waited for is a stranger who got the number again.
        strangers = {entry.pid for entry in table if entry.pid in self._sessions and entry.pid != leader}
        self._sessions -= strangers
        roots = {entry.pid for entry in table if entry.session in self._sessions or self._is_marked(entry.pid)}
        if self._cgroup:
            roots |= set(_cgroup_members(self._cgroup))
        living = {entry.pid for entry in table if entry.lives}
        return (descendants_of(roots, table) & living) - {own}

    def _is_marked(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                variables = file.read(1 << 20)
        except OSError:
            return False
        return all(mark in variables for mark in self._marks)


def processes_of(opening: Opening, marks: tuple[bytes, ...]) -> Processes:
    """What fits where the worker was put."""
    if opening.owns_pids:
        return Namespace()
    if opening.subreaper:
        return Descendants(opening.cgroup)
    return Sessions(marks, opening.cgroup if opening.kind is Kind.THREAD else "")


def kill_all(listed: Callable[[], Collection[int]]) -> bool:
    """SIGKILL what is listed and what it forks meanwhile; True when nothing was listed.

    All are stopped first: what stands still does not fork, so that the second list is the last one.
    """
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        fresh = set(listed()) - stopped
        if not fresh:
            break
        _signal(fresh, signal.SIGSTOP)
        stopped |= fresh
    _signal(stopped, signal.SIGKILL)
    return not stopped


def reap_orphans(leader: int) -> bool:
    """Wait for every ended child but the leader; True when there is no child."""
    while True:
        try:
            if hasattr(os, "waitid"):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid == leader:
                    return False
                os.waitpid(ended.si_pid, os.WNOHANG)
            elif leader or os.waitpid(-1, os.WNOHANG)[0] == 0:
                return False
        except ChildProcessError:
            return True


def group_lives(leader: int) -> bool:
    """True when a process is left in the group that this one led."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    table = process_table()  # init may take its time with the zombies that it was given
    return not table or any(entry.group == leader and entry.lives for entry in table)


def process_table(skip: Collection[int] = ()) -> list[Entry]:
    """The processes that there are, but those in skip."""
    return [entry for pid in _numbers() if pid not in skip and (entry := _entry(pid)) is not None]


def descendants_of(roots: set[int], table: Collection[Entry]) -> set[int]:
    """The roots and every process below them."""
    children: dict[int, list[int]] = {}
    for entry in table:
        children.setdefault(entry.parent, []).append(entry.pid)
    found = set(roots)
    waiting = list(roots)
    while waiting:
        fresh = [pid for pid in children.get(waiting.pop(), ()) if pid not in found]
        found.update(fresh)
        waiting += fresh
    return found


def _numbers() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            yield int(name)


def _entry(pid: int) -> Entry | None:
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(1024).rpartition(b")")[2].split()  # the name before may hold anything
        return Entry(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]))
    except (OSError, IndexError, ValueError):  # it has gone meanwhile
        return None


def _cgroup_members(cgroup: str) -> list[int]:
    try:
        with open(os.path.join(cgroup, "cgroup.procs"), "rb", buffering=0) as file:
            pieces = []
            while piece := file.read(1 << 16):
                pieces.append(piece)
    except OSError:
        return []
    return [int(number) for number in b"".join(pieces).split()]


def _join(cgroup: str, pid: int) -> None:
    """Put a process and what it has forked by now into a cgroup. Raises EnvironmentFault."""
    if not _write(os.path.join(cgroup, "cgroup.procs"), b"%d" % pid) and os.path.exists(f"/proc/{pid}"):
        raise EnvironmentFault(f"{cgroup}: a step cannot be put into its cgroup")
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb", buffering=0) as file:
            children = file.read(1 << 16).split()
    except OSError:
        return
    for child in children:
        _join(cgroup, int(child))


def _write(path: str, data: bytes) -> bool:
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(data)
    except OSError:
        return False
    return True


def _signal(pids: Collection[int], number: signal.Signals) -> None:
    for pid in pids:
        if pid > 1:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass
