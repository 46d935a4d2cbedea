"""JSON of the API, read with its types checked: a field that does not fit is a PeerError that names its place."""

import json
from typing import Any

from biruda.cli.text import escape
from biruda.errors import PeerError


class Fields:
    """One JSON object. A missing field is like null, an unknown one is kept: a newer master may know more."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _misfit(where, "an object", value)
        self.raw: dict[str, Any] = value
        self.where = where

    def text(self, key: str, default: str = "") -> str:
        """A string; the default for null."""
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise _misfit(f"{self.where}.{key}", "a string", value)
        return value

    def number(self, key: str) -> int:
        """A whole number; 0 for null."""
        return self.maybe_number(key) or 0

    def maybe_number(self, key: str) -> int | None:
        """A whole number or None."""
        value = self.raw.get(key)
        if value is not None and type(value) is not int:
            raise _misfit(f"{self.where}.{key}", "a whole number", value)
        return value

    def real(self, key: str) -> float:
        """A number; 0 for null."""
        value = self.raw.get(key)
        if value is None:
            return 0.0
        if type(value) not in (int, float):
            raise _misfit(f"{self.where}.{key}", "a number", value)
        return float(value)

    def truth(self, key: str) -> bool:
        """True or false; false for null."""
        value = self.raw.get(key)
        if value is not None and type(value) is not bool:
            raise _misfit(f"{self.where}.{key}", "true or false", value)
        return bool(value)

    def part(self, key: str) -> "Fields | None":
        """An object or None."""
        value = self.raw.get(key)
        return None if value is None else Fields(value, f"{self.where}.{key}")

    def parts(self, key: str) -> "list[Fields]":
        """A list of objects; empty for null."""
        return [Fields(item, f"{self.where}.{key}[{index}]") for index, item in enumerate(self._list(key))]

    def texts(self, key: str) -> list[str]:
        """A list of strings; empty for null."""
        values = self._list(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise _misfit(f"{self.where}.{key}[{index}]", "a string", value)
        return values

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers; empty for null."""
        values = self._list(key)
        for index, value in enumerate(values):
            if type(value) is not int:
                raise _misfit(f"{self.where}.{key}[{index}]", "a whole number", value)
        return values

    def _list(self, key: str) -> list[Any]:
        value = self.raw.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _misfit(f"{self.where}.{key}", "a list", value)
        return value


def fields(body: bytes, where: str) -> Fields:
    """The JSON object that an answer's body must be."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        start = escape(body[:60].decode("utf-8", "replace"))
        raise PeerError(f"the master's answer to {where} is not JSON: it begins {start!r}") from None
    return Fields(value, where)


def _misfit(where: str, wanted: str, value: object) -> PeerError:
    return PeerError(
        f"the master's answer makes no sense: {escape(where)} must be {wanted}, not {type(value).__name__}",
        hint="compare the versions: biruda status and biruda --version",
    )
