"""What is wrong with a configuration file: every problem with its line, all of them at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from biruda.config.lines import KeyPath
from biruda.errors import ConfigError

_MOST: Final = 100  # a file with more is not a configuration, and nobody reads on


class Bad:
    """The value of a key whose problem has been reported."""


BAD: Final = Bad()


@dataclass(slots=True)
class Problems:
    """The problems of one file, with the line each is on."""

    file: str
    directory: Path  # relative paths of the file start here
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, path: KeyPath, text: str) -> None:
        """A problem at a path, or at the nearest thing above it whose line is known."""
        while path and path not in self.lines:
            path = path[:-1]
        self.add_line(self.lines.get(path, 0), text)

    def add_line(self, line: int, text: str) -> None:
        """A problem on a line; 0 for the file as a whole."""
        self.found.append((line, f"{self.file}:{line}: {text}" if line else f"{self.file}: {text}"))


def raise_all(files: Iterable[Problems]) -> None:
    """One ConfigError with a line for each problem of the files; nothing when there is none."""
    texts = [text for problems in files for _, text in sorted(problems.found, key=lambda found: found[0])]
    if len(texts) > _MOST:
        texts[_MOST:] = [f"... and {len(texts) - _MOST} problems more"]
    if texts:
        raise ConfigError("\n".join(texts), hint="biruda.conf.example and docs/config.md explain every key")


@dataclass(frozen=True, slots=True)
class Spot:
    """One place in a file, where what is wrong there is reported."""

    problems: Problems
    path: KeyPath
    label: str = ""  # [master], [[environment]] "deb12"
    what: str = ""  # grace_s, item 2 of steps

    def bad(self, text: str) -> Bad:
        """Report that something is wrong here."""
        self.problems.add(self.path, f"{self.label}: {text}" if self.label else text)
        return BAD

    def bad_value(self, value: Any, text: str) -> Bad:
        """Report that the value here is wrong, and show it."""
        return self.bad(f"{self.what} = {shown(value)}: {text}")

    def key(self, name: str) -> "Spot":
        """The spot of a key of the table that is here."""
        return Spot(self.problems, (*self.path, name), self.label, name)

    def inside(self, name: str) -> "Spot":
        """The spot of a key of a table that is itself the value here."""
        return Spot(self.problems, (*self.path, name), self.label, f"{self.what}.{shown(name)[1:-1]}")

    def item(self, index: int) -> "Spot":
        """The spot of an item of the list that is here."""
        return Spot(self.problems, (*self.path, index), self.label, f"item {index + 1} of {self.what}")


def shown(value: Any) -> str:
    """A value as a person would recognise it, on one line and short."""
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is str:
        text = value if len(value) <= 60 else value[:59] + "…"
        return '"' + repr(text)[1:-1] + '"'
    if type(value) is int:
        return str(value) if abs(value) < 10**20 else "a number far too large"
    if type(value) is list:
        return "a list"
    return "a table" if type(value) is dict else str(value)


def named(word: str) -> str:
    """A key, section or name of the file, in single quotes."""
    return f"'{shown(word)[1:-1]}'"


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or ""."""
    from difflib import get_close_matches  # only for a file that is wrong

    candidates = list(known)
    longer = [candidate for candidate in candidates if candidate.startswith(f"{word}_")]
    return next(iter(longer or get_close_matches(word[:100], candidates, 1)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word."""
    meant = suggestion(word, known)
    return f"; did you mean '{meant}'?" if meant else ""


def choice(word: str, words: Iterable[str]) -> str:
    """The end of "must be ..." about a word that is none of a closed set."""
    known = list(words)
    return "one of " + ", ".join(f'"{each}"' for each in known) + did_you_mean(word, known)
