"""The child that searches a log: standard library and little of it, so that it begins at once.

It gets the log as its standard input and writes one JSON object a line: {"hits": [line, ...]} as they are found,
{"at": bytes} now and then, and in the end {"found": N, "map": [...]}.
"""

import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biruda.errors import UserError
from biruda.master.joblog.index import LineIndex, load

MAX_QUERY = 1000
MAX_HITS = 10_000
"""Lines that are named; all others are counted and drawn on the map."""

MAP_CELLS = 240
CPU_S = 15
"""What a search may take of one processor; on a busy machine that is a longer time."""

MEMORY_BYTES = 512 << 20
PIECE_BYTES = 1 << 20
MAX_MATCHED_BYTES = 64 * 1024
"""Of a longer line each part of so many bytes is looked at alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is looked for. Without capitals in it, small and capital letters of ASCII are the same."""

    text: str
    regex: bool = False

    @property
    def is_exact(self) -> bool:
        return any(letter.isupper() for letter in self.text)

    @property
    def encoded(self) -> bytes:
        return self.text.encode("utf-8", "backslashreplace")


def compiled(query: Query) -> "re.Pattern[bytes]":
    """The pattern of a query. Raises UserError for one that is none."""
    if not 0 < len(query.text) <= MAX_QUERY or "\n" in query.text:
        raise UserError(f"q: a search is for 1 to {MAX_QUERY} characters of one line")
    text = query.encoded if query.regex else re.escape(query.encoded)
    try:
        return re.compile(text, re.MULTILINE | (0 if query.is_exact else re.IGNORECASE))
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"q: no regular expression: {error}", hint="without regex=1 it is taken as it is") from None


def main(arguments: list[str]) -> int:
    """Search standard input as the argument says."""
    wanted = json.loads(arguments[0])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    query = Query(text=wanted["text"], regex=wanted["regex"])
    cells = [0] * MAP_CELLS
    found = 0
    hits: list[int] = []
    lines = max(1, wanted["lines"])

    def say(value: dict[str, Any]) -> None:
        os.write(1, json.dumps(value, separators=(",", ":")).encode() + b"\n")

    for position, line in _matching_lines(
        0, wanted["bytes"], compiled(query), _literal(query), load(Path(wanted["index"]), 0)
    ):
        if line < 0:
            if hits:
                say({"hits": hits})
                hits = []
            say({"at": position})
            continue
        found += 1
        cells[min(line * MAP_CELLS // lines, MAP_CELLS - 1)] += 1
        if found <= MAX_HITS:
            hits.append(line + 1)
            if len(hits) >= (100 if found <= 100 else 2000):
                say({"hits": hits})
                hits = []
    if hits:
        say({"hits": hits})
    say({"found": found, "map": cells})
    return 0


def _literal(query: Query) -> tuple[bytes, bool] | None:
    """(bytes, whether exactly) of a query that is no pattern."""
    if query.regex:
        return None
    text = query.encoded
    return (text, True) if query.is_exact else (text.lower(), False)


def _matching_lines(
    fd: int,
    size: int,
    pattern: "re.Pattern[bytes]",
    literal: tuple[bytes, bool] | None,
    index: LineIndex | None = None,
) -> Iterator[tuple[int, int]]:
    """(offset, line) of each line that matches, counted from 0; (offset, -1) after each piece.

    With an index the lines of pieces that have nothing need not be counted, which would take longer than to search.
    """
    find = _finder(pattern, literal)
    position, line = 0, 0
    held = b""
    while position < size:
        piece = os.pread(fd, min(PIECE_BYTES, size - position), position)
        if not piece:
            return
        position += len(piece)
        data = held + piece
        cut = data.rfind(b"\n") + 1
        if position >= size:
            cut = len(data)
        elif cut == 0:
            if len(data) < PIECE_BYTES + MAX_MATCHED_BYTES:
                held = data
                continue
            cut = len(data) - MAX_MATCHED_BYTES  # a line without an end: what may be cut in two is looked at twice
        at = counted = 0
        begin = position - len(data)
        while (start := find(data, at, cut)) >= 0:
            if index is not None and counted == 0:
                line = index.line_at(fd, begin + start)
            else:
                line += data.count(b"\n", counted, start)
            counted = start
            yield begin + start, line
            at = data.find(b"\n", start, cut) + 1
            if at == 0:
                break
        if index is None:
            line += data.count(b"\n", counted, cut)
        held = data[cut:]
        yield position, -1


def _finder(pattern: "re.Pattern[bytes]", literal: tuple[bytes, bool] | None) -> Callable[[bytes, int, int], int]:
    """Where the first match is that begins and ends in one line; -1 for none."""
    if literal is not None:
        text, is_exact = literal
        if is_exact:
            return lambda data, start, end: data.find(text, start, end)
        lowered: list[bytes] = [b"", b""]

        def find_lowered(data: bytes, start: int, end: int) -> int:
            if lowered[0] is not data:
                lowered[:] = [data, data.lower()]
            return lowered[1].find(text, start, end)

        return find_lowered

    def find(data: bytes, start: int, end: int) -> int:
        while start < end and (match := pattern.search(data, start, end)) is not None:
            begin = data.rfind(b"\n", 0, match.start()) + 1
            stop = data.find(b"\n", match.start(), end)
            stop = end if stop < 0 else stop
            if match.end() <= stop or pattern.search(data, max(begin, start), stop) is not None:
                return match.start()
            start = stop + 1
        return -1

    return find
