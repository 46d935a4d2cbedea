"""Past, running and waiting jobs as one list, newest first: filtered, and a page at a time by job number."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

import orjson

from biruda.master import requests as rq
from biruda.master import views
from biruda.master.store import Connection, Row, Store

STATES: Mapping[str, str] = {
    "waiting": "state IN ('waiting', 'placed')",
    "running": "state = 'running'",
    "finished": "state = 'finished'",
    "unfinished": "state <> 'finished'",
}
EXACT = ("outcome", "worker", "user", "host", "environment", "arch", "platform")
"""Columns that a filter compares; each may be given several values, with commas between."""

SELECT_FINISHED = "SELECT job FROM jobs INDEXED BY jobs_listed WHERE state = 'finished' AND {}"
SELECT_UNFINISHED = "SELECT job FROM jobs INDEXED BY jobs_unfinished WHERE state <> 'finished' AND {}"
"""Each in its own partial index. All that a filter looks at of finished jobs is in theirs: 100,000 are gone through in
a few milliseconds, whatever is asked."""

ROW_COLUMNS = (
    *("job", "state", "name", "worker", "user", "outcome", "exit_status", "reason", "submitted_s", "started_s"),
    *("finished_s", "last_attempt", "arch", "platform", "host", "environment", "cancelling"),
)
SELECT_ROWS = (
    f"SELECT {', '.join(ROW_COLUMNS)} FROM jobs WHERE job IN (SELECT value FROM json_each(?)) ORDER BY job DESC"
)
SELECT_SUBMITTED = "SELECT job, submitted_s FROM jobs WHERE job >= ? ORDER BY job LIMIT 1"
SELECT_LAST = "SELECT coalesce(max(job), 0) FROM jobs"
SELECT_PASSED = """
    SELECT job, last_attempt FROM jobs
    WHERE outcome = 'passed' AND job < ? AND state = 'finished' AND name = ? AND environment = ? AND worker = ?
    ORDER BY job DESC LIMIT 1
"""

AGO = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs; "" and None do not matter. name: a part of it, small and capital letters the same."""

    state: str = ""
    outcome: str = ""
    name: str = ""
    worker: str = ""
    user: str = ""
    host: str = ""
    environment: str = ""
    arch: str = ""
    platform: str = ""
    since: str = ""  # of the submission: an instant as the API writes it, or 30m, 12h, 7d ago
    until: str = ""
    jobs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.state and self.state not in STATES:
            raise rq.InvalidRequest(f"state = {self.state!r}: there are {', '.join(STATES)}")

    @property
    def is_empty(self) -> bool:
        return self == Filter()


def parsed_filter(query: Mapping[str, str]) -> Filter:
    """The filter that a query's parameters name. Raises InvalidRequest."""
    names = {field.name for field in fields(Filter)} - {"jobs"}
    given = {name: query[name] for name in names if query.get(name)}
    if "env" in query:
        given["environment"] = query["env"]
    numbers: tuple[int, ...] | None = None
    if "jobs" in query:
        words = query["jobs"].split(",")
        if len(words) > 1000 or not all(word.isascii() and word.isdigit() and len(word) <= 18 for word in words):
            raise rq.InvalidRequest("jobs: up to 1000 numbers with commas between")
        numbers = tuple(int(word) for word in words)
    return Filter(**given, jobs=numbers)


def instant_s(text: str, what: str) -> float:
    """Seconds since the epoch of an instant, or of so long ago. Raises InvalidRequest."""
    if text[:-1].isascii() and text[:-1].isdigit() and text[-1] in AGO and len(text) < 9:
        return (datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * AGO[text[-1]])).timestamp()
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise rq.InvalidRequest(
            f"{what} = {text[:40]!r}: no instant", hint="2026-11-26T08:00:00Z, or 30m, 12h, 7d for so long ago"
        ) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


