"""How a worker comes to a host that has nothing but sh: copied over the stream that it then serves on, and unlinked.

The shell over there says in turn `send` (or `have`, where a cache has the executable already), then `ready`, each on a
line behind a mark of this start. It reads just what it was promised, since nothing more is sent before its next word.
"""

import asyncio
import contextlib
import gzip
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from biruda.coordinator.spawners.ssh_client import command_of, plain, shell_word
from biruda.errors import EnvironmentFault
from biruda.injection import Executable

ANSWER_S: Final = 60.0
SEND_S: Final = 600.0
_LEVEL: Final = 6
MOST_NOISE_BYTES: Final = 1 << 16
"""What a login shell may print before our script has its say."""

SCRIPT: Final = r"""
umask 077
tell() { printf '\n@%s %s\n' "$mark" "$*"; }
fail() { tell failed "$*"; exit 0; }
runs() {
    [ -n "$1" ] && mkdir "$1/$name" 2>/dev/null || return 1
    printf '#!/bin/sh\nexit 0\n' > "$1/$name/try" && chmod 700 "$1/$name/try" && "$1/$name/try" 2>/dev/null &&
        rm -f "$1/$name/try" && return 0
    rm -rf "$1/$name"
    return 1
}
receive() {
    if command -v gzip >/dev/null 2>&1; then
        tell send packed
        head -c "$packed" | gzip -dc > "$1" || fail "$1 cannot be written"
    else
        tell send
        head -c "$bytes" > "$1" || fail "$1 cannot be written"
    fi
    size=$(wc -c < "$1")
    [ "$size" -eq "$bytes" ] || fail "only $size of $bytes bytes came"
    chmod 500 "$1"
}
digest() { { sha256sum < "$1" || shasum -a 256 < "$1" || openssl dgst -sha256 -r < "$1"; } 2>/dev/null; }
work=
for base in "${TMPDIR:-}" /var/tmp /tmp "${HOME:-}"; do
    case $base in /*) [ -d "$base" ] && [ -w "$base" ] && { work=$base/$name; break; };; esac
done
[ -n "$work" ] || fail 'none of $TMPDIR, /var/tmp, /tmp and $HOME can be written to'
read -r stat < "/proc/$$/stat" || fail 'it has no /proc'
set -- ${stat##*) }
began=${20}
held=
trap 'rm -rf "$held"' EXIT
trap 'exit 1' HUP INT PIPE TERM
if [ -n "$cache" ]; then
    place=${XDG_CACHE_HOME:-${HOME:-/nowhere}/.cache}/biruda
    [ "$(id -u)" = 0 ] && place=/var/cache/biruda
    program=$place/worker-$wanted
    sum=$(digest "$program")
    case $sum in
        "$wanted"*) tell have;;
        *) mkdir -p "$place" 2>/dev/null
           held=$place/$name
           : > "$held" 2>/dev/null || fail "$place cannot be written to"
           receive "$held"
           sum=$(digest "$held")
           case $sum in ''|"$wanted"*) ;; *) fail 'what came is not what was sent';; esac
           mv -f "$held" "$program" || fail "$program cannot be made"
           held=;;
    esac
else
    for base in /dev/shm "${XDG_RUNTIME_DIR:-}" /tmp /var/tmp "${HOME:-}"; do
        runs "$base" && { held=$base/$name; break; }
    done
    [ -n "$held" ] ||
        fail 'no directory may be written to and lets programs run: /dev/shm, $XDG_RUNTIME_DIR, /tmp, /var/tmp, $HOME'
    receive "$held/worker"
    exec 9< "$held/worker"
    rm -rf "$held"
    held=
    program=/proc/self/fd/9
fi
trap - EXIT HUP INT PIPE TERM
cd /
tell ready "$$ $began $work"
exec "$program" --worker
"""


