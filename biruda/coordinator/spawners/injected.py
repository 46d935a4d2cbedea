"""What the kinds have in common whose worker is an injected executable, spoken with over a wire (see biruda.wire).

A new kind of this sort starts `EXECUTABLE --worker` with a byte stream on its standard streams (or has its own start
call `read_opening` and `serve_over`), writes `birth(...)` into that stream once and `connect(...)` at each connection,
and gives what comes to the Incoming that belongs to it. Its workers do not see the host's files: what they print is
written to the attempt's file by the coordinator. docs/injection.md tells the whole story.
"""

import asyncio
import os
from collections import deque
from pathlib import Path
from typing import Final, Protocol

from biruda import injection
from biruda.config import Environment
from biruda.convert import encode
from biruda.coordinator.spawners.protocol import Place
from biruda.errors import EnvironmentFault
from biruda.guessenv import relation
from biruda.model import Kind
from biruda.wire import CONNECTION_BYTES, ECHO_BYTES, HANG_UP, echo_of, mark_of, opening_line
from biruda.worker.opening import Opening

WORK: Final = "/build"
"""Where injected workers run their steps."""

ROOM_BYTES: Final = 32 << 20
"""How much of a log a worker keeps in memory while no coordinator is there, before its job is slowed down."""

_ROOM_PART: Final = 8
_LEAST_ROOM_BYTES: Final = 8 << 20


class Decoder(Protocol):
    """Takes apart what a stream carries beside the worker's bytes."""

    def feed(self, data: bytes) -> bytes:
        """The worker's bytes in the stream's next bytes."""

    @property
    def said(self) -> str:
        """What the worker wrote to its standard error lately."""


class Incoming:
    """What comes over one connection: nothing before the echo counts."""

    def __init__(self, nonce: str, connection: bytes, decoder: Decoder | None = None) -> None:
        self.farewell = mark_of(nonce, HANG_UP)  # what to write when the connection is given up
        self._echo = echo_of(nonce, connection)
        self._decoder = decoder
        self._before: bytes | None = b""  # the end of what came before the echo; None once it has come

    @property
    def said(self) -> str:
        """What the worker wrote to its standard error lately, where the stream carries that."""
        return self._decoder.said if self._decoder is not None else ""

    def feed(self, data: bytes) -> bytes:
        """The bytes of frames in the stream's next bytes."""
        if self._decoder is not None:
            data = self._decoder.feed(data)
        if self._before is None:
            return data
        seen = self._before + data
        at = seen.find(self._echo)
        if at < 0:
            self._before = seen[1 - ECHO_BYTES :]
            return b""
        self._before = None
        return seen[at + ECHO_BYTES :]


def birth(opening: Opening) -> bytes:
    """What a worker that has just been started is told, once."""
    return opening_line(encode(opening))


def connect(nonce: str, decoder: Decoder | None = None) -> tuple[bytes, Incoming]:
    """What to write to begin a connection, and what then comes. A connection that was before ends by it."""
    connection = os.urandom(CONNECTION_BYTES - 1) + b"\1"  # never the one that means hanging up
    return mark_of(nonce, connection), Incoming(nonce, connection, decoder)


def opening_of(
    environment: Environment, place: Place, kind: Kind, *, arch: str, kernel_arch: str, lease_s: float, guess: bool
) -> Opening:
    """What an injected worker has to know that is PID 1 of its place. arch: of its root; kernel_arch: of its kernel."""
    room_bytes = ROOM_BYTES
    if environment.memory_bytes:
        room_bytes = min(room_bytes, max(_LEAST_ROOM_BYTES, environment.memory_bytes // _ROOM_PART))
    return Opening(
        worker=place.worker,
        nonce=place.nonce,
        kind=kind,
        work=WORK,
        lease_s=lease_s,
        memory_room_bytes=room_bytes,
        reuse=environment.permanent,
        owns_pids=True,
        personality32=relation(arch, kernel_arch) == "personality32",
        guess=guess,
        user=environment.user,
    )


async def executable(arch: str, cache: Path) -> injection.Executable:
    """The worker of an architecture. Raises EnvironmentFault."""
    return await asyncio.to_thread(injection.find, arch, cache)


def make_directory(place: Place) -> None:
    """The place's directory on the host, where the coordinator keeps the attempt's log. Raises EnvironmentFault."""
    try:
        os.makedirs(place.directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename}: {os.strerror(error.errno or 0)}") from None


class Said:
    """The last lines that something wrote, for people."""

    def __init__(self, most_bytes: int = 4096) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._most_bytes = most_bytes

    def add(self, data: bytes) -> None:
        """Bytes that came; the oldest go when there are too many."""
        self._pieces.append(data[-self._most_bytes :])
        self._size += len(self._pieces[-1])
        while self._size - len(self._pieces[0]) >= self._most_bytes:
            self._size -= len(self._pieces.popleft())

    def __str__(self) -> str:
        text = b"".join(self._pieces)[-self._most_bytes :].decode("utf-8", "replace")
        return "".join(char if char.isprintable() else " " for char in text).strip()
