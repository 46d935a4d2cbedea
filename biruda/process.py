"""The one place that starts child processes; their environment is built by the caller, never inherited.

A child gets its own session, an umask of 022, only the three standard descriptors and default signal actions. It is
started by vfork, so the size of the caller does not matter, except where another account is asked for.
"""

import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from biruda.errors import EnvironmentFault

if TYPE_CHECKING:
    import subprocess

_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
_BLOCK_BYTES = 512
"""Of ru_inblock and ru_oublock, which the kernel takes from the same counters as /proc/PID/io: getrusage(2)."""

_UMASK = 0o022
_KEPT = {getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name)}
_RESTORED = tuple(sorted(signal.valid_signals() - _KEPT))
"""What Python ignores, or whoever started it, a child shall not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom a child runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a child ended and what it and the children it waited for used.

    peak_rss_bytes is never below what the caller had when it started the child: exec keeps the mark of the memory that
    it leaves.
    """

    exit_status: int | None  # None when a signal ended it
    signal: int | None
    cpu_s: float
    peak_rss_bytes: int
    read_bytes: int = 0  # from storage, 0 where the system does not tell
    written_bytes: int = 0


_MOST_INHERITED = 256
"""So many are looked at where the system does not list them."""


class Child:
    """A started process. Its number stays its own until poll() has returned its Exit."""

    def __init__(self, pid: int, popen: "subprocess.Popen[bytes] | None" = None) -> None:
        self.pid = pid
        self.pidfd = _open_pidfd(pid)  # readable once it has ended; -1 where there is no such thing
        self._popen = popen
        self._exit: Exit | None = None

    def poll(self) -> Exit | None:
        """How it ended, None while it runs. Raises ChildProcessError when somebody else has waited for it."""
        if self._exit is None:
            self._exit = self._reap()
        return self._exit

    def _reap(self) -> Exit | None:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        code = os.waitstatus_to_exitcode(status)
        if self._popen is not None:
            self._popen.returncode = code  # or Popen would wait for the number again
        self.close()
        return Exit(
            exit_status=None if code < 0 else code,
            signal=-code if code < 0 else None,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_rss_bytes=usage.ru_maxrss * _RSS_UNIT_BYTES,
            read_bytes=usage.ru_inblock * _BLOCK_BYTES,
            written_bytes=usage.ru_oublock * _BLOCK_BYTES,
        )

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the process group that it leads, and its session's other groups not. Call before poll() reaped it."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # gone, or only processes of other accounts are left: the sweep at the end is for those

    def close(self) -> None:
        """Close the pidfd; may be called again."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def prepare() -> None:
    """Import what start() may take, for who can import nothing any more when it is called."""
    import subprocess  # noqa: F401


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    stdin: int,
    stdout: int,
    stderr: int | None = None,
    account: Account | None = None,
    umask: int = _UMASK,
    alone: bool = False,
) -> Child:
    """A running child, its stderr joined to stdout where none is given. argv[0] without a slash is looked for in PATH.

    alone: the caller has no other threads and has called own_process(); the child then costs less. Raises OSError as
    exec and fork do, ValueError for what no argument or variable can be.
    """
    switch = account is not None and account.uid != os.geteuid()
    if alone and not switch and umask == _UMASK and hasattr(os, "posix_spawn"):
        return Child(_spawn(argv, env, cwd, (stdin, stdout, stderr)))
    import subprocess  # here: most workers never need it, and say hello before they do

    popen = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.STDOUT if stderr is None else stderr,
        close_fds=True,
        start_new_session=True,
        restore_signals=True,
        umask=umask,
        user=account.uid if account and switch else None,
        group=account.gid if account and switch else None,
        extra_groups=account.groups if account and switch else None,
    )
    return Child(popen.pid, popen)


def ignore_alone() -> None:
    """What was ignored when this process began, say by nohup(1), is so still, but not in its children."""
    for number in signal.valid_signals() - _KEPT - {signal.SIGPIPE}:
        if signal.getsignal(number) is signal.SIG_IGN:
            with suppress(OSError, ValueError):
                signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: object) -> None:
    """A handler, other than SIG_IGN, does not outlive exec: signal(7)."""


def own_process() -> None:
    """This process is its caller's alone: its umask and directory become those of start(), and no descriptor is left
    that its children would inherit."""
    os.umask(_UMASK)
    os.chdir("/")
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        descriptors = list(range(_MOST_INHERITED))
    for descriptor in descriptors:
        if descriptor > 2:
            with suppress(OSError):
                os.set_inheritable(descriptor, False)


def _spawn(argv: Sequence[str], env: Mapping[str, str], cwd: str, standard: tuple[int, int, int | None]) -> int:
    """By posix_spawn(3), a sixth of what Popen costs. It knows no directory, so the caller goes there and back."""
    stdin, stdout, stderr = standard
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_DUP2, stdout, 1),
        (os.POSIX_SPAWN_DUP2, stdout if stderr is None else stderr, 2),
    ]
    os.chdir(cwd)
    try:
        program = argv[0] if "/" in argv[0] else _found(argv[0], env.get("PATH", os.defpath))
        return os.posix_spawn(program, list(argv), env, file_actions=actions, setsid=True, setsigdef=_RESTORED)
    finally:
        os.chdir("/")


def _found(name: str, path: str) -> str:
    """Where execvp(3) would find a program. Raises OSError as it does."""
    is_there = False
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
        is_there = is_there or os.path.exists(candidate)
    number = errno.EACCES if is_there else errno.ENOENT
    raise OSError(number, os.strerror(number), name)


def account_of(user: str) -> Account:
    """The account of a name or a number, read from /etc/passwd and /etc/group as they are in this root.

    Not by the C library: it would load the name services of a foreign root into this process. Raises EnvironmentFault.
    """
    for fields in _colon_file("/etc/passwd", 4):
        name, _, uid, gid = fields[:4]
        if user in (name, uid) and uid.isdigit() and gid.isdigit():
            groups = (f for f in _colon_file("/etc/group", 4) if f[2].isdigit())
            more = {int(f[2]) for f in groups if name in f[3].split(",")}
            return Account(uid=int(uid), gid=int(gid), groups=tuple(sorted({int(gid), *more})))
    if user.isdigit():
        return Account(uid=int(user), gid=int(user))
    raise EnvironmentFault(
        f"the user {user!r}: not in /etc/passwd", hint="name one that the environment has, or a number"
    )


def _colon_file(path: str, fields: int) -> list[list[str]]:
    try:
        with open(path, "rb") as file:
            lines = file.read().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    return [parts for parts in (line.split(":") for line in lines) if len(parts) >= fields]


def _open_pidfd(pid: int) -> int:
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(pid)
        except OSError:  # a kernel before 5.3, or one that forbids it
            pass
    return -1
