"""The rules of .gitignore files, as git itself matches them, its quirks included (gitignore(5), wildmatch.c)."""

import re
from typing import NamedTuple

_SPECIAL = re.compile(rb"[*?\[\\]")
_BOM = b"\xef\xbb\xbf"
_CLASSES: dict[bytes, frozenset[int]] = {
    name: frozenset(byte for byte in range(128) if re.fullmatch(expression, bytes((byte,)), re.DOTALL))
    for name, expression in {
        b"alnum": rb"[0-9A-Za-z]",
        b"alpha": rb"[A-Za-z]",
        b"blank": rb"[ \t]",
        b"cntrl": rb"[\x00-\x1f\x7f]",
        b"digit": rb"[0-9]",
        b"graph": rb"[!-~]",
        b"lower": rb"[a-z]",
        b"print": rb"[ -~]",
        b"punct": rb"[!-/:-@\[-`{-~]",
        b"space": rb"[ \t\n\r]",
        b"upper": rb"[A-Z]",
        b"xdigit": rb"[0-9A-Fa-f]",
    }.items()
}


class _Rule(NamedTuple):
    expression: bytes  # of the whole name or path
    literal: bytes | None  # the name itself, where it holds nothing special
    negated: bool
    directory_only: bool
    by_name: bool  # matched with the last part of the path alone


class _Group:
    """The rules that apply to files, or those that apply to directories; a later rule is stronger."""

    def __init__(self, rules: list[tuple[int, _Rule]]) -> None:
        self._literals = {rule.literal: number for number, rule in rules if rule.by_name and rule.literal is not None}
        self._names = _Alternatives([(n, r.expression) for n, r in rules if r.by_name and r.literal is None])
        self._paths = _Alternatives([(n, r.expression) for n, r in rules if not r.by_name])

    def strongest(self, name: bytes, path: bytes) -> int:
        """The number of the last rule that matches, -1 when none does."""
        number = self._literals.get(name, -1)
        if self._names.expression is not None:
            number = max(number, self._names.strongest(name))
        if self._paths.expression is not None:
            number = max(number, self._paths.strongest(path))
        return number


class _Alternatives:
    """Many rules as one expression, the strongest first: the group that matched says which it was."""

    def __init__(self, numbered: list[tuple[int, bytes]]) -> None:
        numbered = sorted(numbered, reverse=True)
        self._numbers = [number for number, _ in numbered]
        joined = b"|".join(b"(%s)\\Z" % expression for _, expression in numbered)
        self.expression = re.compile(joined, re.DOTALL) if numbered else None

    def strongest(self, text: bytes) -> int:
        match = self.expression.match(text) if self.expression else None
        return self._numbers[match.lastindex - 1] if match and match.lastindex else -1


class Patterns:
    """The rules of one ignore file."""

    def __init__(self, text: bytes) -> None:
        rules = [rule for line in _lines(text) if (rule := _rule(line)) is not None]
        numbered = list(enumerate(rules))
        self._negated = [rule.negated for rule in rules]
        self._for_directories = _Group(numbered)
        self._for_files = _Group([(number, rule) for number, rule in numbered if not rule.directory_only])

    def __bool__(self) -> bool:
        return bool(self._negated)

    def verdict(self, name: bytes, path: bytes, *, is_directory: bool) -> bool | None:
        """True: ignored. False: taken back by a `!` rule. None: no rule matches.

        `path` is relative to the directory that holds the ignore file, `name` is its last part.
        """
        number = (self._for_directories if is_directory else self._for_files).strongest(name, path)
        return None if number < 0 else not self._negated[number]


def _lines(text: bytes) -> list[bytes]:
    """The patterns as they are written, without comments, line ends and the blanks before them."""
    patterns = []
    for line in text.removeprefix(_BOM).split(b"\n"):
        if line.startswith(b"#"):
            continue
        pattern = line.removesuffix(b"\r").partition(b"\0")[0]
        patterns.append(_without_trailing_blanks(pattern))
    return [pattern for pattern in patterns if pattern]


