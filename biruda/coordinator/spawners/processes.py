"""Processes of this host by number and birth, and how to end a family of them where there is no cgroup."""

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from biruda.errors import EnvironmentFault
from biruda.worker.processes import descendants_of, process_table


def start_ticks(pid: int) -> int:
    """When a process was born, in clock ticks since the boot: with the pid it names it for ever; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_alive(pid: int, ticks: int) -> bool:
    """True while the process that was born then can still do something: a zombie cannot. Process 0 is none."""
    fields = _stat(pid)
    return bool(fields) and int(fields[19]) == ticks and fields[0] not in (b"Z", b"X")


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on; the name before may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return []


def family(ancestors: Iterable[int]) -> set[int]:
    """These processes and all their descendants."""
    return descendants_of(set(ancestors), process_table())


def end_family(pid: int, ticks: int, limit_s: float) -> None:
    """The process and all its descendants have ended on return. Raises EnvironmentFault if one does not.

    They are stopped first, again and again until none is new, so that none can have a child unseen; orphans among them
    have to come to the process (it is a subreaper), or to be killed with it (it is PID 1 of a namespace).
    """
    if not is_alive(pid, ticks):
        return
    deadline = time.monotonic() + limit_s
    stopped: set[int] = set()
    while time.monotonic() < deadline:
        new = family([pid]) - stopped
        if not new:
            break
        for each in new:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGSTOP)
        stopped |= new
    births = {each: start_ticks(each) for each in stopped}
    for each in stopped:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)
    left = [each for each, born in births.items() if not has_ended(each, born, deadline)]
    if left:
        raise EnvironmentFault(
            f"{len(left)} processes do not end, the first is {left[0]}",
            hint="one that runs as another user must be killed by hand; one in state D waits for a device or server",
        )


def has_ended(pid: int, ticks: int, deadline: float) -> bool:
    """Wait for a process to end, until a time of time.monotonic()."""
    if not ticks or not is_alive(pid, ticks):
        return True
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(fd)
    return not is_alive(pid, ticks)
