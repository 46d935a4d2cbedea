"""Where a log says what went wrong: the lines that look like errors, in the part that a step printed."""

import os
import re

NEEDLES = (
    *(b"error", b"fail", b"fatal", b"panic", b"traceback", b"exception", b"undefined reference", b"*** ["),
    *(b"not found", b"no such file", b"cannot ", b"segmentation fault", b"assert", b"killed", b"permission denied"),
    b"biruda: step",
)
"""Cheap to look for. Only lines that have one of them, in any case, are looked at more closely."""

TELLS = re.compile(
    rb"\b(?:[a-z]{0,40}error|fatal|failed|failure|fail|panic(?:ked)?|traceback|[a-z]{0,40}exception)\b"
    rb"(?!s? ?[=:] ?(?:(?:0|none)\b|no\s*$))"
    rb"|undefined reference|\*\*\* \[|command not found|no such file|cannot (?:open|find|stat|access|execute|load)"
    rb"|segmentation fault|assertion|\bkilled\b|permission denied|\bbiruda: step ",
)
HARMLESS = re.compile(
    rb"-w(?:no-)?error\S{0,60}|\b(?:0|no|without) (?:errors?|failures?|failed|fail)\b"
    rb"|\b(?:errors?|fail(?:ed|ures?)?)[ =:]{1,3}0\b"
    rb"|\b[\w./-]{0,80}(?:error|fail|exception|assert)\w{0,40}\.(?:c|cc|cpp|h|hpp|o|lo|py|js|rs|go|java|html|txt|\d)\b"
    rb"|--?[a-z-]{0,40}(?:error|fail)[a-z-]{0,40}"
)
"""Names of files and options that only sound like it. All repeats are bounded: a log's author may be hostile."""
_COLOURS = re.compile(rb"\x1b\[[0-9;]{0,32}[mK]")

PIECE_BYTES = 64 * 1024
MAX_LINE_BYTES = 2048


def looks_like_an_error(line: bytes) -> bool:
    """Whether a line tells of something that went wrong, as far as a program can know."""
    text = _COLOURS.sub(b"", line[:MAX_LINE_BYTES]).lower()
    return any(needle in text for needle in NEEDLES) and TELLS.search(HARMLESS.sub(b"", text)) is not None


def error_offsets(fd: int, start: int, end: int, limit: int) -> list[int]:
    """Offsets of the first lines between start and end that look like errors, at most limit of them."""
    found: list[int] = []
    position = start
    while position < end and len(found) < limit:
        piece = os.pread(fd, min(PIECE_BYTES, end - position), position)
        if not piece:
            break
        cut = piece.rfind(b"\n") + 1
        if cut == 0 or position + len(piece) >= end:
            cut = len(piece)
        found += [
            position + begin for begin in _suspects(piece[:cut].lower()) if looks_like_an_error(_line(piece, begin))
        ]
        position += cut
    return found[:limit]


def _suspects(lowered: bytes) -> list[int]:
    """Where the lines begin that have a needle."""
    begins: set[int] = set()
    for needle in NEEDLES:
        at = lowered.find(needle)
        while at >= 0:
            begins.add(lowered.rfind(b"\n", 0, at) + 1)
            following = lowered.find(b"\n", at)
            at = lowered.find(needle, following) if following >= 0 else -1
    return sorted(begins)


def _line(piece: bytes, begin: int) -> bytes:
    end = piece.find(b"\n", begin)
    return piece[begin : min(end if end >= 0 else len(piece), begin + MAX_LINE_BYTES)]