def _without_trailing_blanks(pattern: bytes) -> bytes:
    """An escaped blank stays, and so does what stands before it."""
    bare = pattern.rstrip(b" ")
    if len(bare) == len(pattern):
        return pattern
    backslashes = len(bare) - len(bare.rstrip(b"\\"))
    return pattern[: len(bare) + 1] if backslashes % 2 else bare


def _rule(pattern: bytes) -> _Rule | None:
    negated = pattern.startswith(b"!")
    pattern = pattern[negated:]
    directory_only = pattern.endswith(b"/")
    pattern = pattern[: len(pattern) - directory_only]
    by_name = b"/" not in pattern
    if not by_name:
        pattern = pattern.removeprefix(b"/")
    special = _SPECIAL.search(pattern)
    start = special.start() if special else len(pattern)
    # git compares the part without wildcards by itself, so a `**` right after it counts as one that begins the pattern
    rest = _translate(pattern[start:])
    if not pattern or rest is None:
        return None
    literal = None if special else pattern
    return _Rule(re.escape(pattern[:start]) + rest, literal, negated, directory_only, by_name)


def _translate(pattern: bytes) -> bytes | None:
    """The pattern as a regular expression; None when it is malformed and therefore never matches."""
    parts: list[bytes] = []
    at = 0
    while at < len(pattern):
        char = pattern[at : at + 1]
        if char == b"*":
            at = _stars(pattern, at, parts)
        elif char == b"?":
            parts.append(b"[^/]")
            at += 1
        elif char == b"[":
            parsed = _bracket(pattern, at + 1)
            if parsed is None:
                return None
            members, at = parsed
            parts.append(b"[%s]" % b"".join(b"\\x%02x" % byte for byte in sorted(members)) if members else b"(?!)")
        else:
            at += char == b"\\"
            if at == len(pattern):
                return None
            parts.append(re.escape(pattern[at : at + 1]))
            at += 1
    return b"".join(parts)


def _stars(pattern: bytes, start: int, parts: list[bytes]) -> int:
    """`**` between slashes crosses directories; every other run of stars is one star. Returns where it goes on."""
    at = start
    while pattern[at : at + 1] == b"*":
        at += 1
    begins = start == 0 or pattern[start - 1 : start] == b"/"
    if at - start < 2 or not begins:
        parts.append(b"[^/]*")
    elif pattern[at : at + 1] == b"/":
        parts.append(b"(?:.*/)?")
        at += 1
    elif at == len(pattern) or pattern[at : at + 2] == b"\\/":
        parts.append(b".*")
    else:
        parts.append(b"[^/]*")
    return at


def _bracket(pattern: bytes, at: int) -> tuple[set[int], int] | None:
    """The bytes that a `[...]` matches, and where the pattern goes on; None when it is malformed."""
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: set[int] = set()
    previous = 0  # the start of a range, 0 where none can start
    first = True
    while first or pattern[at : at + 1] != b"]":
        first = False
        if at >= len(pattern):
            return None
        byte = pattern[at]
        if byte == ord("-") and previous and pattern[at + 1 : at + 2] not in (b"", b"]"):
            at += 1 + (pattern[at + 1] == ord("\\"))
            if at >= len(pattern):
                return None
            members.update(range(previous, pattern[at] + 1))
            previous = 0
        elif pattern[at : at + 2] == b"[:" and (end := pattern.find(b"]", at + 2)) != at + 2:
            if end < 0:
                return None
            if pattern[end - 1 : end] == b":":
                named = _CLASSES.get(pattern[at + 2 : end - 1])
                if named is None:
                    return None
                members |= named
                previous, at = 0, end
            else:
                members.add(byte)
                previous = byte
        else:
            at += byte == ord("\\")
            if at >= len(pattern):
                return None
            members.add(pattern[at])
            previous = pattern[at]
        at += 1
    members = set(range(256)) - members if negated else members
    return members - {ord("/")}, at + 1
