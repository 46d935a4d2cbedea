"""Durations, sizes and names as people write and read them."""

import re

_NUMBER = r"(\d+(?:\.\d+)?)\s*"
_DURATION = (
    rf"(?=\S)(?:{_NUMBER}d)?\s*(?:{_NUMBER}h)?\s*(?:{_NUMBER}m(?:in)?)?\s*(?:{_NUMBER}(?:s|\Z))?\s*(?:{_NUMBER}ms)?"
)
_SIZE = r"(?i)(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?b?)|b)?"
_DURATION_UNITS_S = (86400, 3600, 60, 1, 0.001)
_SIZE_UNITS = "kmgtp"


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `1h30m`, `2d`, `250ms`; ValueError for anything else."""
    match = re.fullmatch(_DURATION, text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{escape(text)!r} is no duration")
    return sum(float(part) * unit for part, unit in zip(match.groups(), _DURATION_UNITS_S, strict=True) if part)


def parse_size(text: str) -> int:
    """Bytes of `512M`, `2GiB`, `1.5g`, `4096`: powers of 1024, of 1000 as KB, MB, GB; ValueError otherwise."""
    match = re.fullmatch(_SIZE, text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{escape(text)!r} is no size")
    number, unit, ending = match.groups()
    base = 1000 if (ending or "").lower() == "b" else 1024
    whole = float(number) * base ** (_SIZE_UNITS.index(unit.lower()) + 1) if unit else float(number)
    return int(number) if number.isdigit() and not unit else round(whole)


def duration(seconds: float) -> str:
    """`13ms`, `0.4s`, `41.2s`, `1m 12s`, `2h 03m`, `3d 4h`."""
    if 0 < seconds < 0.0995:
        return f"{max(1, round(seconds * 1000))}ms"
    if seconds < 59.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def size(count: int) -> str:
    """`212 B`, `4.1 KiB`, `1.9 MiB`."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1023.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} PiB"


def ago(seconds: float) -> str:
    """`now`, `12s ago`, `3m ago`, `2h ago`, `4d ago`."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if seconds >= unit:
            return f"{int(seconds // unit)}{name} ago"
    return "now"


def count(number: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`, `0 files`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def escape(text: str) -> str:
    """The text with everything that a terminal would obey, not show, written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(text: str, width: int) -> str:
    """At most that many characters, the last one … where some were cut."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def nearest(word: str, known: "tuple[str, ...] | list[str]") -> str:
    """The known word that was probably meant, "" for none."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, known, n=1)), "")
