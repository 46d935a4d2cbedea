"""From the options of `run` to the jobs that the API takes."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from biruda.cli.text import escape, shorten
from biruda.errors import UsageError

_NAME_CHARACTERS = 40

Request = dict[str, Any]


def steps_of(command: Sequence[str], lines: Sequence[str]) -> list[dict[str, Any]]:
    """One step for an exact command, or one script step for each line. UsageError for both and for neither."""
    if command and lines:
        raise UsageError(
            "give --step lines or a command after --, not both", hint="make the command the last --step of all"
        )
    if not command and not lines:
        raise UsageError("nothing to run", hint="biruda run -- make check")
    if command:
        return [{"name": os.path.basename(command[0]) or command[0], "argv": _texts(command)}]
    return [
        {"name": _name(line, number), "argv": ["/bin/sh", "-e"], "script": _text(line).rstrip("\n") + "\n"}
        for number, line in enumerate(lines, 1)
    ]


def variables_of(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The environment of all steps."""
    return {_text(key): _text(value) for key, value in pairs}


def job_requests(recipe: Mapping[str, Any], selectors: Sequence[Mapping[str, str]], **common: Any) -> list[Request]:
    """One request for each selector, one without requirements when there are none."""
    return [{"recipe": recipe, "requirements": dict(selector), **common} for selector in selectors or [{}]]


def labels_of(selectors: Sequence[Mapping[str, str]]) -> list[str]:
    """What stands before the lines of each: `amd64 debian12`, the environment's name, and no two alike."""
    labels = [escape(_label(selector)) for selector in selectors]
    return [
        label if labels.count(label) == 1 else f"{label} {labels[: index + 1].count(label)}".lstrip()
        for index, label in enumerate(labels)
    ]


def _label(selector: Mapping[str, str]) -> str:
    keys = ("env", "host") if "env" in selector else ("arch", "platform", "host", "kind")
    return " ".join(selector[key] for key in keys if key in selector)


def _name(line: str, number: int) -> str:
    return shorten(escape(" ".join(line.split())), _NAME_CHARACTERS) or f"step {number}"


def _texts(words: Sequence[str]) -> list[str]:
    return [_text(word) for word in words]


def _text(word: str) -> str:
    """The word, which must be UTF-8: nothing else can be said in JSON."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{escape(word)!r} is not UTF-8, so it cannot be sent", hint="put it into a script") from None
    return word
