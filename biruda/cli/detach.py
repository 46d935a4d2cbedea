"""Starting the daemon: a process of its own, and a pipe by which it says that it takes jobs, or why it cannot.

The pipe is passed as standard input: biruda.process hands no other descriptor on.
"""

import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import biruda
from biruda.cli.text import escape
from biruda.errors import BirudaError, ConfigError

if TYPE_CHECKING:
    from biruda.process import Child

READY_S = 120.0
_READY_VARIABLE = "BIRUDA_READY_FD"
_LAST_LINES = 10
_INHERITED = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "TZ"),
    *("TMPDIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)


def start_detached(home: Path, arguments: Sequence[str]) -> None:
    """Start biruda with these arguments and return when it is ready; BirudaError with its own words when it cannot.

    It has a session of its own, the home as its directory, and writes to HOME/log/daemon.log.
    """
    from biruda import process

    log = _open_log(home)
    reader, writer = os.pipe()
    try:
        start = os.fstat(log).st_size
        try:
            env = {**_environment(), _READY_VARIABLE: "0"}
            argv = [*_program(), *arguments]
            child = process.start(argv, env=env, cwd=str(home), stdin=writer, stdout=log, umask=0o077)
        finally:
            os.close(writer)
        try:
            said = _wait(reader, child)
        finally:
            child.close()
        if said.splitlines()[:1] != ["ready"]:
            raise _failure(said, _tail(log, start), home)
    finally:
        os.close(reader)
        os.close(log)


def make_home(home: Path) -> None:
    """The home is there on return, for its owner only where it is new. Raises ConfigError."""
    with _as_owner(home):
        (home / "log").mkdir(parents=True, exist_ok=True)


def _open_log(home: Path) -> int:
    make_home(home)
    with _as_owner(home):
        return os.open(home / "log" / "daemon.log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


@contextmanager
def _as_owner(home: Path) -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    except OSError as error:
        where = escape(str(error.filename or home))
        raise ConfigError(
            f"{where}: cannot be made or written: {(error.strerror or 'I/O error').lower()}",
            hint="name a directory of yours with --home DIR",
        ) from None
    finally:
        os.umask(before)


def _program() -> list[str]:
    if getattr(sys, "frozen", False):
        return [sys.executable]
    return [sys.executable, "-P", "-m", "biruda"]  # -P: no module out of the home directory


def _environment() -> dict[str, str]:
    """What the daemon sees: not what happens to be set in this shell."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    kept.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if getattr(sys, "frozen", False):
        return kept
    package = Path(biruda.__file__).resolve().parent.parent
    paths = [str(package), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _wait(reader: int, child: "Child") -> str:
    """What it says: "ready", or what is wrong; "" when it ended without a word."""
    said = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(child.pidfd, select.POLLIN)
    try:
        while events := [descriptor for descriptor, _ in poll.poll(READY_S * 1000)]:
            piece = os.read(reader, 4096) if reader in events else b""
            said += piece
            if said == b"ready\n" or not piece:  # its children may hold the pipe open: its own end counts
                return said.decode("utf-8", "replace")
    except KeyboardInterrupt:
        child.signal_group(signal.SIGTERM)
        raise
    return f"the daemon was not ready in {READY_S:.0f} s, and goes on trying"


def _tail(log: int, start: int) -> str:
    size = os.fstat(log).st_size
    text = os.pread(log, 16384, max(start, size - 16384)).decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-_LAST_LINES:])


def _failure(said: str, tail: str, home: Path) -> BirudaError:
    where = escape(str(home / "log" / "daemon.log"))
    if said.strip():
        lines = said.splitlines()
        sentence = "\n".join(line for line in lines if not line.startswith("hint: "))
        hint = "\n".join(line.removeprefix("hint: ") for line in lines if line.startswith("hint: "))
        return BirudaError(sentence, hint=hint)
    words = f"; its last words:\n{tail}" if tail else ""
    return BirudaError(f"the daemon ended before it was ready{words}", hint=f"see {where}")


@contextmanager
def telling_who_waits() -> Iterator[None]:
    """Within it, an error of a daemon that cannot start also goes to who started it."""
    descriptor = _own_pipe()
    try:
        yield
    except BaseException as group:
        if descriptor >= 0:
            with suppress(OSError):
                os.write(descriptor, "".join(map(_words, _leaves(group))).encode())
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _own_pipe() -> int:
    """A descriptor of ours for the pipe, -1 for none. The daemon gets another, to be closed; stdin is no pipe then."""
    if os.environ.get(_READY_VARIABLE) != "0":
        return -1
    os.environ[_READY_VARIABLE] = str(os.dup(0))
    descriptor = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    return descriptor


def _words(error: BirudaError) -> str:
    return f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else "")


def _leaves(error: BaseException) -> Iterator[BirudaError]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif isinstance(error, BirudaError):
        yield error
