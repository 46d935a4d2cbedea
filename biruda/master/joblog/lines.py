"""Lines out of a log, each cut to what a person reads of it, so that a line of a gigabyte does no harm."""

import os
from dataclasses import dataclass

from biruda.master.joblog.index import LineIndex

MAX_LINE_BYTES = 4096
MAX_LINES = 2000
MAX_TEXT_BYTES = 512 * 1024
"""Of one answer: then fewer lines come than were asked for."""

_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log without its end; text is cut to MAX_LINE_BYTES."""

    offset: int
    size_bytes: int
    text: bytes

    @property
    def is_cut(self) -> bool:
        return self.size_bytes > len(self.text)


def read_lines(fd: int, index: LineIndex, first: int, count: int) -> list[Line]:
    """Up to count lines from the first, counted from 0, of what the index knows."""
    end = index.bytes
    offset = index.start_of(fd, first)
    lines: list[Line] = []
    room = MAX_TEXT_BYTES
    while len(lines) < count and offset < end and room > 0:
        piece = os.pread(fd, min(_PIECE_BYTES, end - offset), offset)
        if not piece:
            break
        position = 0
        while len(lines) < count and room > 0 and (stop := piece.find(b"\n", position)) >= 0:
            lines.append(_line(offset + position, stop - position, piece[position:stop]))
            room -= len(lines[-1].text)
            position = stop + 1
        if position == 0:  # no end in all of the piece: a long line, or the last one
            following = index.start_of(fd, first + len(lines) + 1)
            is_last = first + len(lines) >= index.ends
            lines.append(_line(offset, following - offset - (0 if is_last else 1), piece))
            room -= len(lines[-1].text)
            position = following - offset
        offset += position
    return lines


def _line(offset: int, size: int, text: bytes) -> Line:
    return Line(offset, size, text[:MAX_LINE_BYTES])
