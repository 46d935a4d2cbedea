"""What the master remembers: SQLite in WAL, one writer thread, one transaction for a batch of actions."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, assert_never

import orjson

from biruda.convert import decode
from biruda.errors import ConfigError
from biruda.master import events as ev
from biruda.master import views
from biruda.master.runs import INSERT_RUN, Run
from biruda.master.state import LiveJob, Placed, Waiting
from biruda.messages import HostReport
from biruda.model import JobSpec

MIGRATIONS = ("0001.sql", "0002.sql", "0003.sql", "0004.sql", "0005.sql", "0006.sql")
"""Numbered, only ever added to; PRAGMA user_version counts those applied."""

INSERT_QUEUED = """
    INSERT INTO jobs
        (job, state, name, worker, user, outcome, reason, submitted_s, last_attempt, infra_failures, cancelling, spec)
    VALUES (?, 'waiting', ?, ?, ?, '', '', ?, ?, ?, '', ?)
    ON CONFLICT (job) DO UPDATE
        SET state = 'waiting', outcome = '', reason = '', exit_status = NULL,
        finished_s = NULL,
        last_attempt = excluded.last_attempt, infra_failures = excluded.infra_failures,
        cancelling = '', placement = NULL,
        arch = '', platform = '', host = '', environment = '', started_s = NULL
"""
UPDATE_PLACED = """
    UPDATE jobs SET state = ?, last_attempt = ?, cancelling = ?, reason = ?,
        arch = ?, platform = ?, host = ?, environment = ?, started_s = ?, placement = ? WHERE job = ?
"""
UPDATE_FINISHED = """
    UPDATE jobs SET state = 'finished', outcome = ?, exit_status = ?, reason = ?, finished_s = ?, last_attempt = ?,
        placement = NULL WHERE job = ?
