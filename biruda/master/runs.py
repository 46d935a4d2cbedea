"""Attempts that have ended, as rows that can be counted: what the store keeps of each beside its record."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from biruda.master import events as ev

INSERT_RUN = """
    INSERT INTO runs
        (job, attempt, name, worker, host, environment, arch, platform, outcome, queued_s, started_s, finished_s,
        recorded_s)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


SELECT_RANGE = "SELECT coalesce(min(id), 1), coalesce(max(id), 0) FROM runs"
SELECT_RECORDED = "SELECT recorded_s FROM runs WHERE id >= ? ORDER BY id LIMIT 1"


class Run(NamedTuple):
    """One attempt. queued_s: since when it could have begun. recorded_s: when the master wrote it down."""

    job: int
    attempt: int
    name: str
    worker: str
    host: str
    environment: str
    arch: str
    platform: str
    outcome: str
    queued_s: float
    started_s: float
    finished_s: float
    recorded_s: float


def first_since(ask: Callable[[str, tuple[object, ...]], Any], since_s: float) -> int:
    """The id of the first run recorded after that time. ask: what executes a statement.

    They are written in that order, so no index is needed, which every attempt would have to keep up.
    """
    low, high = ask(SELECT_RANGE, ()).fetchone()
    high += 1
    while low < high:
        middle = (low + high) // 2
        row = ask(SELECT_RECORDED, (middle,)).fetchone()
        if row is None or row[0] > since_s:
            high = middle
        else:
            low = middle + 1
    return int(low)


def run_of(save: ev.SaveAttempt, earlier: Sequence[Mapping[str, Any]], recorded_s: float) -> Run:
    """The row of an attempt. A second one could begin when the first had ended."""
    placement, result = save.placement, save.result
    environment = placement.environment
    started_s = placement.started_s or result.started_s
    queued_s = save.submitted_s
    if earlier and earlier[-1]["finished"]:
        queued_s = datetime.fromisoformat(earlier[-1]["finished"]).timestamp()
    return Run(
        job=save.job,
        attempt=placement.attempt,
        name=save.spec.name,
        worker=save.spec.worker or "",
        host=placement.host,
        environment=environment.name,
        arch=environment.arch,
        platform=environment.platform,
        outcome=result.outcome.value,
        queued_s=min(queued_s, started_s),
        started_s=started_s,
        finished_s=max(started_s, result.finished_s),
        recorded_s=recorded_s,
    )
