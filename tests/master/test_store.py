"""What the master remembers: a real SQLite file, whole transactions, and a sentence when it cannot be opened."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings

from biruda.errors import ConfigError
from biruda.master import events as ev
from biruda.master import store as store_module
from biruda.master import views
from biruda.master.runs import run_of
from biruda.master.state import Placed, Waiting
from biruda.master.store import MIGRATIONS, Published, Store, Unwritable, emitted
from biruda.messages import HostReport
from biruda.model import EnvironmentReport, JobSpec, Outcome
from tests.fakes import environment, host_report, job_spec, result, step_result, values, worker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "master.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def queued(job: int, spec: JobSpec | None = None, *, last_attempt: int = 0, infra_failures: int = 0) -> ev.SaveQueued:
    return ev.SaveQueued(
        job=job,
        spec=spec or job_spec(),
        submitted_s=1000.0 + job,
        last_attempt=last_attempt,
        infra_failures=infra_failures,
    )


def placement(attempt: int = 1, **fields: Any) -> ev.Placement:
    return ev.Placement(attempt=attempt, host="h1", environment=environment(), assigned_s=2000.0, **fields)


def placed(job: int, attempt: int = 1, **fields: Any) -> ev.SavePlaced:
    return ev.SavePlaced(job=job, placement=placement(attempt, **fields), cancelling="")


def finished(job: int, attempt: int = 1, outcome: Outcome = Outcome.PASSED, reason: str = "") -> ev.SaveFinished:
    return ev.SaveFinished(
        job=job,
        spec=job_spec(),
        submitted_s=1000.0 + job,
        finished_s=3000.0,
        attempt=attempt,
        outcome=outcome,
        exit_status=0,
        reason=reason,
    )


def published(job: int, attempt: int = 1, outcome: Outcome = Outcome.PASSED, log: bytes | None = None) -> Published:
    save = ev.SaveAttempt(
        job=job, spec=job_spec(), submitted_s=1000.0 + job, placement=placement(attempt), result=result(outcome)
    )
    return Published(job, attempt, orjson.dumps(views.attempt_record(save, [])), log, run_of(save, [], 3000.0))


def emit(kind: str, job: int = 0, **body: Any) -> ev.Emit:
    return ev.Emit(kind=kind, at_s=5000.0, job=job, body=body)


# Opening.


def test_a_new_store_is_empty_and_at_the_newest_schema(store: Store, path: Path) -> None:
    assert (store.next_job(), store.last_event) == (1, 0)
    assert list(store.live_jobs()) == []
    assert store.hosts() == []
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


def test_migrations_are_numbered_and_all_there() -> None:
    names = sorted(item.name for item in (Path(store_module.__file__).parent / "schema").glob("*.sql"))
    assert tuple(names) == MIGRATIONS
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


def test_a_migration_that_fails_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    monkeypatch.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, "0001.sql"))  # its tables are there already
    with pytest.raises(ConfigError, match="cannot be opened"):
        Store(path)
    monkeypatch.undo()
    Store(path).close()


def test_a_newer_schema_is_refused_in_a_sentence(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    other.close()
    with pytest.raises(ConfigError) as refused:
        Store(path)
    known = len(MIGRATIONS)
    assert str(refused.value) == f"{path}: made by a newer biruda (schema {known + 1}, this one knows {known})"
    assert refused.value.hint == "start the newer version again"


@pytest.mark.parametrize(
    "content", [b"this is no database at all, it is a text" * 50, b"SQLite format 3\0" + bytes(5000)]
)
def test_a_damaged_file_is_a_sentence(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        Store(path)
    assert str(refused.value).startswith(f"{path}: the store cannot be opened: ")
    assert "backup" in refused.value.hint
    assert path.read_bytes() == content


def test_a_directory_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the store cannot be opened"):
        Store(tmp_path / "none" / "master.db")


# Jobs.


def test_a_job_through_its_states(store: Store, path: Path) -> None:
    spec = replace(job_spec(arch="amd64"), name="n", retries=1, priority=3)
    store.apply([queued(1, spec)], 1)
    (job,) = store.live_jobs()
    assert (job.job, job.spec, job.submitted_s, job.state) == (1, spec, 1001.0, Waiting(since_s=1001.0))
    store.apply([placed(1)], 1)
    (job,) = store.live_jobs()
    assert job.state == Placed(placement=placement())
    began = placement(started_s=2001.0, source="digest", steps=(step_result(),))
    store.apply([ev.SavePlaced(job=1, placement=began, cancelling="cancelled", reason="enough")], 1)
    (job,) = store.live_jobs()
    assert job.state == Placed(placement=began, cancelling="cancelled", reason="enough")
    store.apply([queued(1, spec, last_attempt=1, infra_failures=1)], 1)
    (job,) = store.live_jobs()
    assert (job.state, job.last_attempt, job.infra_failures) == (Waiting(since_s=1001.0), 1, 1)
    store.apply([placed(1, 2), published(1, 2), finished(1, 2)], 1)
    assert list(store.live_jobs()) == []
    assert store.next_job() == 2
    assert store.job_spec(1) == (spec, 2, 1001.0)
    assert store.job_spec(2) is None
    store.close()
    again = Store(path)
    view = again.finished_view(1)
    assert view is not None
    assert (view["outcome"], view["attempt"], view["spool"]) == ("passed", 2, "amd64-debian12-h1-1.2")
    again.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values(JobSpec), values(EnvironmentReport), values(HostReport))
def test_any_value_comes_back_as_it_was(
    store: Store, spec: JobSpec, environment: EnvironmentReport, report: HostReport
) -> None:
    out = ev.Placement(attempt=1, host="h", environment=environment, assigned_s=1.0)
    saves = [queued(1, spec), ev.SavePlaced(job=1, placement=out, cancelling=""), ev.SaveHost(report=report)]
    store.apply([finished(1), *saves], 1)
    with sqlite3.connect(store.path) as other:
        other.execute("DELETE FROM jobs WHERE job = 1")
    other.close()
    store.apply(saves, 1)
    (job,) = store.live_jobs()
    assert job.spec == spec
    assert isinstance(job.state, Placed)
    assert job.state.placement == out
    assert report in store.hosts()


def test_a_host_is_remembered_by_its_last_report(store: Store) -> None:
    store.apply([ev.SaveHost(report=host_report(slots=1)), ev.SaveHost(report=host_report("h2"))], 1)
    newer = host_report(slots=5, workers=(worker("web"),))
    store.apply([ev.SaveHost(report=newer)], 1)
    assert sorted(store.hosts(), key=lambda report: report.host) == [newer, host_report("h2")]


def test_a_job_that_was_cancelled_while_it_waited_again_tells_both(store: Store) -> None:
    store.apply([queued(1), placed(1), published(1, 1, Outcome.INFRA), queued(1, last_attempt=1)], 1)
    store.apply([finished(1, 1, Outcome.CANCELLED, "enough")], 1)
    view = store.finished_view(1)
    assert view is not None
    assert (view["outcome"], view["reason"], view["state"]) == ("cancelled", "enough", "finished")
    assert [item["outcome"] for item in view["attempts"]] == ["infra"]
    assert store.earlier_attempts(1, 1) == []
    assert [item["attempt"] for item in store.earlier_attempts(1, 2)] == [1]


# Transactions.


def test_a_save_that_fails_leaves_nothing_of_its_batch(store: Store, path: Path) -> None:
    store.apply([queued(1)], 1)
    store.apply([emit("x")], 1)
    broken = [queued(2), finished(1), ev.SaveHost(report=host_report()), emit("y"), emit("x")]
    with pytest.raises(sqlite3.IntegrityError):
        store.apply(broken, 0)  # its second event has the number of the one that is there
    assert [job.job for job in store.live_jobs()] == [1]
    assert store.hosts() == []
    assert [event["kind"] for event in store.events_after(0, 10)] == ["x"]
    store.apply(broken, 2)  # the next batch is not hurt by it
    assert [job.job for job in store.live_jobs()] == [2]


def test_a_locked_store_is_unwritable_and_can_be_written_later(store: Store, path: Path) -> None:
    store._writer.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unwritable):
        store.apply([queued(1)], 1)
    assert list(store.live_jobs()) == []
    other.execute("ROLLBACK")
    other.close()
    store.apply([queued(1)], 1)
    assert len(list(store.live_jobs())) == 1


def test_a_full_disk_is_unwritable_and_leaves_the_store_whole(store: Store) -> None:
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    large = replace(job_spec(), name="x" * 100_000)
    with pytest.raises(Unwritable, match="full"):
        store.apply([queued(1, large)], 1)
    assert list(store.live_jobs()) == []
    store._writer.execute("PRAGMA max_page_count = 1000000")
    store.apply([queued(1, large)], 1)
    assert [job.spec.name for job in store.live_jobs()] == ["x" * 100_000]


def test_the_order_of_saves_is_the_order_of_their_effects(store: Store) -> None:
    store.apply([queued(1), placed(1), finished(1), queued(1, last_attempt=1), placed(1, 2)], 1)
    (job,) = store.live_jobs()
    assert (job.last_attempt, isinstance(job.state, Placed)) == (2, True)


# Events.


def test_events_are_numbered_and_read_after_any(store: Store, path: Path) -> None:
    saves = [emit("a", 1), queued(1), emit("b", 1, name="n"), emit("c")]
    store.apply(saves, 1)
    events = store.events_after(0, 10)
    assert events == list(emitted(saves, 1))
    assert [(event["id"], event["kind"], event["job"]) for event in events] == [
        (1, "a", 1),
        (2, "b", 1),
        (3, "c", None),
    ]
    assert events[1]["name"] == "n"
    assert events[1]["at"] == "1970-01-01T01:23:20.000000Z"
    assert [event["id"] for event in store.events_after(1, 1)] == [2]
    assert store.events_after(3, 10) == []
    again = Store(path)
    assert again.last_event == 3
    again.close()


def test_old_events_are_trimmed(path: Path) -> None:
    store = Store(path, event_history=50)
    for first in range(1, 2101, 100):
        store.apply([emit("x")] * 100, first)
    numbers = [event["id"] for event in store.events_after(0, 10_000)]
    assert numbers == list(range(1901, 2101))  # those of one commit stay together
    assert [event["id"] for event in store.events_after(1950, 120)] == list(range(1951, 2071))
    store.close()


# Spool files that are not sure to be on disk.


def test_small_logs_wait_in_the_store_until_they_are_synced(store: Store) -> None:
    store.apply([queued(1), queued(2), published(1, log=b"small"), published(2, log=None)], 1)
    assert [(record["job"], log) for record, log in store.unsynced()] == [(1, b"small")]
    first = store.last_unsynced
    store.apply([published(2, log=b"other")], 1)
    store.synced(first)
    assert [(record["job"], log) for record, log in store.unsynced()] == [(2, b"other")]
    store.synced(store.last_unsynced)
    assert store.unsynced() == []


def test_events_and_small_logs_of_an_older_schema_are_taken_over(path: Path) -> None:
    with closing(sqlite3.connect(path)) as old:
        for name in MIGRATIONS[:2]:
            old.executescript((Path(store_module.__file__).parent / "schema" / name).read_text())
        old.execute("PRAGMA user_version = 2")
        record = orjson.dumps({"job": 1})
        old.execute("INSERT INTO events VALUES (7, 1.5, 'job.queued', 1, ?)", (orjson.dumps({"name": "x"}),))
        old.execute("INSERT INTO attempts VALUES (1, 1, ?)", (record,))
        old.execute("INSERT INTO unsynced VALUES (1, 1, ?)", (b"small\xff",))
        old.commit()
    with closing(Store(path)) as store:
        (event,) = store.events_after(0, 9)
        assert (event["id"], event["kind"], event["job"], event["name"]) == (7, "job.queued", 1, "x")
        assert store.last_event == 7
        assert store.unsynced() == [({"job": 1}, b"small\xff")]
