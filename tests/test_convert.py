"""Dataclasses to JSON and back: exactly what the fields say, and the place of everything that is not."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biruda.convert import decode, encode
from biruda.model import EnvironmentReport, JobSpec, Recipe
from tests.fakes import values

Number = NewType("Number", int)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(Enum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Leaf:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    text: str
    number: Number
    ratio: float
    flag: bool
    maybe: int | None
    colour: Colour
    level: Level
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    pairs: tuple[tuple[int, str], ...] = ()
    table: Mapping[str, Leaf] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Empty:
    pass


GOOD: dict[str, Any] = {
    "text": "x",
    "number": 1,
    "ratio": 2,
    "flag": True,
    "maybe": None,
    "colour": "red",
    "level": 2,
    "leaf": {"name": "a"},
    "leaves": [{"name": "b"}],
}


@given(values(Whole))
def test_every_value_round_trips_through_json(value: Whole) -> None:
    assert decode(Whole, json.loads(json.dumps(encode(value)))) == value


@given(values(JobSpec), values(EnvironmentReport))
def test_the_model_round_trips(spec: JobSpec, report: EnvironmentReport) -> None:
    assert decode(JobSpec, json.loads(json.dumps(encode(spec)))) == spec
    assert decode(EnvironmentReport, json.loads(json.dumps(encode(report)))) == report


def test_the_form_of_each_kind() -> None:
    assert encode(Leaf("x")) == {"name": "x"}
    assert encode(Empty()) == {}
    assert encode([Colour.RED, Level.HIGH, (1, None), {"k": Leaf("y")}]) == ["red", 2, [1, None], {"k": {"name": "y"}}]
    assert encode(decode(Whole, GOOD)) == {**GOOD, "pairs": [], "table": {}, "words": {}}
    assert encode(1.5) == 1.5
    with pytest.raises(TypeError, match="PosixPath has no JSON form"):
        encode(Path("x"))


def test_encoding_leaves_the_value_alone() -> None:
    words = {"a": "b"}
    encoded = encode(decode(Whole, {**GOOD, "words": words}))
    encoded["words"]["c"] = "d"
    assert words == {"a": "b"}


def test_a_whole_number_is_a_number_but_not_the_other_way() -> None:
    ratio = decode(Whole, GOOD).ratio
    assert (ratio, type(ratio)) == (2.0, float)
    with pytest.raises(ValueError, match=r"^Whole\.number: must be a whole number, not float$"):
        decode(Whole, {**GOOD, "number": 1.0})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": 5}, "Whole.text: must be a string, not int"),
        ({"text": None}, "Whole.text: must be a string, not NoneType"),
        ({"number": True}, "Whole.number: must be a whole number, not bool"),
        ({"number": 2**63}, "Whole.number: must be a whole number that fits 64 bits"),
        ({"number": -(2**63) - 1}, "Whole.number: must be a whole number that fits 64 bits"),
        ({"maybe": "5"}, "Whole.maybe: must be a whole number, not str"),
        ({"ratio": "2"}, "Whole.ratio: must be a number, not str"),
        ({"ratio": False}, "Whole.ratio: must be a number, not bool"),
        ({"ratio": math.nan}, "Whole.ratio: must be a finite number, not nan"),
        ({"ratio": math.inf}, "Whole.ratio: must be a finite number, not inf"),
        ({"ratio": 10**400}, "Whole.ratio: must be a whole number that fits 64 bits"),
        ({"flag": 1}, "Whole.flag: must be true or false, not int"),
        ({"colour": "green"}, "Whole.colour: 'green' is none of red, blue"),
        ({"colour": ["red"]}, "Whole.colour: ['red'] is none of red, blue"),
        ({"level": "LOW"}, "Whole.level: 'LOW' is none of 1, 2"),
        ({"leaf": ["a"]}, "Whole.leaf: must be a table, not list"),
        ({"leaf": {"name": 1}}, "Whole.leaf.name: must be a string, not int"),
        ({"leaf": {}}, "Whole.leaf: missing name"),
        ({"leaf": {"name": "a", "nam": "b"}}, "Whole.leaf: unknown field 'nam'"),
        ({"leaves": {"name": "b"}}, "Whole.leaves: must be a list, not dict"),
        ({"leaves": "b"}, "Whole.leaves: must be a list, not str"),
        ({"leaves": [{"name": "b"}, {"name": 2}]}, "Whole.leaves[1].name: must be a string, not int"),
        ({"pairs": [[1, "a"], [1]]}, "Whole.pairs[1]: must be a list of 2"),
        ({"pairs": [[1, 2]]}, "Whole.pairs[0][1]: must be a string, not int"),
        ({"table": []}, "Whole.table: must be a table, not list"),
        ({"table": {"k": {"name": None}}}, "Whole.table.k.name: must be a string, not NoneType"),
        ({"words": {"k": 1}}, "Whole.words.k: must be a string, not int"),
        ({"more": 1}, "Whole: unknown field 'more'"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as misfit:  # noqa: PT011 - its text is what is compared
        decode(Whole, {**GOOD, **change})
    assert str(misfit.value) == sentence


def test_all_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"^here: missing text, colour$"):
        decode(Whole, {key: value for key, value in GOOD.items() if key not in ("text", "colour")}, "here")


@given(json_values, st.sampled_from([Whole, JobSpec, Recipe, EnvironmentReport]))
def test_any_json_is_a_value_or_a_value_error(value: Any, kind: type) -> None:
    try:
        assert isinstance(decode(kind, value), kind)
    except ValueError:
        pass


def test_an_endless_value_is_not_repeated_in_full() -> None:
    with pytest.raises(ValueError, match="is none of") as misfit:
        decode(Whole, {**GOOD, "colour": "x" * 10_000_000})
    assert len(str(misfit.value)) < 300
