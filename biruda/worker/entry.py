"""How an injected worker starts: `biruda --worker`, with nothing but a wire on its standard streams.

What it has to know comes as the first line there (see biruda.wire), and not as an argument, which others could read.
"""

import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from biruda.convert import decode
from biruda.errors import BirudaError, PeerError
from biruda.wire import MOST_OPENING_BYTES, opening_of_line
from biruda.worker import kernel
from biruda.worker.cleanup import remove_tree
from biruda.worker.opening import Opening
from biruda.worker.serve import serve_over
from biruda.worker.wire import REST_S

OPENING_LIMIT_S: Final = 60.0
"""A worker that nobody told anything for so long ends."""

_PR_SET_DUMPABLE: Final = 4
_FAILED: Final = 70
_USAGE: Final = 2


def main(arguments: Sequence[str]) -> int:
    """Serve on the standard streams; the status to exit with. What goes wrong is one sentence on standard error."""
    if arguments:
        sys.stderr.write("biruda: --worker takes no arguments: what it has to know comes on its standard input\n")
        return _USAGE
    read_fd, write_fd = own_streams()
    try:
        opening = read_opening(read_fd)
        check_work(opening.work)
        prepare(opening)
        try:
            serve_over(read_fd, write_fd, opening)
        finally:
            remove_tree(opening.work)  # who serves attempt after attempt keeps it between them
    except BirudaError as error:
        sys.stderr.write(f"biruda: {error}{'; ' if error.hint else ''}{error.hint}\n")
        return _FAILED
    return 0


def own_streams() -> tuple[int, int]:
    """Standard input and output under other numbers, so that nothing else reads or writes them by accident."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    with suppress(OSError):  # a root without devices: then they stay as they are
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    os.dup2(2, 1)
    return read_fd, write_fd


def read_opening(fd: int, *, limit_s: float = OPENING_LIMIT_S, reopens: bool = False) -> Opening:
    """The opening that comes on a wire; lines before it are dropped. Raises PeerError when there is none in time.

    With `reopens`, the end of fd means that the other side is not there yet.
    """
    end_s = time.monotonic() + limit_s
    while True:
        values = opening_of_line(_read_line(fd, end_s, reopens=reopens))
        if values is None:
            continue
        try:
            return decode(Opening, values)
        except ValueError as error:
            raise PeerError(f"the opening does not fit this worker: {error}", hint="run the same version") from None


def _read_line(fd: int, end_s: float, *, reopens: bool) -> bytes:
    """Byte by byte: what follows the line is not this function's."""
    line = bytearray()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not line.endswith(b"\n"):
        left_s = end_s - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise PeerError("a worker was started, but nobody told it what for")
        try:
            byte = os.read(fd, 1)
        except (BlockingIOError, InterruptedError):
            continue
        if not byte and reopens:
            select.poll().poll(REST_S * 1000)
            continue
        if not byte:
            raise PeerError("a worker was started, but nobody is there to tell it what for")
        line += byte
        if len(line) > MOST_OPENING_BYTES:
            raise PeerError(f"what a worker was told at its start is longer than {MOST_OPENING_BYTES} bytes")
    return bytes(line)


def check_work(work: str) -> None:
    """Raises PeerError for a work directory that is somebody else's: at its end an attempt removes all that is there.

    Process 1 has a root of its own, which is thrown away as a whole.
    """
    if os.getpid() == 1 or not os.path.lexists(work):
        return
    try:
        is_empty = not os.path.islink(work) and not os.listdir(work)
    except OSError:
        is_empty = False
    if not is_empty:
        raise PeerError(f"{work} is there already, and a worker would remove what is in it", hint="give it a new one")


def prepare(opening: Opening) -> None:
    """Make this process what the opening says, as far as the system lets it."""
    if not kernel.has_builtin():
        return
    with suppress(OSError):  # what a job starts shall not read this process's memory, nor write to its streams
        kernel.prctl(_PR_SET_DUMPABLE, 0)
    if opening.subreaper:
        with suppress(OSError):
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    if opening.personality32:
        with suppress(OSError):
            kernel.personality(kernel.PER_LINUX32)
