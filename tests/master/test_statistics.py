"""Statistics: each number against the same one counted by hand over the same runs."""

import itertools
import math
import sqlite3
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.master import events as ev
from biruda.master import views
from biruda.master.runs import INSERT_RUN, Run, first_since, run_of
from biruda.master.statistics import Statistics
from biruda.master.store import MIGRATIONS, Store
from biruda.model import Outcome
from tests.fakes import job_spec
from tests.master.test_store import placement, result


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("store") / "master.db")
    yield store
    store.close()


def keep(store: Store, runs: list[Run]) -> None:
    connection = store.connect()
    connection.execute("DELETE FROM runs")
    connection.executemany(INSERT_RUN, runs)


def percentile(values: list[float], percent: int) -> float:
    """By the nearest rank."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


SECONDS = st.integers(0, 1000).map(float)
A_RUN = st.builds(
    lambda name, host, outcome, wait_s, run_s: (name, host, outcome, wait_s, run_s),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["h1", "h2"]),
    st.sampled_from(["passed", "failed", "timeout", "infra", "cancelled"]),
    SECONDS,
    SECONDS,
)


@settings(max_examples=30, deadline=None)
@given(st.lists(A_RUN, min_size=1, max_size=60))
def test_groups_are_what_one_counts_by_hand(store: Store, items: list[tuple[str, str, str, float, float]]) -> None:
    end_s = time.time() - 60
    runs = [
        Run(n, 1, name, "", host, "env", "amd64", "debian12", outcome, end_s - run - wait, end_s - run, end_s, end_s)
        for n, (name, host, outcome, wait, run) in enumerate(items, start=1)
    ]
    keep(store, runs)
    answer = Statistics(store).of(24, "worker", {"h1": 2, "h3": 1})
    assert answer["total"]["runs"] == len(runs)
    assert sum(group["runs"] for group in answer["groups"]) == len(runs)
    for group in answer["groups"]:
        mine = [item for item in items if item[0] == group["key"]]
        passed = sum(item[2] == "passed" for item in mine)
        failed = sum(item[2] in ("failed", "timeout") for item in mine)
        assert (group["runs"], group["passed"], group["failed"]) == (len(mine), passed, failed)
        assert group["success"] == (passed / (passed + failed) if passed + failed else None)
        for percent in (50, 95):
            assert group[f"wait_p{percent}_s"] == pytest.approx(
                percentile([item[3] for item in mine], percent), abs=1e-3
            )
            assert group[f"run_p{percent}_s"] == pytest.approx(
                percentile([item[4] for item in mine], percent), abs=1e-3
            )
    assert answer["slowest"][0]["run_s"] == pytest.approx(max(item[4] for item in items), abs=1e-3)
    assert sum(sum(bucket.values()) for bucket in answer["buckets"]) == len(runs)
    use = {item["host"]: item for item in answer["hosts"]}
    assert use["h3"] == {"host": "h3", "slots": 1, "busy_s": 0.0, "used": 0.0}
    for row in answer["flakiest"]:
        judged = [
            item[2] == "passed"
            for item in items
            if item[0] == row["key"] and item[2] in ("passed", "failed", "timeout")
        ]
        assert row["turns"] == sum(one != other for one, other in itertools.pairwise(judged)) > 0


def test_what_ended_before_is_not_counted(store: Store) -> None:
    old_s = time.time() - 7200
    keep(store, [Run(1, 1, "a", "", "h", "env", "amd64", "x", "passed", old_s - 2, old_s - 1, old_s, old_s)])
    assert Statistics(store).of(1, "host", {})["total"] is None
    assert Statistics(store).of(3, "host", {})["groups"][0]["key"] == "h"


def test_a_second_attempt_waits_since_the_end_of_the_first(tmp_path: Path) -> None:
    save = ev.SaveAttempt(
        job=1, spec=job_spec(), submitted_s=1000.0, placement=placement(2), result=result(Outcome.PASSED)
    )
    first = run_of(save, [], 0.0)
    second = run_of(save, [{"finished": views.instant(first.started_s - 3)}], 0.0)
    assert first.queued_s == 1000.0
    assert second.started_s - second.queued_s == pytest.approx(3)


def test_a_store_from_before_is_counted_too(tmp_path: Path) -> None:
    """Its records become runs when it is first opened, the same as those that are made from now on."""
    path = tmp_path / "master.db"
    connection = sqlite3.connect(path)
    for name in MIGRATIONS[:5]:
        connection.executescript(resources.files("biruda.master").joinpath("schema", name).read_text())
    connection.execute("PRAGMA user_version = 5")
    saves = [
        ev.SaveAttempt(
            job=job, spec=job_spec(), submitted_s=1000.0, placement=placement(attempt), result=result(Outcome.FAILED)
        )
        for job, attempt in ((1, 1), (1, 2), (2, 1))
    ]
    records: list[dict[str, Any]] = []
    wanted: list[Run] = []
    for save in saves:
        earlier = [record for record in records if record["job"] == save.job]
        records.append(views.attempt_record(save, earlier))
        wanted.append(run_of(save, earlier, save.result.finished_s))
        row = (save.job, save.placement.attempt, orjson.dumps(records[-1]))
        connection.execute("INSERT INTO attempts (job, attempt, record) VALUES (?, ?, ?)", row)
    connection.commit()
    connection.close()
    store = Store(path)
    rows = store.connect().execute(f"SELECT {', '.join(Run._fields)} FROM runs ORDER BY job, attempt").fetchall()
    store.close()
    assert [tuple(row)[:9] for row in rows] == [run[:9] for run in wanted]
    for row, run in zip(rows, wanted, strict=True):
        assert tuple(row)[9:] == pytest.approx(run[9:], abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(-1, 51))
def test_the_first_since_is_found(store: Store, times: list[int], since: int) -> None:
    keep(
        store, [Run(n, 1, "a", "", "h", "e", "amd64", "x", "passed", 0, 0, 0, at) for n, at in enumerate(sorted(times))]
    )
    connection = store.connect()
    first = first_since(connection.execute, since)
    wanted = [row[0] for row in connection.execute("SELECT id FROM runs WHERE recorded_s > ? ORDER BY id", (since,))]
    assert [row[0] for row in connection.execute("SELECT id FROM runs WHERE id >= ? ORDER BY id", (first,))] == wanted
