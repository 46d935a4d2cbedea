"""Dataclasses to JSON builtins and back, strictly. Standard library only, so that the worker needs nothing else.

`decode(cls, value)` accepts exactly what the fields say: a missing field without default, an unknown field or a wrong
type is a ValueError that names the place. Numbers are finite, and whole ones fit 64 bits, as other JSON readers and
SQLite want them. Converters are compiled once for each class.
"""

import dataclasses
import math
import operator
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")
Encoder = Callable[[Any], Any]
Decoder = Callable[[Any], Any]

_encoders: dict[type, Encoder] = {}
_decoders: dict[Any, Decoder] = {}

_SCALARS = (str, int, float, bool)
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


def encode(value: Any) -> Any:
    """JSON builtins of a dataclass, enum, tuple, list, mapping or scalar."""
    kind = type(value)
    encoder = _encoders.get(kind)
    if encoder is None:
        encoder = _encoders[kind] = _compile_encoder(kind)
    return encoder(value)


def _compile_encoder(kind: type) -> Encoder:
    if kind is types.NoneType or kind in _SCALARS:
        return _as_it_is
    if issubclass(kind, Enum):
        return operator.attrgetter("value")
    if dataclasses.is_dataclass(kind):
        return _dataclass_encoder(kind)
    if issubclass(kind, tuple | list):
        return _encode_list
    if issubclass(kind, Mapping):
        return _encode_mapping
    raise TypeError(f"{kind.__name__} has no JSON form")


def _as_it_is(value: Any) -> Any:
    return value


def _encode_list(value: Any) -> list[Any]:
    return [encode(item) for item in value]


def _encode_mapping(value: Any) -> dict[Any, Any]:
    return {key: encode(item) for key, item in value.items()}


def _dataclass_encoder(kind: Any) -> Encoder:
    """Reads all fields at once and then converts those which are no scalars."""
    names = [item.name for item in dataclasses.fields(kind)]
    hints = typing.get_type_hints(kind)
    converted = [(name, _field_encoder(hints[name])) for name in names if not _is_scalar(hints[name])]
    if len(names) < 2:  # attrgetter of one name gives no tuple
        return lambda value: {name: encode(getattr(value, name)) for name in names}
    read = operator.attrgetter(*names)

    def encode_dataclass(value: Any) -> dict[str, Any]:
        builtins = dict(zip(names, read(value), strict=True))
        for name, encoder in converted:
            builtins[name] = encoder(builtins[name])
        return builtins

    return encode_dataclass


def _is_scalar(hint: Any) -> bool:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return all(_plain(member) in (*_SCALARS, types.NoneType) for member in members)


def _field_encoder(hint: Any) -> Encoder:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and all(_is_scalar(item) for item in arguments if item is not Ellipsis):
        return list
    if typing.get_origin(hint) is Mapping and _is_scalar(arguments[1]):
        return dict
    return encode


def _plain(kind: Any) -> Any:
    """What a NewType stands for."""
    while isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    return kind


class _Misfit(ValueError):
    """What is wrong, and on its way up where: the last step first."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.steps: list[str] = []


def decode(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of cls from JSON builtins; ValueError says where it does not fit."""
    try:
        result: T = decoder_of(cls)(value)
    except _Misfit as misfit:
        place = (where or getattr(cls, "__name__", str(cls))) + "".join(reversed(misfit.steps))
        raise ValueError(f"{place}: {misfit}") from None
    return result


