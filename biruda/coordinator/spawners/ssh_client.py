"""The system's ssh client: how it is called, and what a script says that it runs over there.

A script goes in by standard input behind the login shell's back, whatever that shell is: the command line only says how
many bytes of it to read. What stands behind the script is the script's own standard input.
"""

import os
import pwd
import secrets
import select
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from biruda import process
from biruda.coordinator.spawners.ssh_target import Target, refusal
from biruda.errors import EnvironmentFault

CONNECT_S: Final = 15
ALIVE_S: Final = 15
ALIVE_COUNT: Final = 8
"""A connection over which nothing came for so many times ALIVE_S is given up: later than a worker waits for us."""

LIMIT_S: Final = 60.0
MOST_BYTES: Final = 1 << 20
ERROR_BYTES: Final = 16 << 10
_SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INHERITED: Final = ("SSH_AUTH_SOCK", "LANG", "LC_ALL", "TZ", "XDG_RUNTIME_DIR")


def find_client() -> str:
    """The system's ssh. Raises EnvironmentFault where there is none."""
    found = shutil.which("ssh", path=_SEARCH_PATH)
    if found is None:
        raise EnvironmentFault("ssh is not installed on this host", hint="apt-get install openssh-client")
    return found


def argv_of(target: Target, command: str) -> list[str]:
    """A command line that asks nobody anything and forwards nothing. Raises EnvironmentFault."""
    settings = [
        *target.options,
        *("BatchMode=yes", "StrictHostKeyChecking=yes", "LogLevel=ERROR"),
        *(f"ConnectTimeout={CONNECT_S}", f"ServerAliveInterval={ALIVE_S}", f"ServerAliveCountMax={ALIVE_COUNT}"),
        *("ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no"),
        *("ControlMaster=no", "ControlPath=none", "RequestTTY=no", "UpdateHostKeys=no"),
    ]
    if target.known_hosts:
        settings += [f"UserKnownHostsFile={_quoted(target.known_hosts)}", "GlobalKnownHostsFile=/dev/null"]
    if target.identity:
        settings += [f"IdentityFile={_quoted(target.identity)}", "IdentitiesOnly=yes"]
    if target.user:
        settings.append(f"User={target.user}")
    if target.port:
        settings.append(f"Port={target.port}")
    options = [word for setting in settings for word in ("-o", setting)]
    return [find_client(), "-T", *options, "--", target.host, command]


def _quoted(path: str) -> str:
    """A path as ssh_config(5) reads it back: in quotes, its percent signs doubled."""
    if '"' in path:
        raise EnvironmentFault(f'{path}: ssh cannot be given a path with a " in it', hint="rename the file")
    return '"' + path.replace("%", "%%") + '"'


def command_of(script: bytes) -> str:
    """The remote command that runs a script which comes by standard input; any login shell understands it."""
    return f"exec /bin/sh -c 'eval \"$(dd bs=1 count={len(script)} 2>/dev/null)\"'"


def environment() -> dict[str, str]:
    """What the client sees: who we are, and where this user's agent is."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    with suppress(KeyError):
        account = pwd.getpwuid(os.geteuid())
        kept |= {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    return {"PATH": _SEARCH_PATH, **kept}


def shell_word(text: str) -> str:
    """The text as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def plain(said: bytes) -> str:
    """What another host wrote, as text in lines that no terminal obeys."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in said.decode("utf-8", "replace"))


@dataclass(slots=True)
class Said:
    """What a script said: `KEY VALUE` lines between its marks, and how it ended."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    status: int = 0
    error: str = ""  # the end of what it wrote to standard error

    def text(self, key: str, default: str = "") -> str:
        """The last value of a key."""
        return next((value for name, value in reversed(self.lines) if name == key), default)

    def texts(self, key: str) -> list[str]:
        """All values of a key, in order."""
        return [value for name, value in self.lines if name == key]


_PREAMBLE: Final = """
umask 077
say() { printf '%s %s\\n' "$1" "$2"; }
printf '\\n@%s begin\\n' "$mark"
"""
_END: Final = """
printf '\\n@%s end\\n' "$mark"
"""


