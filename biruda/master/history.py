"""The last hour and the last day of what ended, kept up by the rows that came since: watching counts nothing anew.

Loading counts a day of runs and blocks for up to a tenth of a second; callers use a thread. Refreshing reads few rows.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

from biruda.master.runs import Run, first_since
from biruda.master.store import Connection, Store

MINUTES: Final = 60
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
MOST_BARS: Final = 1500
"""So many of the newest runs are known one by one."""

DAY_EVERY_S: Final = 60.0
"""How often the day is counted anew: what is older than that leaves it."""

_COLUMNS: Final = ", ".join(Run._fields)
SELECT_LAST = "SELECT coalesce(max(id), 0) FROM runs"
SELECT_DAY = "SELECT outcome, count(*) FROM runs WHERE id >= ? AND id <= ? GROUP BY outcome"
SELECT_MINUTES = """
    SELECT CAST(finished_s / 60 AS INTEGER) AS minute, outcome, count(*) FROM runs
    WHERE id >= ? AND id <= ? GROUP BY 1, 2
"""
SELECT_DEPTHS = """
    SELECT CAST(queued_s / 60 AS INTEGER) AS queued, CAST(started_s / 60 AS INTEGER) AS started, count(*) FROM runs
    WHERE id >= ? AND id <= ? GROUP BY 1, 2
"""
SELECT_NEWEST = f"SELECT id, {_COLUMNS} FROM runs WHERE id > ? AND id <= ? ORDER BY id DESC LIMIT ?"
SELECT_SINCE = """
    SELECT CAST(finished_s / 60 AS INTEGER) AS minute, outcome, count(*), max(id) FROM runs WHERE id > ? GROUP BY 1, 2
"""


class History:
    """What ended lately. depths: of the queue, by minute since the epoch."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last = -1  # of the runs that are counted; -1: none was looked for yet
        self._day_counted_s = 0.0
        self.day: Counter[str] = Counter()
        self.minutes: dict[int, Counter[str]] = {}
        self.depths: dict[int, int] = {}
        self.newest: deque[Run] = deque(maxlen=MOST_BARS)  # oldest first

    @cached_property
    def _connection(self) -> Connection:
        return self._store.connect()

    @property
    def is_loaded(self) -> bool:
        return self._last >= 0

    def load(self, waiting: Iterable[float]) -> None:
        """Count what there is. waiting: since when each job that has not begun waits."""
        now_s = time.time()
        execute = self._connection.execute
        last = int(execute(SELECT_LAST).fetchone()[0])
        self.count_day(last)
        first = first_since(execute, now_s - HOUR_S)
        self.minutes = {}
        for minute, outcome, count in execute(SELECT_MINUTES, (first, last)):
            self.minutes.setdefault(minute, Counter())[outcome] += count
        rows = execute(SELECT_NEWEST, (0, last, MOST_BARS)).fetchall()
        self.newest = deque((Run(*row[1:]) for row in reversed(rows) if row["finished_s"] > now_s - HOUR_S), MOST_BARS)
        self.depths = self._past_depths(now_s, (first, last), waiting)
        self._last = last

    def count_day(self, last: int | None = None) -> None:
        """Count the last day's outcomes anew."""
        self._day_counted_s = time.time()
        upto = self._last if last is None else last
        first = first_since(self._connection.execute, self._day_counted_s - DAY_S)
        self.day = Counter(dict(self._connection.execute(SELECT_DAY, (first, upto)).fetchall()))

    @property
    def day_is_old(self) -> bool:
        return time.time() - self._day_counted_s > DAY_EVERY_S

    def _past_depths(self, now_s: float, ids: tuple[int, int], waiting: Iterable[float]) -> dict[int, int]:
        """How many waited at the end of each minute of the last hour: began to wait before, and began to run after."""
        now = int(now_s // 60)
        begins, ends = Counter[int](), Counter[int]()
        for queued, started, count in self._connection.execute(SELECT_DEPTHS, ids):
            begins[queued] += count
            ends[started] += count
        for since_s in waiting:
            begins[int(since_s // 60)] += 1
        depths, depth = {}, 0
        first = now - MINUTES
        depth = sum(count for minute, count in begins.items() if minute < first)
        depth -= sum(count for minute, count in ends.items() if minute < first)
        for minute in range(first, now + 1):
            depth += begins[minute] - ends[minute]
            depths[minute] = max(0, depth)
        return depths

    def refresh(self, waiting: int) -> None:
        """Count what ended since. waiting: how many jobs wait now."""
        now_s = time.time()
        before = self._last
        for minute, outcome, count, last in self._connection.execute(SELECT_SINCE, (before,)).fetchall():
            self.minutes.setdefault(minute, Counter())[outcome] += count
            self.day[outcome] += count
            self._last = max(self._last, last)
        if self._last > before:
            rows = self._connection.execute(SELECT_NEWEST, (before, self._last, MOST_BARS)).fetchall()
            self.newest.extend(Run(*row[1:]) for row in reversed(rows))
        while self.newest and self.newest[0].finished_s < now_s - HOUR_S:
            self.newest.popleft()
        minute = int(now_s // 60)
        self.depths[minute] = waiting
        for table in (self.minutes, self.depths):
            for old in [each for each in table if each < minute - MINUTES]:
                del table[old]

    def hour(self) -> list[dict[str, Any]]:
        """A line for each of the last 60 minutes, oldest first."""
        now = int(time.time() // 60)
        lines, depth = [], 0
        for minute in range(now - MINUTES + 1, now + 1):
            depth = self.depths.get(minute, depth)  # while nobody looked nothing changed that was not counted since
            counts = self.minutes.get(minute, Counter())
            failed = counts["failed"] + counts["timeout"]
            others = counts.total() - counts["passed"] - failed
            lines.append(
                {"minute": minute, "passed": counts["passed"], "failed": failed, "other": others, "waiting": depth}
            )
        return lines
