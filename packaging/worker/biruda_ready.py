"""What dataclasses, named tuples and regular expressions make anew at each start, made when the worker was built.

Of a worker's start that was more than half. Whatever was not foreseen is made as ever. The freezer puts calls of this
module into the frozen standard library (see freeze.py) and replaces RECORDED.
"""

import marshal

RECORDED = b""

_codes, _patterns = marshal.loads(RECORDED) if RECORDED else ({}, {})


def code(source):
    """The code object of generated source text, or the text."""
    return _codes.get(source, source)


def pattern(expression, flags):
    """What _sre.compile() takes for a regular expression, or None."""
    import sys

    if sys.maxsize < 1 << 32:
        return None
    try:
        return _patterns.get((expression, int(flags)))
    except TypeError:  # a parsed expression, which re itself passes on
        return None


# --- data classes that were written out (lean.py) ---

MADE = type("MADE", (), {})()  # the default of a field that a factory makes


class Fields:
    """__dataclass_fields__, made when somebody asks for it first."""

    __slots__ = ("_are_keywords", "_factories", "_made")

    def __init__(self, factories, are_keywords):
        self._factories = factories
        self._are_keywords = are_keywords
        self._made = None

    def __get__(self, instance, cls):
        if self._made is None:
            self._made = self._make(cls)
        return self._made

    def _make(self, cls):
        import dataclasses

        defaults = dict(cls.__init__.__kwdefaults__ or {})
        if given := cls.__init__.__defaults__:
            defaults.update(zip(cls.__slots__[-len(given) :], given, strict=True))
        made = {}
        for name in cls.__slots__:
            if name in self._factories:
                one = dataclasses.field(default_factory=self._factories[name])
            else:
                one = dataclasses.field(default=defaults.get(name, dataclasses.MISSING))
            one.name, one.type, one.kw_only = name, cls.__annotations__[name], self._are_keywords
            one._field_type = dataclasses._FIELD
            made[name] = one
        return made


def _values(self):
    return tuple([getattr(self, name) for name in type(self).__slots__])


def _repr(self):
    values = ", ".join([f"{name}={getattr(self, name)!r}" for name in type(self).__slots__])
    return f"{type(self).__qualname__}({values})"


def _eq(self, other):
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self is other or _values(self) == _values(other)


def _hash(self):
    return hash(_values(self))


def _refuse_set(self, name, value):
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self, name):
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot delete field {name!r}")


FROZEN = (_repr, _eq, _hash, _refuse_set, _refuse_delete)
CHANGEABLE = (_repr, _eq, None)


# --- in place of inspect, which dataclasses would import ---


def get_annotations(cls):
    """As inspect has it, of a class: dataclasses want no more of that module, which is dear to import."""
    return dict(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063 - it is in place of that function


def signature(cls):
    """Of dataclasses without a docstring, for which they would write one: nobody reads it in a worker."""
    return ""