def run(
    target: Target,
    script: str,
    variables: Mapping[str, str] | None = None,
    *,
    data: Iterable[bytes] = (),
    limit_s: float = LIMIT_S,
) -> Said:
    """Run a POSIX shell script over there and hear what it says with `say KEY VALUE`. Blocking.

    data is its standard input. The local client has ended on return. Raises SshRefused where nothing was run,
    EnvironmentFault where the script did not come to its end; what is wrong is said in words.
    """
    mark = secrets.token_hex(8)
    given = {**(variables or {}), "mark": mark}
    set_variables = "".join(f"{name}={shell_word(value)}\n" for name, value in given.items())
    whole = (set_variables + _PREAMBLE + script + _END).encode("utf-8", "surrogateescape")
    out, error, status = _exchange(target, whole, data, limit_s)
    begin, end = f"\n@{mark} begin\n".encode(), f"\n@{mark} end\n".encode()
    _, began, rest = out.partition(begin)
    said, ended, _ = rest.partition(end)
    words = plain(error)
    if not began:
        raise refusal(target, words, status)
    lines = [line.partition(" ") for line in plain(said).splitlines() if line]
    result = Said([(key, value) for key, _, value in lines], status, words)
    if not ended:
        last = next((line for line in reversed(words.splitlines()) if line.strip()), "")
        raise EnvironmentFault(f"{target}: the connection ended in the middle of a command" + f": {last}" * bool(last))
    return result


def _exchange(target: Target, script: bytes, data: Iterable[bytes], limit_s: float) -> tuple[bytes, bytes, int]:
    """All that the client wrote, bounded, and its exit status."""
    stdin, to_stdin = os.pipe()
    from_stdout, stdout = os.pipe()
    from_stderr, stderr = os.pipe()
    try:
        child = process.start(
            argv_of(target, command_of(script)), env=environment(), cwd="/", stdin=stdin, stdout=stdout, stderr=stderr
        )
    except BaseException:
        for fd in (to_stdin, from_stdout, from_stderr):
            os.close(fd)
        raise
    finally:
        for fd in (stdin, stdout, stderr):
            os.close(fd)
    try:
        out, error = _converse(target, _pieces(script, data), to_stdin, from_stdout, from_stderr, limit_s)
        return out, error, wait(child)
    except BaseException:
        end(child)
        raise


def _pieces(script: bytes, data: Iterable[bytes]) -> Iterator[bytes]:
    yield script
    yield from data


def _converse(
    target: Target, pieces: Iterator[bytes], to_stdin: int, from_stdout: int, from_stderr: int, limit_s: float
) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + limit_s
    heard = {from_stdout: bytearray(), from_stderr: bytearray()}
    kept = {from_stdout: MOST_BYTES, from_stderr: ERROR_BYTES}
    poll, waiting = select.poll(), memoryview(b"")
    os.set_blocking(to_stdin, False)
    for fd in heard:
        poll.register(fd, select.POLLIN)
    poll.register(to_stdin, select.POLLOUT)
    opened = {to_stdin, *heard}
    try:
        while opened - {to_stdin}:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise EnvironmentFault(f"{target}: no answer within {limit_s:g} s", hint="is the host overloaded?")
            for fd, events in poll.poll(left_s * 1000):
                if fd == to_stdin:
                    waiting = waiting or memoryview(next(pieces, b""))
                    gone = bool(events & (select.POLLERR | select.POLLHUP)) or not waiting
                    with suppress(BlockingIOError, BrokenPipeError):
                        waiting = waiting if gone else waiting[os.write(fd, waiting) :]
                    if not gone:
                        continue
                else:
                    piece = os.read(fd, 65536)
                    heard[fd] += piece[: max(0, kept[fd] - len(heard[fd]))]
                    if piece:
                        continue
                poll.unregister(fd)
                opened.discard(fd)
                os.close(fd)
    finally:
        for fd in opened:
            os.close(fd)
    return bytes(heard[from_stdout]), bytes(heard[from_stderr])


def wait(child: process.Child) -> int:
    """The status of a client that is about to end, 128+N for signal N."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ended = child.poll()
    assert ended is not None
    return 128 + (ended.signal or 0) if ended.exit_status is None else ended.exit_status


def end(child: process.Child) -> None:
    """The client has ended on return."""
    with suppress(ChildProcessError):
        child.signal_group(signal.SIGKILL)
        wait(child)
