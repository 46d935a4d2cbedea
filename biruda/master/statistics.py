"""How the farm did: waiting and running times, success, use, by what ran and where. SQL over the runs.

Every call is one short read on a connection of its own, and blocks for as long as it takes; callers use a thread.
"""

import threading
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from biruda.master import views
from biruda.master.runs import first_since
from biruda.master.store import Connection, Row, Store

MOST_RUNS: Final = 200_000
"""At most so many of the newest runs are looked at: a year of a busy farm must not take a minute."""

BUCKETS: Final = 48
LISTED: Final = 10

KEYS: Final[Mapping[str, str]] = {
    "worker": "CASE worker WHEN '' THEN name ELSE worker END",
    "environment": "environment",
    "host": "host",
    "platform": "arch || ' ' || platform",
}
"""By what runs may be grouped, as SQL."""

_RECENT = """
    WITH recent AS (
        SELECT *, {key} AS key, max(0, started_s - queued_s) AS wait_s, finished_s - started_s AS run_s
        FROM runs WHERE id >= ? ORDER BY id DESC LIMIT ?
    )
"""
SELECT_GROUPS = (
    _RECENT
    + """
    , ranked AS (
        SELECT key, outcome, wait_s, run_s, count(*) OVER (PARTITION BY key) AS n,
            row_number() OVER (PARTITION BY key ORDER BY wait_s) AS wait_rank,
            row_number() OVER (PARTITION BY key ORDER BY run_s) AS run_rank
        FROM recent
    )
    SELECT key, n AS runs, sum(run_s) AS busy_s,
        sum(outcome = 'passed') AS passed, sum(outcome IN ('failed', 'timeout')) AS failed,
        sum(outcome IN ('infra', 'environment')) AS infra,
        max(CASE WHEN wait_rank = (n * 50 + 99) / 100 THEN wait_s END) AS wait_p50_s,
        max(CASE WHEN wait_rank = (n * 95 + 99) / 100 THEN wait_s END) AS wait_p95_s,
        max(CASE WHEN run_rank = (n * 50 + 99) / 100 THEN run_s END) AS run_p50_s,
        max(CASE WHEN run_rank = (n * 95 + 99) / 100 THEN run_s END) AS run_p95_s
    FROM ranked GROUP BY key ORDER BY runs DESC, key LIMIT 200
"""
)
SELECT_SLOWEST = (
    _RECENT
    + """
    SELECT job, attempt, key, host, environment, outcome, run_s, finished_s FROM recent ORDER BY run_s DESC, id LIMIT ?
"""
)
SELECT_FLAKIEST = (
    _RECENT
    + """
    , judged AS (
        SELECT key, environment, outcome = 'passed' AS ok,
            lag(outcome = 'passed') OVER (PARTITION BY key, environment ORDER BY id) AS ok_before
        FROM recent WHERE outcome IN ('passed', 'failed', 'timeout')
    )
    SELECT key, environment, count(*) AS runs, sum(ok) AS passed, sum(NOT ok) AS failed,
        sum(ok <> coalesce(ok_before, ok)) AS turns
    FROM judged GROUP BY key, environment HAVING turns > 0 ORDER BY turns * 1.0 / runs DESC, runs DESC LIMIT ?
"""
)
SELECT_BUCKETS = """
    SELECT CAST((finished_s - ?) / ? AS INTEGER) AS bucket, outcome, count(*) AS runs
    FROM runs WHERE id >= ? GROUP BY 1, 2
"""
SELECT_BUSY = """
    SELECT host, sum(min(finished_s, ?) - max(started_s, ?)) AS busy_s FROM runs
    WHERE id >= ? AND finished_s > ? GROUP BY host
"""


class Statistics:
    """Asks the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    @cached_property
    def _connection(self) -> Connection:
        return self._store.connect()  # when it is first asked: most masters never are

    def of(self, hours: float, by: str, slots: Mapping[str, int]) -> dict[str, Any]:
        """The last hours, grouped by a key of KEYS. slots: of each host, for how much of it was used."""
        until_s = time.time()
        since_s = until_s - hours * 3600
        with self._lock:
            first = first_since(self._connection.execute, since_s)
            recent = (first, MOST_RUNS)
            groups = [_group(row) for row in self._rows(SELECT_GROUPS, by, recent)]
            total = next((_group(row) for row in self._rows(SELECT_GROUPS, "", recent)), None)
            slowest = [_slow(row) for row in self._rows(SELECT_SLOWEST, "worker", (*recent, LISTED))]
            flakiest = [dict(row) for row in self._rows(SELECT_FLAKIEST, "worker", (*recent, LISTED))]
            width_s = hours * 3600 / BUCKETS
            counted = self._connection.execute(SELECT_BUCKETS, (since_s, width_s, first)).fetchall()
            busy = self._connection.execute(SELECT_BUSY, (until_s, since_s, first, since_s)).fetchall()
        return {
            "since": views.instant(since_s),
            "until": views.instant(until_s),
            "by": by,
            "total": total,
            "groups": groups,
            "slowest": slowest,
            "flakiest": flakiest,
            "bucket_s": width_s,
            "buckets": _buckets(counted),
            "hosts": _use({row["host"]: row["busy_s"] for row in busy}, slots, hours * 3600),
            "all_counted": total is None or total["runs"] < MOST_RUNS,
        }

    def _rows(self, statement: str, by: str, values: tuple[object, ...]) -> list[Row]:
        key = KEYS[by] if by else "''"
        return self._connection.execute(statement.format(key=key), values).fetchall()


def _group(row: Row) -> dict[str, Any]:
    group = dict(row)
    judged = group["passed"] + group["failed"]
    return {**group, "success": group["passed"] / judged if judged else None}


def _slow(row: Row) -> dict[str, Any]:
    slow = dict(row)
    return {**slow, "finished": views.instant(slow.pop("finished_s"))}


def _buckets(rows: list[Row]) -> list[dict[str, int]]:
    buckets: list[dict[str, int]] = [{} for _ in range(BUCKETS)]
    for row in rows:
        bucket = buckets[max(0, min(row["bucket"], BUCKETS - 1))]  # by its end; it may have been recorded later
        bucket[row["outcome"]] = bucket.get(row["outcome"], 0) + row["runs"]
    return buckets


def _use(busy: Mapping[str, float], slots: Mapping[str, int], window_s: float) -> list[dict[str, Any]]:
    return [
        {
            "host": host,
            "slots": slots.get(host, 0),
            "busy_s": busy.get(host, 0.0),
            "used": min(1.0, busy.get(host, 0.0) / (slots[host] * window_s)) if slots.get(host) else None,
        }
        for host in sorted({*busy, *slots})
    ]
