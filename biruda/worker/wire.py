"""The worker's end of a wire (see biruda.wire): the connections on it, one after the other.

To the poll loop a Wire is what a listening socket is elsewhere, and a WireConnection what an accepted one is.
"""

import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from biruda.frames import DATA_BYTES
from biruda.wire import CONNECTION_BYTES, HANG_UP, SECRET_BYTES, echo_of, secret_of

REST_S: Final = 0.1
"""Between two looks at a device whose other side is closed: it would be ready at once, again and again."""

_PIPE_BYTES: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031  # Linux


class Wire:
    """Two descriptors, which stay the caller's. With `reopens`, their end passes: the other side can come back."""

    def __init__(self, read_fd: int, write_fd: int, nonce: str, *, reopens: bool = False) -> None:
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        _enlarge(write_fd)
        self.rests_until_s = 0.0  # of the monotonic clock: not to be polled before
        self.heard_at_s = 0.0  # of the monotonic clock: when something came at last
        self.was_used = False  # somebody was connected once
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._nonce = nonce
        self._reopens = reopens
        self._secret = secret_of(nonce)
        self._tail = b""  # what a mark may have begun in
        self._current: WireConnection | None = None

    def fileno(self) -> int:
        return self._read_fd

    def has_something(self) -> bool:
        """Whether there is something to be read now, and not just the end."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        ended = select.POLLHUP if self._reopens else 0  # a port that is closed on the other side says both
        return any(event & select.POLLIN and not event & ended for _, event in poll.poll(0))

    def accept(self) -> tuple["WireConnection", None]:
        """Take what has come; the connection that began in it.

        Raises BlockingIOError when none did: what came is for the one before; EOFError when nobody can come back.
        """
        connection: WireConnection | None = None
        taken = len(self._tail)  # so much of what is seen was given to the current connection already
        seen = self._tail + self._read()
        while (at := seen.find(self._secret)) >= 0:
            rest = at + SECRET_BYTES + CONNECTION_BYTES
            if len(seen) < rest:
                break
            number = seen[at + SECRET_BYTES : rest]
            if number == HANG_UP and self._current is not None:
                self._current.take(seen[taken:at])  # who hangs up has meant all that was said before
            self._end_current()
            connection = None
            if number != HANG_UP:
                self._current = connection = WireConnection(self._read_fd, self._write_fd, echo_of(self._nonce, number))
                self.was_used = True
            seen, taken = seen[rest:], 0
        self._tail = seen[-(SECRET_BYTES + CONNECTION_BYTES - 1) :]
        if self._current is not None:
            self._current.take(seen[taken:])
        if connection is None:
            raise BlockingIOError
        return connection, None

    def _read(self) -> bytes:
        try:
            data = os.read(self._read_fd, DATA_BYTES)
        except (BlockingIOError, InterruptedError):
            raise BlockingIOError from None
        except OSError:  # a device that was taken away
            data = b""
        if data:
            self.heard_at_s = time.monotonic()
            return data
        self._end_current()
        self._tail = b""
        if not self._reopens:
            raise EOFError
        self.rests_until_s = time.monotonic() + REST_S
        raise BlockingIOError

    def _end_current(self) -> None:
        if self._current is not None:
            self._current.end()
            self._current = None


class WireConnection:
    """One connection, with as much of a socket as a link needs."""

    def __init__(self, read_fd: int, write_fd: int, echo: bytes) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._echo = echo  # what of it was not written yet
        self._came = b""
        self._has_ended = False

    def fileno(self) -> int:
        return self._read_fd

    def out_fileno(self) -> int:
        return self._write_fd

    def take(self, data: bytes) -> None:
        """What came for it; the link has taken all that came before."""
        self._came += data

    def end(self) -> None:
        """Nothing more comes but what it was given."""
        self._has_ended = True

    def recv_into(self, buffer: memoryview) -> int:
        """How many bytes it put there; 0 at the end. Raises BlockingIOError when there is nothing now."""
        if not self._came:
            if self._has_ended:
                return 0
            raise BlockingIOError
        piece = self._came[: len(buffer)]
        buffer[: len(piece)] = piece
        self._came = self._came[len(piece) :]
        return len(piece)

    def sendmsg(self, pieces: Sequence[memoryview]) -> int:
        """How many bytes of the pieces were written. Raises BlockingIOError for none, OSError when it has ended."""
        if self._has_ended:
            raise BrokenPipeError
        while self._echo:
            self._echo = self._echo[os.write(self._write_fd, self._echo) :]
        waiting, sent = list(pieces), 0
        try:
            while waiting:  # a device takes only a part of what it has room for
                written = os.writev(self._write_fd, waiting)
                sent += written
                while waiting and written >= len(waiting[0]):
                    written -= len(waiting.pop(0))
                if written:
                    waiting[0] = waiting[0][written:]
        except BlockingIOError:
            if not sent:
                raise
        return sent

    def close(self) -> None:
        """Say and hear nothing more; the wire stays."""
        self.end()


def _enlarge(fd: int) -> None:
    """Let a pipe hold more than the system's default."""
    if os.name == "nt":
        return
    import fcntl

    with suppress(OSError):  # no pipe, or more than this user may have
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE_BYTES)
