"""What the value of a key may look like. A form reads one value and says in words what it would have accepted."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NoReturn

from biruda.config.problems import BAD, Spot, choice, shown

NumberText = Callable[[float], str]

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,3})")
_DURATION = re.compile(
    r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|seconds?|sec|s|minutes?|min|hours?|h|days?|d)\b", re.ASCII
)
_BYTES_BY_UNIT: Final = {
    "b": 1,
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), 1)},
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), 1)},
}
_SECONDS_BY_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the greatest number a key accepts; None: the form's own limit."""

    low: float | None = None
    high: float | None = None

    def text(self, number: NumberText = str) -> str:
        """The bounds in words; "" without any."""
        if self.low is not None and self.high is not None:
            return f"{number(self.low)} to {number(self.high)}"
        return f"{number(self.low)} or more" if self.low is not None else ""


_NUMBERS: Final = Bounds(-(2**62), 2**62)
_SIZES: Final = Bounds(0, 2**62)
_DURATIONS: Final = Bounds(0, 10 * 365 * 86400)  # beyond, the kernel's and the event loop's timers overflow


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of value: `says` completes "must be ...", `read` gives the value, or BAD after reporting at the spot."""

    says: str
    read: Callable[[Any, Bounds, Spot], Any]


class Refused(Exception):
    """What is wrong with a text, as the end of a sentence."""


def refuse(text: str) -> NoReturn:
    raise Refused(text)


def text_form(says: str, convert: Callable[[str], Any], *, empty: Any = "") -> Form:
    """A form of strings; convert raises through refuse, and an empty string is `empty` without being converted."""

    def read(value: Any, _bounds: Bounds, spot: Spot) -> Any:
        if type(value) is not str:
            return spot.bad_value(value, f"must be {says}")
        if "\0" in value:
            return spot.bad_value(value, "must not contain a NUL character")
        try:
            return convert(value) if value else empty
        except Refused as refused:
            return spot.bad_value(value, str(refused))

    return Form(says, read)


def matching(says: str, pattern: str) -> Form:
    """Strings that match all of a regular expression."""
    compiled = re.compile(pattern)
    return text_form(says, lambda text: text if compiled.fullmatch(text) else refuse(f"must be {says}"))


def required(form: Form) -> Form:
    """The same form, the empty string refused."""

    def read(value: Any, bounds: Bounds, spot: Spot) -> Any:
        return spot.bad_value(value, f"must be {form.says}") if value == "" else form.read(value, bounds, spot)

    return Form(form.says, read)


def enum_form(kind: type[StrEnum]) -> Form:
    """One of the values of a closed set."""
    words = [member.value for member in kind]
    return text_form(
        "one of " + ", ".join(f'"{word}"' for word in words),
        lambda text: kind(text) if text in words else refuse(f"must be {choice(text, words)}"),
        empty=None,
    )


def list_of(item: Form, says: str, *, least: int = 0) -> Form:
    """A list of at least so many items, each of one form; every wrong item is reported."""

    def read(value: Any, bounds: Bounds, spot: Spot) -> Any:
        if type(value) is not list:
            return spot.bad_value(value, f"must be {says}")
        if len(value) < least:
            return spot.bad(f"{spot.what} must not be empty")
        items = [item.read(each, bounds, spot.item(index)) for index, each in enumerate(value)]
        return BAD if any(each is BAD for each in items) else tuple(items)

    return Form(says, read)


def _finite(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _bounded(value: Any, number: float, bounds: Bounds, limits: Bounds, spot: Spot, text: NumberText = str) -> bool:
    """Whether a number is within a key's bounds and, where it has none, the form's own limits."""
    effective = Bounds(
        limits.low if bounds.low is None else bounds.low, limits.high if bounds.high is None else bounds.high
    )
    if effective.low is not None and number < effective.low:
        spot.bad_value(
            value, f"must be {effective.text(text) if bounds.high is not None else text(effective.low) + ' or more'}"
        )
        return False
    if effective.high is not None and number > effective.high:
        spot.bad_value(value, f"must be {text(effective.high)} or less")
        return False
    return True


def _whole_number(value: Any, bounds: Bounds, spot: Spot) -> Any:
    if type(value) is not int:
        return spot.bad_value(value, "must be a whole number")
    return value if _bounded(value, value, bounds, _NUMBERS, spot) else BAD


def _number(value: Any, bounds: Bounds, spot: Spot) -> Any:
    if not _finite(value):
        return spot.bad_value(value, "must be a number")
    return float(value) if _bounded(value, value, bounds, _NUMBERS, spot) else BAD


def _boolean(value: Any, _bounds: Bounds, spot: Spot) -> Any:
    return value if type(value) is bool else spot.bad_value(value, "must be true or false")


def _size(value: Any, bounds: Bounds, spot: Spot) -> Any:
    size, hint = (value, "") if type(value) is int else _bytes_of(value)
    if size is None:
        return spot.bad_value(value, hint)
    return size if _bounded(value, size, bounds, _SIZES, spot, size_text) else BAD


def _bytes_of(value: Any) -> tuple[int | None, str]:
    """The bytes that a text such as "4 GiB" means, or why it means none."""
    hint = 'must be bytes, a whole number or text such as "4 GiB"'
    match = _SIZE.fullmatch(value.strip()) if type(value) is str else None
    if match is None:
        return None, hint
    factor = _BYTES_BY_UNIT.get(match[2].lower())
    if factor is None:
        unit = match[2][0].upper()  # 4G means one thing to dd and another to a disk's box
        return None, f'write "{match[1]} {unit}iB"' if unit in "KMGT" else hint
    return round(float(match[1]) * factor), ""


def _duration(value: Any, bounds: Bounds, spot: Spot) -> Any:
    seconds: Any = _seconds_of(value) if type(value) is str else value
    if not _finite(seconds):
        return spot.bad_value(value, 'must be seconds, a number or text such as "10 min"')
    return float(seconds) if _bounded(value, seconds, bounds, _DURATIONS, spot) else BAD


def _seconds_of(text: str) -> float | None:
    """The seconds that a text such as "1 h 30 min" means; None when it means none."""
    total, position = 0.0, 0
    while match := _DURATION.match(text, position):
        unit = match[2] if match[2] == "ms" else match[2][0]
        total += float(match[1]) * _SECONDS_BY_UNIT[unit]
        position = match.end()
    return total if position and not text[position:].strip() else None


def size_text(size: float) -> str:
    """Whole bytes as a person writes them: 4 GiB, 512 MiB, 1000."""
    size = int(size)
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power} {unit}"
    return str(size)


def _environment_variables(value: Any, bounds: Bounds, spot: Spot) -> Any:
    if type(value) is not dict:
        return spot.bad_value(value, 'must be a table of strings, such as { CC = "gcc" }')
    result, whole = {}, True
    for name, text in value.items():
        inner = spot.inside(name)
        if not name or "=" in name or "\0" in name:
            whole = inner.bad(f"{shown(name)} cannot be the name of an environment variable") is not BAD
        elif (read := STRING.read(text, bounds, inner)) is BAD:
            whole = False
        else:
            result[name] = read
    return result if whole else BAD


STRING: Final = text_form("a string", lambda text: text)
LINE: Final = matching("one line of text", r"[^\x00-\x1f\x7f]{0,200}")
WHOLE_NUMBER: Final = Form("a whole number", _whole_number)
NUMBER: Final = Form("a number", _number)
BOOLEAN: Final = Form("true or false", _boolean)
SIZE: Final = Form("bytes", _size)
DURATION: Final = Form("seconds", _duration)
VARIABLES: Final = Form("a table of strings", _environment_variables)
ARGV: Final = list_of(STRING, "a list of strings")
BY_TYPE: Final[Mapping[Any, Form]] = {str: STRING, int: WHOLE_NUMBER, float: NUMBER, bool: BOOLEAN}
BY_SUFFIX: Final[Mapping[str, Form]] = {"_s": DURATION, "_bytes": SIZE}
