"""What is different between two runs of the same: source, environment, times, and lines of the log."""

import os
import re
from typing import Any

from biruda.master.views import View

MAX_BYTES = 1 << 20
"""Of each log so many bytes are compared."""

MAX_NEW = 200
MAX_SHOWN = 300

FACTS = ("arch", "platform", "host", "kind", "environment")

_VARIES = re.compile(rb"0x[0-9a-fA-F]+|\d+|\b[0-9a-f]{7,64}\b|\x1b\[[0-9;]{0,16}[mK]")
"""Times, sizes, addresses, digests: what is different in every run and tells nothing."""


def compare(before: View, after: View) -> dict[str, Any]:
    """Source, facts and times of two jobs side by side; only facts that differ are listed."""
    facts = [
        {"fact": name, "before": before[name], "after": after[name]} for name in FACTS if before[name] != after[name]
    ]
    ours, theirs = after["facts"] or {}, before["facts"] or {}
    for group in ("declared", "guessed"):
        old, new = theirs.get(group, {}), ours.get(group, {})
        facts += [
            {"fact": f"{group} {name}", "before": old.get(name), "after": new.get(name)}
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
    if theirs.get("evidence") != ours.get("evidence"):
        old_evidence, new_evidence = theirs.get("evidence") or [], ours.get("evidence") or []
        facts += [
            {"fact": "evidence", "before": None, "after": item} for item in new_evidence if item not in old_evidence
        ]
        facts += [
            {"fact": "evidence", "before": item, "after": None} for item in old_evidence if item not in new_evidence
        ]
    return {
        "source": {
            "before": before["source"],
            "after": after["source"],
            "changed": before["source"] != after["source"],
        },
        "facts": facts,
        "steps": _steps(before["steps"], after["steps"]),
    }


def _steps(before: list[View], after: list[View]) -> list[dict[str, Any]]:
    old = {step["name"]: step for step in before}
    return [
        {
            "name": step["name"],
            "before_s": old[step["name"]]["wall_s"] if step["name"] in old else None,
            "after_s": step["wall_s"],
            "argv_changed": step["name"] in old and old[step["name"]]["argv"] != step["argv"],
        }
        for step in after
    ]


def spans(before: View, after: View) -> tuple[tuple[int, int], tuple[int, int]]:
    """Which bytes of the two logs to compare: those of the step that failed, or all."""
    for position, step in enumerate(after["steps"]):
        if step["exit_status"] != 0 or step["signal"]:
            same = [index for index, other in enumerate(before["steps"]) if other["name"] == step["name"]]
            if same:
                return _span(before, same[0]), _span(after, position)
    return _whole(before), _whole(after)


def _whole(view: View) -> tuple[int, int]:
    return 0, view["log"]["bytes"] if view["log"] else MAX_BYTES


def _span(view: View, step: int) -> tuple[int, int]:
    start = view["steps"][step]["log_start"]
    following = [item["log_start"] for item in view["steps"][step + 1 :] if item["log_start"] > start]
    return start, min([*following, _whole(view)[1]])


def new_lines(before_fd: int, after_fd: int, before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    """Lines that this run printed and the other one did not, numbers and addresses aside. Blocking."""
    old = {_told(line) for line in _read(before_fd, before).split(b"\n")}
    found: list[dict[str, Any]] = []
    offset = after[0]
    count = 0
    for line in _read(after_fd, after).split(b"\n"):
        if line.strip() and (told := _told(line)) not in old:
            old.add(told)
            count += 1
            if len(found) < MAX_NEW:
                found.append({"offset": offset, "text": line[:MAX_SHOWN].decode("utf-8", "replace")})
        offset += len(line) + 1
    complete = all(end - start <= MAX_BYTES for start, end in (before, after))
    return {"new": found, "count": count, "complete": complete}


def _told(line: bytes) -> int:
    return hash(_VARIES.sub(b"#", line[:1000]).strip())


def _read(fd: int, span: tuple[int, int]) -> bytes:
    """The beginning of a span, at most MAX_BYTES."""
    start, end = span
    data = b""
    want = min(end - start, MAX_BYTES)
    while len(data) < want and (piece := os.pread(fd, want - len(data), start + len(data))):
        data += piece
    return data
