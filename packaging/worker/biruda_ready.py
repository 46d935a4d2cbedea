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


def get_annotations(cls):
    """As inspect has it, of a class: dataclasses want no more of that module, which is dear to import."""
    return dict(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063 - it is in place of that function


def signature(cls):
    """Of dataclasses without a docstring, for which they would write one: nobody reads it in a worker."""
    return ""
