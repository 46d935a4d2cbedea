"""Imports what a worker imports and notes what that generates: rehearse.py OUTPUT FOLDER FOLDER MODULE…

Run by the worker's own Python; OUTPUT becomes biruda_ready.RECORDED.
"""

import collections  # first: what is imported after it is noted
import marshal
import sys

codes = {}
patterns = {}


def note_eval(source, *scopes):
    codes[source] = compile(source, "<made>", "eval")
    return eval(codes[source], *scopes)


def note_exec(source, *scopes):
    codes[source] = compile(source, "<made>", "exec")
    exec(codes[source], *scopes)


collections.eval = note_eval

import re._compiler  # noqa: E402

compile_pattern = re._compiler.compile
sre_compile = re._compiler._sre.compile


class Sre:
    """_sre, noting what it is asked for."""

    def __getattr__(self, name):
        return getattr(original_sre, name)

    def compile(self, expression, flags, code, groups, group_index, index_group):
        words = [int(word) for word in code]  # they have names, which nobody needs
        if asked and isinstance(expression, str | bytes):
            patterns[asked[-1]] = (expression, int(flags), words, groups, dict(group_index), tuple(index_group))
        return sre_compile(expression, flags, code, groups, group_index, index_group)


def note_compile(expression, flags=0):
    asked.append((expression, int(flags)))
    try:
        return compile_pattern(expression, flags)
    finally:
        asked.pop()


asked = []
original_sre = re._compiler._sre
re._compiler._sre = Sre()
re._compiler.compile = note_compile

import dataclasses  # noqa: E402

dataclasses.exec = note_exec

import importlib  # noqa: E402

sys.path[:0] = sys.argv[2:4]
for name in sys.argv[4:]:
    importlib.import_module(name)
with open(sys.argv[1], "wb") as file:
    file.write(marshal.dumps((codes, patterns)))
