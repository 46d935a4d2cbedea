"""What a key is, and how a table of a file becomes the frozen value of its section."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar, cast

from biruda.config.forms import BY_SUFFIX, BY_TYPE, SIZE, Bounds, Form, size_text
from biruda.config.problems import BAD, Spot, did_you_mean, named

T = TypeVar("T")

_METADATA: Final = "key"


@dataclass(frozen=True, slots=True)
class Key:
    """One key: the words of the docs, the form of its value, its bounds and its default."""

    name: str
    doc: str
    form: Form
    bounds: Bounds
    default: Any  # dataclasses.MISSING: the key is required
    default_text: str  # as it is written in a file

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


def key(
    doc: str,
    *,
    default: Any = dataclasses.MISSING,
    low: float | None = None,
    high: float | None = None,
    form: Form | None = None,
) -> Any:
    """A field of a section, required without a default. Its form follows from its name (_s, _bytes) or type."""
    metadata = {_METADATA: (doc, Bounds(low, high), form)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def keys_of(section: type) -> Mapping[str, Key]:
    """The keys of a section by name, in the order of the code."""
    result = {}
    for item in dataclasses.fields(section):
        doc, bounds, form = item.metadata[_METADATA]
        suffix = next((known for end, known in BY_SUFFIX.items() if item.name.endswith(end)), None)
        form = form or suffix or BY_TYPE[item.type]
        default = {} if item.default_factory is not dataclasses.MISSING else item.default
        result[item.name] = Key(item.name, doc, form, bounds, default, _written(default, form))
    return result


def _written(default: Any, form: Form) -> str:
    """A default as it is written in a file; "" for that of a required key."""
    if default is dataclasses.MISSING:
        return ""
    if form is SIZE and default:
        return f'"{size_text(default)}"'
    if default is None or isinstance(default, str):
        return f'"{default or ""}"'
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[]"
    if isinstance(default, float) and not default.is_integer():
        return f"{default:g}"
    return f"{default:.0f}" if isinstance(default, float) else str(default)


def read_values(
    section: type, table: Mapping[str, Any], spot: Spot, elsewhere: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The good values of a table, defaults included; a wrong or missing key is reported and left out.

    `elsewhere` names the section that a key unknown here belongs to.
    """
    keys = keys_of(section)
    for name in table:
        if name not in keys:
            hint = did_you_mean(name, [known for known in keys if known not in table])
            other = (elsewhere or {}).get(name, "")
            spot.key(name).bad(f"unknown key {named(name)}{hint or (f'; it belongs in {other}' if other else '')}")
    values = {}
    for name, each in keys.items():
        if name in table:
            value = each.form.read(table[name], each.bounds, spot.key(name))
            if value is not BAD:
                values[name] = value
        elif each.required:
            spot.bad(f"missing key '{name}', {each.form.says}")
        else:
            values[name] = each.default
    return values


def build(section: type[T], values: Mapping[str, Any]) -> T | None:
    """The section of these values; None when one of them is left out."""
    return section(**values) if len(values) == len(keys_of(cast(type, section))) else None
