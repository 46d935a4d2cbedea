"""When a log's bytes came: a sparse file of (offset, milliseconds) that grows beside the log.

A job that is over within a second has none: for thousands of them a file each would cost more than it tells.
"""

import logging
import os
from array import array
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("biruda.master")

FINE_MS = 100
COARSE_MS = 1000
COARSE_FROM_MS = 600_000
FIRST_WRITE_MS = 1000


class TimesWriter:
    """Notes when bytes came; at most ten times a second, after ten minutes once a second."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._held = array("Q")  # until it is sure that the job takes longer than a moment
        self._next_ms = 0

    def note(self, offset: int, elapsed_ms: int) -> None:
        """The byte at offset and those after it came at elapsed_ms."""
        if elapsed_ms < self._next_ms:
            return
        self._next_ms = elapsed_ms + (FINE_MS if elapsed_ms < COARSE_FROM_MS else COARSE_MS)
        self._held.extend((offset, elapsed_ms))
        if elapsed_ms < FIRST_WRITE_MS:
            return
        held, self._held = self._held, array("Q")
        try:
            if self._fd < 0:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                again = 0 if held[0] else os.O_TRUNC  # what another job of this number has left goes
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | again, 0o644)
            os.write(self._fd, held.tobytes())
        except (OSError, OverflowError) as error:  # the log counts; when its lines came is worth no waiting for room
            log.warning("%s: when the log's lines came is not kept: %s", self._path, error)
            self._next_ms = 1 << 64

    def clear(self) -> None:
        """All comes again."""
        self.close()
        with suppress(OSError):
            os.unlink(self._path)
        self._held, self._next_ms = array("Q"), 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Times:
    """What was noted, to look up."""

    def __init__(self, records: "array[int]") -> None:
        self._offsets, self._elapsed_ms = records[0::2], records[1::2]

    def at(self, offset: int) -> int | None:
        """Milliseconds from the attempt's start to when the byte at offset came; None where nobody knows."""
        index = bisect_right(self._offsets, offset) - 1
        return self._elapsed_ms[index] if index >= 0 else None


def read_times(path: Path) -> Times:
    """The times that were kept of a log, empty where there are none; a record cut off in the middle is left out."""
    records = array("Q")
    with suppress(OSError):
        data = path.read_bytes()
        records.frombytes(data[: len(data) // 16 * 16])
    return Times(records)