class JobList:
    """Reads the list with a connection of its own, in a thread."""

    def __init__(self, store: Store) -> None:
        self._connection: Connection = store.connect()
        self._alone = asyncio.Lock()

    async def numbers(
        self, wanted: Filter, *, before: int | None = None, after: int | None = None, skip: int = 0, limit: int
    ) -> list[int]:
        """The newest jobs that fit, without the first `skip` of them, newest first."""
        async with self._alone:
            return await asyncio.to_thread(self._numbers, wanted, before, after, limit, skip)

    async def count(self, wanted: Filter) -> int:
        """How many fit."""
        async with self._alone:
            return await asyncio.to_thread(self._count, wanted)

    async def rows(self, numbers: list[int]) -> list[views.View]:
        """What the list shows of these jobs, newest first."""
        async with self._alone:
            return await asyncio.to_thread(self._rows, numbers)

    async def last_passed(self, job: int, name: str, environment: str, worker: str) -> tuple[int, int] | None:
        """(job, attempt) of the newest job before that passed, of this name in this environment."""
        async with self._alone:
            row = await asyncio.to_thread(self._last_passed, job, name, environment, worker)
        return None if row is None else (row[0], row[1])

    def _last_passed(self, *values: object) -> Row | None:
        row: Row | None = self._connection.execute(SELECT_PASSED, values).fetchone()
        return row

    def _numbers(self, wanted: Filter, before: int | None, after: int | None, limit: int, skip: int = 0) -> list[int]:
        clauses, values = self._clauses(wanted)
        for clause, value in (("job < ?", before), ("job > ?", after)):
            if value is not None:
                clauses.append(clause)
                values.append(value)
        where = " AND ".join(clauses) or "1"
        parts = [part.format(where) for part in _parts(wanted)]
        if not parts:
            return []
        statement = f"{' UNION ALL '.join(parts)} ORDER BY job DESC LIMIT ? OFFSET ?"
        rows = self._connection.execute(statement, (*values * len(parts), limit, skip))
        return [row[0] for row in rows]

    def _count(self, wanted: Filter) -> int:
        clauses, values = self._clauses(wanted)
        where = " AND ".join(clauses) or "1"
        return sum(
            int(self._connection.execute(f"SELECT count(*) FROM ({part.format(where)})", values).fetchone()[0])
            for part in _parts(wanted)
        )

    def _rows(self, numbers: list[int]) -> list[views.View]:
        return [_row_view(row) for row in self._connection.execute(SELECT_ROWS, (orjson.dumps(numbers).decode(),))]

    def _clauses(self, wanted: Filter) -> tuple[list[str], list[object]]:
        clauses: list[str] = []
        values: list[object] = []
        if wanted.state:
            clauses.append(STATES[wanted.state])
        if wanted.jobs is not None:
            clauses.append("job IN (SELECT value FROM json_each(?))")
            values.append(orjson.dumps(wanted.jobs).decode())
        for text, comparison, what in ((wanted.since, ">=", "since"), (wanted.until, "<", "until")):
            if text:
                clauses.append(f"job {comparison} ?")
                values.append(self._first_since(instant_s(text, what)))
        for column in EXACT:
            words = getattr(wanted, column)
            if words:
                some = words.split(",")
                clauses.append(f"{column} IN ({', '.join('?' * len(some))})")
                values += some
        if wanted.name:
            clauses.append("instr(lower(name), ?) > 0")
            values.append(wanted.name.lower())
        return clauses, values

    def _first_since(self, at_s: float) -> int:
        """The first job submitted at that time or later; numbers are given in that order."""
        low, high = 1, int(self._connection.execute(SELECT_LAST).fetchone()[0]) + 1
        while low < high:
            middle = (low + high) // 2
            row = self._connection.execute(SELECT_SUBMITTED, (middle,)).fetchone()
            if row is None or row[1] >= at_s:
                high = middle
            else:
                low = row[0] + 1
        return low


def _parts(wanted: Filter) -> list[str]:
    """The statements that can find something."""
    finished_only = wanted.state == "finished" or bool(wanted.outcome)
    parts = [] if wanted.state in ("waiting", "running", "unfinished") else [SELECT_FINISHED]
    return parts if finished_only else [*parts, SELECT_UNFINISHED]


def _row_view(row: Row) -> views.View:
    """A line of the list, in the words of a whole job; `finished` is when the end was recorded."""
    is_over = row["state"] == "finished"
    texts = {name: row[name] or None for name in ("worker", "arch", "platform", "host", "environment", "outcome")}
    return {
        "job": row["job"],
        "state": "waiting" if row["state"] == "placed" else row["state"],
        "name": row["name"],
        "user": row["user"],
        **texts,
        "exit_status": row["exit_status"] if is_over else None,
        "reason": row["reason"],
        "submitted": views.instant(row["submitted_s"]),
        "started": views.instant(row["started_s"]),
        "finished": views.instant(row["finished_s"]) if is_over else None,
        "attempt": row["last_attempt"] or None,
        "cancelling": bool(row["cancelling"]),
    }
