"""Dataclasses to JSON builtins and back, strictly. Standard library only, so that the worker needs nothing else.

`decode(cls, value)` accepts exactly what the fields say: a missing field without default, an unknown field or a wrong
type is a ValueError that names the place. Converters are compiled once for each class.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")
Decoder = Callable[[Any, str], Any]

_decoders: dict[Any, Decoder] = {}


def encode(value: Any) -> Any:
    """JSON builtins of a dataclass, enum, tuple, list, mapping or scalar."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {name: encode(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def decode(cls: type[T], value: Any, where: str = "") -> T:
    """An instance of cls from JSON builtins; ValueError says where it does not fit."""
    result: T = decoder_of(cls)(value, where or getattr(cls, "__name__", str(cls)))
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
        return decoder_of(kind.__supertype__)
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
    if kind in (str, int, float, bool):
        return _scalar(kind)
    raise TypeError(f"no decoder for {kind}")


def _scalar(kind: type) -> Decoder:
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    article = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}[kind]

    def decode_scalar(value: Any, where: str) -> Any:
        if type(value) not in accepted:
            raise ValueError(f"{where}: must be {article}, not {type(value).__name__}")
        return float(value) if kind is float else value

    return decode_scalar


def _enum(kind: type[Enum]) -> Decoder:
    by_value = {member.value: member for member in kind}

    def decode_enum(value: Any, where: str) -> Any:
        try:
            return by_value[value]
        except (KeyError, TypeError):
            raise ValueError(f"{where}: {value!r} is none of {', '.join(map(str, by_value))}") from None

    return decode_enum


def _optional(kind: Any) -> Decoder:
    members = [member for member in typing.get_args(kind) if member is not types.NoneType]
    if len(members) != 1:
        raise TypeError(f"{kind}: only X | None is supported")
    inner = decoder_of(members[0])
    return lambda value, where: None if value is None else inner(value, where)


def _tuple(kind: Any) -> Decoder:
    members = typing.get_args(kind)
    if len(members) == 2 and members[1] is Ellipsis:
        inner = decoder_of(members[0])

        def decode_tuple(value: Any, where: str) -> Any:
            if type(value) not in (list, tuple):
                raise ValueError(f"{where}: must be a list, not {type(value).__name__}")
            return tuple([inner(item, f"{where}[{index}]") for index, item in enumerate(value)])

        return decode_tuple
    inners = [decoder_of(member) for member in members]

    def decode_fixed(value: Any, where: str) -> Any:
        if type(value) not in (list, tuple) or len(value) != len(inners):
            raise ValueError(f"{where}: must be a list of {len(inners)}")
        return tuple(
            [inner(item, f"{where}[{index}]") for index, (inner, item) in enumerate(zip(inners, value, strict=True))]
        )

    return decode_fixed


def _mapping(value_kind: Any) -> Decoder:
    inner = decoder_of(value_kind)

    def decode_mapping(value: Any, where: str) -> Any:
        if type(value) is not dict:
            raise ValueError(f"{where}: must be a table, not {type(value).__name__}")
        return {key: inner(item, f"{where}.{key}") for key, item in value.items()}

    return decode_mapping


def _dataclass(kind: Any) -> Decoder:
    hints = typing.get_type_hints(kind)
    inners = {item.name: decoder_of(hints[item.name]) for item in dataclasses.fields(kind)}
    required = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]

    def decode_dataclass(value: Any, where: str) -> Any:
        if type(value) is not dict:
            raise ValueError(f"{where}: must be a table, not {type(value).__name__}")
        try:
            return kind(**{key: inners[key](item, f"{where}.{key}") for key, item in value.items()})
        except KeyError as error:
            raise ValueError(f"{where}: unknown field {error}") from None
        except TypeError:
            missing = [name for name in required if name not in value]
            raise ValueError(f"{where}: missing {', '.join(missing)}") from None

    return decode_dataclass
