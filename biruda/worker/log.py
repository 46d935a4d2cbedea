"""The log of one attempt: the pipe all its steps write to, the room behind it, its running hash and its times."""

import os
import struct
import sys
import time
from array import array
from bisect import bisect_right

from biruda.frames import DATA_BYTES
from biruda.model import LogInfo
from biruda.worker.digest import sha256
from biruda.worker.room import Room, untouched

if sys.platform != "win32":
    import fcntl
    import termios

RETRY_S = 1.0
"""Between two tries to write to a full disk."""

PIPE_BYTES = 1 << 20
_FIRST_BYTES = 4096
_F_SETPIPE_SZ = 1031  # Linux


class Log:
    """Reads what the steps print, in order, into the room."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.last_output_s = 0.0  # monotonic; also now while back-pressure, not the job, is why nothing comes
        self.at_end = False  # every writer has closed the pipe and all was read
        self.times = Times()
        self.retry_at_s = float("inf")  # when tend() is wanted
        self._began_s = time.monotonic()
        self._hash = sha256()
        self._buffer = memoryview(bytearray(_FIRST_BYTES))
        self._wants_more = False  # the buffer was filled once, and is still the first
        self._on_new_line = True
        self._problem = ""
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)

    @property
    def end(self) -> int:
        """Offset after the last byte read; what the room has no place for yet is counted."""
        return self.room.end + len(self.room.pending)

    @property
    def elapsed_ms(self) -> int:
        """Milliseconds since the attempt began."""
        return int((time.monotonic() - self._began_s) * 1000)

    @property
    def may_read(self) -> bool:
        """False while back-pressure holds the job, and at the end."""
        return not self.at_end and self.room.space > 0

    @property
    def waiting_bytes(self) -> int:
        """What is in the pipe now."""
        if self.read_fd < 0:
            return 0
        size: int = struct.unpack("i", fcntl.ioctl(self.read_fd, termios.FIONREAD, bytes(4)))[0]
        return size

    def read(self) -> memoryview:
        """The next piece, appended to the room; valid until the next call. Empty when there is none now, or ever."""
        if self._wants_more:
            self._widen()
        size = min(self.room.space, len(self._buffer))
        if size <= 0 or self.at_end:
            return self._buffer[:0]
        try:
            piece = self._buffer[: os.readv(self.read_fd, [self._buffer[:size]])]
        except BlockingIOError:
            return self._buffer[:0]
        if not piece:
            self.at_end = True
        else:
            self._append(piece)
            self._wants_more = len(piece) == _FIRST_BYTES
        return piece

    def _widen(self) -> None:
        """Most attempts print little; of one that prints more, each read shall take much."""
        self._wants_more = False
        self._buffer = memoryview(untouched(DATA_BYTES))
        try:
            fcntl.fcntl(self.read_fd, _F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # beyond what the user may have, or not Linux: the default holds
            pass

    def say(self, text: str) -> None:
        """A line of biruda's own. The pipe must be empty, or the order is wrong."""
        line = f"biruda: {text}\n".encode("utf-8", "backslashreplace")
        self._append(memoryview(line if self._on_new_line else b"\n" + line))

    def _append(self, piece: memoryview) -> None:
        self.last_output_s = time.monotonic()
        self.times.note(self.end, int((self.last_output_s - self._began_s) * 1000))
        self.room.append(piece)
        self._on_new_line = piece[-1] == 0x0A
        self._hash.update(piece)

    def tend(self, now_s: float) -> str:
        """Try again to store what found no place; the problem, once, where it is not just a slow peer."""
        room = self.room
        if room.pending and now_s >= self.retry_at_s:
            self.retry_at_s = now_s + RETRY_S
            room.retry()
        if not self.may_read:
            self.last_output_s = now_s  # it is not the job that is silent
        if not room.pending:
            self.retry_at_s, self._problem = float("inf"), ""
            return ""
        self.retry_at_s = min(self.retry_at_s, now_s + RETRY_S)
        told, self._problem = self._problem, room.problem
        return "" if told else room.problem

    def close_writer(self) -> None:
        """No step follows: the pipe ends when the last process that holds it does."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close_reader(self) -> None:
        """Read no more."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            self.read_fd = -1

    def close(self) -> None:
        """Close the pipe and the room; may be called again."""
        self.close_writer()
        self.close_reader()
        self.room.close()

    def info(self) -> LogInfo:
        """Size and digest of all that was read."""
        return LogInfo(bytes=self.end, sha256=self._hash.hexdigest(), complete=self.at_end)


class Times:
    """When the log's bytes came, for bytes that are sent later: bounded, so that old times grow coarse."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._offsets = array("Q")
        self._elapsed_ms = array("Q")
        self._step_ms = 1

    def note(self, offset: int, elapsed_ms: int) -> None:
        """The byte at offset came at elapsed_ms."""
        if self._elapsed_ms and elapsed_ms < self._elapsed_ms[-1] + self._step_ms:
            return
        self._offsets.append(offset)
        self._elapsed_ms.append(elapsed_ms)
        if len(self._offsets) > self._capacity:
            self._offsets, self._elapsed_ms = self._offsets[::2], self._elapsed_ms[::2]
            self._step_ms *= 2

    def at(self, offset: int) -> int:
        """When the byte at offset had come, as far as is known."""
        index = bisect_right(self._offsets, offset) - 1
        return self._elapsed_ms[index] if index >= 0 else 0