"""
INSERT_ATTEMPT = "INSERT OR REPLACE INTO attempts (job, attempt, record) VALUES (?, ?, ?)"
INSERT_UNSYNCED = "INSERT INTO unsynced_batches (batch, attempts, logs) VALUES (?, ?, ?)"
SELECT_UNSYNCED = "SELECT attempts, logs FROM unsynced_batches ORDER BY batch"
LAST_UNSYNCED = "SELECT coalesce(max(batch), 0) FROM unsynced_batches"
DELETE_UNSYNCED = "DELETE FROM unsynced_batches WHERE batch <= ?"
INSERT_HOST = "INSERT OR REPLACE INTO hosts (host, report) VALUES (?, ?)"
INSERT_EVENTS = "INSERT INTO event_batches (last_id, first_id, events) VALUES (?, ?, ?)"
TRIM_EVENTS = "DELETE FROM event_batches WHERE last_id <= ?"
SELECT_EARLIER = "SELECT record FROM attempts WHERE job = ? AND attempt < ? ORDER BY attempt"
SELECT_ATTEMPT = "SELECT record FROM attempts WHERE job = ? AND attempt = ?"
SELECT_JOB = "SELECT * FROM jobs WHERE job = ?"
SELECT_LIVE = "SELECT * FROM jobs WHERE state <> 'finished' ORDER BY job"
SELECT_HOSTS = "SELECT report FROM hosts"
SELECT_EVENTS = "SELECT first_id, events FROM event_batches WHERE last_id > ? ORDER BY last_id"
LAST_EVENT = "SELECT coalesce(max(last_id), 0) FROM event_batches"

TRIM_EVERY = 1000
"""Old events are removed once in so many new ones."""

Unwritable = sqlite3.OperationalError
"""The disk is full or the store is locked: it may be tried again."""


Connection = sqlite3.Connection
Row = sqlite3.Row


class Published(NamedTuple):
    """An attempt whose spool files have their names; log: all of it while they are not sure to be on disk."""

    job: int
    attempt: int
    record: bytes
    log: bytes | None
    run: Run


class Store:
    """One connection to write with, by one caller at a time, and one for reads, which are short and safe beside it."""

    def __init__(self, path: Path, *, event_history: int = 100_000) -> None:
        self.path = path
        self._event_history = event_history
        self._last_spec: tuple[JobSpec, bytes] | None = None
        self._connections: list[sqlite3.Connection] = []
        try:
            self._writer = self._connect()
            self._migrate()
            self._reader = self._connect()
        except ConfigError:
            self.close()
            raise
        except sqlite3.DatabaseError as error:
            self.close()
            raise ConfigError(
                f"{path}: the store cannot be opened: {error}",
                hint="restore it from a backup, or move it away to begin anew; the spool stays as it is",
            ) from error
        self.last_event = int(self._reader.execute(LAST_EVENT).fetchone()[0])
        self.last_unsynced = int(self._reader.execute(LAST_UNSYNCED).fetchone()[0])

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._connections.append(connection)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA busy_timeout = 10000")
        return connection

    def _migrate(self) -> None:
        done = int(self._writer.execute("PRAGMA user_version").fetchone()[0])
        if done > len(MIGRATIONS):
            raise ConfigError(
                f"{self.path}: made by a newer biruda (schema {done}, this one knows {len(MIGRATIONS)})",
                hint="start the newer version again",
            )
        for number, name in enumerate(MIGRATIONS[done:], start=done + 1):
            script = resources.files("biruda.master").joinpath("schema", name).read_text()
            self._writer.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")

    def connect(self) -> sqlite3.Connection:
        """One more connection, for what has nothing to do with jobs; closed with the store."""
        return self._connect()

    def close(self) -> None:
        for connection in reversed(self._connections):
            connection.close()

    # Writing.

    def earlier_attempts(self, job: int, before: int) -> list[dict[str, Any]]:
        """The records of a job's attempts with a smaller number, as the writing connection sees them."""
        return (
            [orjson.loads(row[0]) for row in self._writer.execute(SELECT_EARLIER, (job, before))] if before > 1 else []
        )

    def apply(self, saves: Sequence[ev.Save | Published], first_event: int) -> None:
        """prepare() and commit()."""
        self.prepare(saves, first_event)
        self.commit()

    def prepare(self, saves: Sequence[ev.Save | Published], first_event: int) -> None:
        """Put all into one transaction, which commit() ends. Published stands for a SaveAttempt whose record is made.

        Raises Unwritable; then nothing of it was done and it may be tried again.
        """
        execute = self._writer.execute
        events = [save for save in saves if isinstance(save, ev.Emit)]
        execute("BEGIN IMMEDIATE")
        try:
            for save in saves:
                if not isinstance(save, ev.Emit):
                    self._save(save)
            self._writer.executemany(INSERT_RUN, [save.run for save in saves if isinstance(save, Published)])
            self._save_logs([save for save in saves if isinstance(save, Published) and save.log is not None])
            if events:
                self._save_events(events, first_event)
        except BaseException:
            self._roll_back()
            raise

    def _save_events(self, events: Sequence[ev.Emit], first_event: int) -> None:
        last = first_event + len(events) - 1
        batch = [(event.at_s, event.kind, event.job, event.body) for event in events]
        self._writer.execute(INSERT_EVENTS, (last, first_event, orjson.dumps(batch)))
        if last // TRIM_EVERY != (first_event - 1) // TRIM_EVERY:
            self._writer.execute(TRIM_EVENTS, (last - self._event_history,))

    def _save_logs(self, small: Sequence[Published]) -> None:
        """Small logs in one row. The batch counts as used also where the transaction is rolled back."""
        if small:
            self.last_unsynced += 1
            attempts = orjson.dumps([(item.job, item.attempt, len(item.log or b"")) for item in small])
            logs = b"".join(item.log or b"" for item in small)
            self._writer.execute(INSERT_UNSYNCED, (self.last_unsynced, attempts, logs))

    def commit(self) -> None:
        """All that was prepared is on disk on return. Raises Unwritable; then nothing of it was done."""
        try:
            self._writer.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _save(self, save: ev.Save | Published) -> None:
        execute = self._writer.execute
        match save:
            case ev.SaveQueued(spec=spec):
                values = (
                    save.job,
                    spec.name,
                    spec.worker or "",
                    spec.user,
                    save.submitted_s,
                    save.last_attempt,
                    save.infra_failures,
                )
                execute(INSERT_QUEUED, (*values, self._spec_json(spec)))
            case ev.SavePlaced(placement=placement):
                state = "placed" if placement.started_s is None else "running"
                asked = (save.cancelling, save.reason)
                there = placement.environment
                place = (there.arch, there.platform, placement.host, there.name, placement.started_s)
                execute(UPDATE_PLACED, (state, placement.attempt, *asked, *place, orjson.dumps(placement), save.job))
            case ev.SaveFinished():
                row = (save.outcome.value, save.exit_status, save.reason, save.finished_s, save.attempt, save.job)
                execute(UPDATE_FINISHED, row)
            case ev.SaveHost(report=report):
                execute(INSERT_HOST, (report.host, orjson.dumps(report)))
            case Published(job=job, attempt=attempt):
                execute(INSERT_ATTEMPT, (job, attempt, save.record))
            case ev.SaveAttempt() | ev.Emit():
                raise AssertionError(f"{type(save).__name__} is made into a row before")
            case _:
                assert_never(save)

    def _spec_json(self, spec: JobSpec) -> bytes:
        """Its JSON; of many jobs that were submitted at once, most are often equal."""
        if self._last_spec is None or self._last_spec[0] is not spec:
            self._last_spec = (spec, orjson.dumps(spec))
        return self._last_spec[1]

    def synced(self, batch: int) -> None:
        """The spool files of all batches up to this one are on disk. Raises Unwritable."""
        self._writer.execute(DELETE_UNSYNCED, (batch,))

    # Reading.

    def unsynced(self) -> list[tuple[dict[str, Any], bytes]]:
        """(record, log) of the attempts whose spool files may not be on disk. At start."""
        found: list[tuple[dict[str, Any], bytes]] = []
        for attempts, logs in self._writer.execute(SELECT_UNSYNCED):
            start = 0
            for job, attempt, size in orjson.loads(attempts):
                row = self._writer.execute(SELECT_ATTEMPT, (job, attempt)).fetchone()
                if row is not None:
                    found.append((orjson.loads(row[0]), logs[start : start + size]))
                start += size
        return found

    def next_job(self) -> int:
        return int(self._reader.execute("SELECT coalesce(max(job), 0) + 1 FROM jobs").fetchone()[0])

    def live_jobs(self) -> Iterator[LiveJob]:
        """Every job that has not ended, as it was saved last; equal specs are one value."""
        specs: dict[bytes, JobSpec] = {}
        for row in self._reader.execute(SELECT_LIVE):
            state: Waiting | Placed = Waiting(since_s=row["submitted_s"])
            if row["state"] != "waiting":
                placement = decode(ev.Placement, orjson.loads(row["placement"]))
                state = Placed(placement=placement, cancelling=row["cancelling"], reason=row["reason"])
            yield LiveJob(
                job=row["job"],
                spec=specs.get(row["spec"]) or specs.setdefault(row["spec"], _spec(row)),
                submitted_s=row["submitted_s"],
                state=state,
                last_attempt=row["last_attempt"],
                infra_failures=row["infra_failures"],
            )

    def hosts(self) -> list[HostReport]:
        return [decode(HostReport, orjson.loads(row[0])) for row in self._reader.execute(SELECT_HOSTS)]

    def job_spec(self, job: int) -> tuple[JobSpec, int, float] | None:
        """Spec, last attempt and time of submission of any job."""
        row = self._reader.execute(SELECT_JOB, (job,)).fetchone()
        return None if row is None else (_spec(row), row["last_attempt"], row["submitted_s"])

    def attempt(self, job: int, attempt: int) -> dict[str, Any] | None:
        """The record of an attempt that has ended."""
        row = self._reader.execute(SELECT_ATTEMPT, (job, attempt)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def attempts_before(self, job: int, attempt: int) -> list[dict[str, Any]]:
        return [orjson.loads(row[0]) for row in self._reader.execute(SELECT_EARLIER, (job, attempt))]

    def finished_view(self, job: int) -> views.View | None:
        """A job as the API shows it, if it has ended."""
        row = self._reader.execute(SELECT_JOB, (job,)).fetchone()
        return None if row is None or row["state"] != "finished" else self._finished_view(row)

    def _finished_view(self, row: sqlite3.Row) -> views.View:
        record = self.attempt(row["job"], row["last_attempt"])
        if record is not None and record["outcome"] == row["outcome"]:
            return record
        view = views.request_view(row["job"], _spec(row), row["submitted_s"])
        return {
            **view,
            "state": "finished",
            "finished": views.instant(row["finished_s"]),
            "outcome": row["outcome"],
            "exit_status": row["exit_status"],
            "reason": row["reason"],
            "attempts": [
                views.attempt_summary(item) for item in self.attempts_before(row["job"], row["last_attempt"] + 1)
            ],
        }

    def events_after(self, after: int, limit: int) -> list[dict[str, Any]]:
        """The next events of the stream."""
        found: list[dict[str, Any]] = []
        for first, batch in self._reader.execute(SELECT_EVENTS, (after,)):
            for number, (at_s, kind, job, body) in enumerate(orjson.loads(batch), first):
                if number > after:
                    found.append(event_view(number, at_s, kind, job, body))
            if len(found) >= limit:
                break
        return found[:limit]


def event_view(number: int, at_s: float, kind: str, job: int, body: Any) -> dict[str, Any]:
    """One event as the API sends it."""
    return {"id": number, "at": views.instant(at_s), "kind": kind, "job": job or None, **body}


def emitted(saves: Iterable[ev.Save], first_event: int) -> Iterator[dict[str, Any]]:
    """The events among the saves, numbered as apply() numbers them."""
    number = first_event
    for save in saves:
        if isinstance(save, ev.Emit):
            yield event_view(number, save.at_s, save.kind, save.job, dict(save.body))
            number += 1


def _spec(row: sqlite3.Row) -> JobSpec:
    return decode(JobSpec, orjson.loads(row["spec"]))