@lru_cache(maxsize=2)
def _packed(path: Path, sha256: str) -> bytes:
    """The executable for a host that has gzip: a third of its bytes. Blocking."""
    return gzip.compress(path.read_bytes(), _LEVEL, mtime=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """The process that is, or in a moment will be, the worker."""

    pid: int  # over there
    start_ticks: int
    work: str  # where it may make its directory


class Boot:
    """One start, over a connected stream that leads to a shell over there."""

    def __init__(self, where: str, name: str, executable: Executable, *, cache: bool) -> None:
        self._where = where
        self._executable = executable
        self._mark = secrets.token_hex(8)
        self._content = executable.path.read_bytes()
        self._packed = _packed(executable.path, executable.sha256)
        variables: Mapping[str, str] = {
            "mark": self._mark,
            "name": name,
            "wanted": executable.sha256,
            "bytes": str(len(self._content)),
            "packed": str(len(self._packed)),
            "cache": "yes" if cache else "",
        }
        set_variables = "".join(f"{key}={shell_word(value)}\n" for key, value in variables.items())
        self._script = (set_variables + SCRIPT).encode()
        self._came = b""

    @property
    def command(self) -> str:
        """The remote command that runs the script which go() sends."""
        return command_of(self._script)

    async def go(self, stream: socket.socket) -> Landed:
        """Bring it there and start it. Raises EnvironmentFault with what the shell said; ConnectionError at the end."""
        loop = asyncio.get_running_loop()
        async with self._within(ANSWER_S):
            await loop.sock_sendall(stream, self._script)
            word, rest = await self._word(stream)
        if word == "send":
            async with self._within(SEND_S):
                await loop.sock_sendall(stream, self._packed if rest == "packed" else self._content)
                word, rest = await self._word(stream)
        elif word == "have":
            async with self._within(ANSWER_S):
                word, rest = await self._word(stream)
        pid, _, more = rest.partition(" ")
        ticks, _, work = more.partition(" ")
        if word != "ready" or not pid.isdigit() or not ticks.isdigit() or not work.startswith("/"):
            raise EnvironmentFault(
                f"{self._where}: the shell there said {word[:20]!r}", hint="is /bin/sh one of POSIX?"
            )
        return Landed(pid=int(pid), start_ticks=int(ticks), work=work)

    @contextlib.asynccontextmanager
    async def _within(self, limit_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise EnvironmentFault(
                f"{self._where}: no answer within {limit_s:g} s", hint="is the host overloaded?"
            ) from None

    async def _word(self, stream: socket.socket) -> tuple[str, str]:
        """The shell's next word and what is behind it on its line. Raises ConnectionError when there is none."""
        loop = asyncio.get_running_loop()
        begin = f"\n@{self._mark} ".encode()
        while True:
            _, found, rest = self._came.partition(begin)
            line, ended, after = rest.partition(b"\n")
            if found and ended:
                self._came = after
                word, _, more = plain(line).partition(" ")
                if word == "failed":
                    raise EnvironmentFault(f"{self._where}: {more[:300]}", hint="make one that can be used")
                return word, more
            piece = await loop.sock_recv(stream, 65536)
            if not piece:
                raise ConnectionResetError(self._where)
            self._came += piece
            if len(self._came) > MOST_NOISE_BYTES:
                raise EnvironmentFault(
                    f"{self._where}: its login prints without end", hint="ssh HOST true must print nothing"
                )


END_SCRIPT: Final = r"""
field() { # of a process: its state, parent and beginning
    read -r stat 2>/dev/null < "/proc/$1/stat" || return 1
    set -- ${stat##*) }
    state=$1 parent=$2 ticks=${20}
}
alive() { field "$pid" && [ "$ticks" = "$began" ] && [ "$state" != Z ]; }
pause() { sleep 0.1 2>/dev/null || sleep 1; }
gone() {
    count=0
    while alive; do
        [ $count -ge "$1" ] && return 1
        count=$((count + 1))
        pause
    done
}
below() { # all that descends from the processes in $found
    more=yes
    while [ -n "$more" ]; do
        more=
        for entry in /proc/[0-9]*; do
            child=${entry#/proc/}
            case " $found " in *" $child "*) continue;; esac
            field "$child" || continue
            case " $found " in *" $parent "*) found="$found $child" more=yes;; esac
        done
    done
}
end() {
    gone "$patience" && { say ended by-itself; return; }
    kill -STOP "$pid" 2>/dev/null || { say problem "process $pid is another user's"; return; }
    count=0
    while [ $count -lt 50 ]; do
        count=$((count + 1)) found=$pid
        below
        [ "$found" = "$pid" ] && break
        kill -9 ${found#"$pid"} 2>/dev/null
        kill -CONT "$pid" 2>/dev/null; kill -STOP "$pid" 2>/dev/null
    done
    kill -9 "$pid"
    gone 50 && say ended killed || say problem "process $pid does not end"
}
[ "$pid" -gt 1 ] 2>/dev/null && end
case $name in
    biruda-*) for base in "${work%/*}" /dev/shm "${XDG_RUNTIME_DIR:-/dev/shm}" /tmp /var/tmp "${HOME:-/tmp}"; do
        [ -e "$base/$name" ] && chmod -R u+rwx "$base/$name" 2>/dev/null
        rm -rf "$base/$name" && continue
        say problem "$base/$name cannot be removed"
    done;;
esac
"""
"""Waits for the worker's own end, ends what is left of it, and removes its directories. Needs its pid and beginning."""