def decoder_of(kind: Any) -> Decoder:
    """The compiled decoder for one type annotation."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = _compile(kind)
    return decoder


def _compile(kind: Any) -> Decoder:
    origin = typing.get_origin(kind)
    if isinstance(kind, typing.NewType):
        return decoder_of(_plain(kind))
    if origin in (types.UnionType, typing.Union):
        return _optional(kind)
    if origin is tuple:
        return _tuple(kind)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(typing.get_args(kind)[1])
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind)
    if kind in _SCALARS:
        return {str: _decode_text, int: _decode_whole, float: _decode_number, bool: _decode_truth}[kind]
    raise TypeError(f"no decoder for {kind}")


def _wrong(value: Any, right: str) -> _Misfit:
    return _Misfit(f"must be {right}, not {type(value).__name__}")


def _decode_text(value: Any) -> str:
    if type(value) is not str:
        raise _wrong(value, "a string")
    return value


def _decode_whole(value: Any) -> int:
    if type(value) is not int:
        raise _wrong(value, "a whole number")
    if not _LEAST <= value <= _MOST:
        raise _Misfit("must be a whole number that fits 64 bits")
    return value


def _decode_number(value: Any) -> float:
    if type(value) is int:
        return float(_decode_whole(value))
    if type(value) is not float:
        raise _wrong(value, "a number")
    if not math.isfinite(value):
        raise _Misfit(f"must be a finite number, not {value}")
    return value


def _decode_truth(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(value, "true or false")
    return value


def _enum(kind: type[Enum]) -> Decoder:
    by_value = {member.value: member for member in kind}

    def decode_enum(value: Any) -> Any:
        try:
            return by_value[value]
        except (KeyError, TypeError):
            raise _Misfit(f"{value!r:.100} is none of {', '.join(map(str, by_value))}") from None

    return decode_enum


def _optional(kind: Any) -> Decoder:
    members = [member for member in typing.get_args(kind) if member is not types.NoneType]
    if len(members) != 1:
        raise TypeError(f"{kind}: only X | None is supported")
    inner = decoder_of(members[0])
    return lambda value: None if value is None else inner(value)


def _tuple(kind: Any) -> Decoder:
    members = typing.get_args(kind)
    if len(members) == 2 and members[1] is Ellipsis:
        inner = decoder_of(members[0])

        def decode_tuple(value: Any) -> Any:
            if type(value) not in (list, tuple):
                raise _wrong(value, "a list")
            try:
                return tuple([inner(item) for item in value])
            except _Misfit:
                return _items([inner] * len(value), value)

        return decode_tuple
    inners = [decoder_of(member) for member in members]

    def decode_fixed(value: Any) -> Any:
        if type(value) not in (list, tuple) or len(value) != len(inners):
            raise _Misfit(f"must be a list of {len(inners)}")
        return _items(inners, value)

    return decode_fixed


def _items(inners: list[Decoder], value: Any) -> tuple[Any, ...]:
    """Each item by its decoder; a misfit says which."""
    decoded: list[Any] = []
    try:
        for inner, item in zip(inners, value, strict=True):
            decoded.append(inner(item))
    except _Misfit as misfit:
        misfit.steps.append(f"[{len(decoded)}]")
        raise
    return tuple(decoded)


def _mapping(value_kind: Any) -> Decoder:
    inner = decoder_of(value_kind)

    def decode_mapping(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(value, "a table")
        decoded: dict[str, Any] = {}
        key = ""
        try:
            for key, item in value.items():
                decoded[key] = inner(item)
        except _Misfit as misfit:
            misfit.steps.append(f".{key}")
            raise
        return decoded

    return decode_mapping


def _dataclass(kind: Any) -> Decoder:
    hints = typing.get_type_hints(kind)
    inners = {item.name: decoder_of(hints[item.name]) for item in dataclasses.fields(kind)}
    required = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]

    def decode_dataclass(value: Any) -> Any:
        if type(value) is not dict:
            raise _wrong(value, "a table")
        decoded: dict[str, Any] = {}
        key = ""
        try:
            for key, item in value.items():
                decoded[key] = inners[key](item)
        except _Misfit as misfit:
            misfit.steps.append(f".{key}")
            raise
        except KeyError:
            raise _Misfit(f"unknown field {key!r:.100}") from None
        try:
            return kind(**decoded)
        except TypeError:
            missing = [name for name in required if name not in value]
            raise _Misfit(f"missing {', '.join(missing)}") from None

    return decode_dataclass
