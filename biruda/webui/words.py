"""How values read on a page: states, sizes, durations, times. static/format.js writes the same words."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

NONE: Final = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class State:
    """How a state is shown: always a shape beside the colour."""

    name: str
    glyph: str
    word: str


STATES: Final = {
    state.name: state
    for state in (
        State("passed", "●", "passed"),
        State("failed", "✖", "failed"),
        State("infra", "▲", "infrastructure"),
        State("environment", "◆", "environment"),
        State("timeout", "◷", "timed out"),
        State("cancelled", "⊘", "cancelled"),
        State("preempted", "⇄", "preempted"),
        State("running", "◌", "running"),
        State("waiting", "○", "waiting"),
    )
}


def state_of(job: Mapping[str, Any]) -> str:
    """The name of a job's state, from the API's view of it."""
    if job["state"] == "finished":
        return str(job["outcome"] or "infra")
    return "running" if job["state"] == "running" else "waiting"


def duration(seconds: float | None) -> str:
    """`9.1 s`, `1m 12s`, `2h 05m`, `3d 4h`; a dash for none."""
    if seconds is None:
        return NONE
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.1 or seconds == 0 else f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def size(count: float | None) -> str:
    """`812 B`, `1.2 MiB`; a dash for none."""
    if count is None:
        return NONE
    value, unit = float(count), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def number(value: int) -> str:
    """`18,204`."""
    return f"{value:,}"


def percent(part: float) -> str:
    """`62 %` of a part from 0 to 1."""
    return f"{part * 100:.0f} %"


def parsed(instant: str | None) -> datetime | None:
    """An instant of the API."""
    return None if not instant else datetime.fromisoformat(instant.replace("Z", "+00:00"))


def seconds_between(start: str | None, end: str | None) -> float | None:
    """How long something took that began and, perhaps, ended."""
    first, last = parsed(start), parsed(end)
    return None if first is None else ((last or datetime.now(UTC)) - first).total_seconds()


def relative(instant: str | None, now: datetime | None = None) -> str:
    """`just now`, `3 min ago`, `in 2 h`."""
    at = parsed(instant)
    if at is None:
        return NONE
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    ahead, seconds = seconds < -1, abs(seconds)
    if seconds < 5:
        return "just now"
    for limit, unit_s, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (float("inf"), 86400, "d")):
        if seconds < limit:
            text = f"{int(seconds // unit_s)} {unit}"
            return f"in {text}" if ahead else f"{text} ago"
    raise AssertionError(seconds)


def exact(instant: str | None) -> str:
    """`2026-11-26 00:35:01 UTC`."""
    at = parsed(instant)
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
