"""Where the bytes of logs go: as they are for one job, in prefixed lines for several."""

import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from biruda.errors import BirudaError

LONGEST_LINE_BYTES = 64 * 1024

Write = Callable[[bytes], None]


class Sink(Protocol):
    """Takes one job's log in order."""

    def write(self, data: bytes) -> None:
        """The next bytes."""

    def end(self) -> None:
        """No more come for now; what is held back must be seen."""


class Output:
    """A descriptor that several threads write whole pieces to. Raises BrokenPipeError when its reader has gone."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.at_line_start = True
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Write all of it, with nothing of others in between."""
        if not data:
            return
        rest = memoryview(data)
        with self._lock:
            while rest:
                try:
                    rest = rest[os.write(self.descriptor, rest) :]
                except BlockingIOError:  # somebody we share it with wants it so
                    select.select([], [self.descriptor], [])
                except BrokenPipeError:
                    raise
                except OSError as error:
                    raise BirudaError(f"cannot write the log to the output: {error.strerror}") from error
            self.at_line_start = data.endswith(b"\n")


class Plain:
    """The bytes as they are."""

    def __init__(self, write: Write) -> None:
        self.write = write

    def end(self) -> None:
        """Nothing is held back."""


class Prefixed:
    """Whole lines, each behind a prefix. A line longer than 64 KiB is cut, and its rest has the prefix again."""

    def __init__(self, prefix: bytes, write: Write) -> None:
        self._prefix = prefix
        self._write = write
        self._held: list[bytes] = []  # the parts of a line that has not ended
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        """Pass on the lines that are whole now."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._held, lines[0]])
            self._held, self._held_bytes = [], 0
            self._write(b"".join(map(self._cut, lines)))
        if rest:
            self._held.append(rest)
            self._held_bytes += len(rest)
        if self._held_bytes > LONGEST_LINE_BYTES:
            held = b"".join(self._held)
            whole = (len(held) - 1) // LONGEST_LINE_BYTES * LONGEST_LINE_BYTES
            self._write(self._cut(held[:whole]))
            self._held, self._held_bytes = [held[whole:]], len(held) - whole

    def end(self) -> None:
        """Pass on the last line, which no newline ended."""
        if self._held:
            self._write(self._cut(b"".join(self._held)))
            self._held, self._held_bytes = [], 0

    def _cut(self, line: bytes) -> bytes:
        pieces = [line[at : at + LONGEST_LINE_BYTES] for at in range(0, len(line), LONGEST_LINE_BYTES)] or [b""]
        return b"".join(self._prefix + piece + b"\n" for piece in pieces)


class Voice:
    """What is said on standard error while logs run over standard output: whole lines, on lines of their own."""

    def __init__(self, output: Output) -> None:
        from biruda.cli.screen import err

        self.screen = err()
        self._output = output
        self._shared = self.screen.tty and os.isatty(output.descriptor)
        self._lock = threading.Lock()
        self._silent = False

    def say(self, sentence: str) -> None:
        """Print a line."""
        with self._lock:
            if self._silent:
                return
            if self._shared and not self._output.at_line_start:
                self._output.write(b"\n")
            self.screen.wrapped("", sentence)

    def silence(self) -> None:
        """Nothing is said after this returned: the process is about to end."""
        with self._lock:
            self._silent = True


def standard_output() -> Output:
    """Standard output, with what was printed before."""
    sys.stdout.flush()
    return Output(sys.stdout.fileno())
