"""The list of all jobs, against what going through them one by one would give."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.master import events as ev
from biruda.master import store as store_module
from biruda.master import views
from biruda.master.joblist import Filter, JobList, parsed_filter
from biruda.master.requests import InvalidRequest
from biruda.master.store import Published, Store
from biruda.model import Outcome
from tests.fakes import environment, job_spec

NAMES = ("curl", "Curl-tests", "hello", "")
HOSTS = ("alder", "birch")
OUTCOMES = (Outcome.PASSED, Outcome.FAILED, Outcome.INFRA)


def saves(job: int) -> list[ev.Save | Published]:
    """A job of some kind, as far as it has come: by its number."""
    spec = replace(
        job_spec(), name=NAMES[job % 4], user=("ann", "bob")[job % 2], worker="web" if job % 5 == 0 else None
    )
    done: list[ev.Save | Published] = [
        ev.SaveQueued(job=job, spec=spec, submitted_s=1000.0 + job, last_attempt=0, infra_failures=0)
    ]
    if job % 7 == 0:
        return done
    place = ev.Placement(
        attempt=1,
        host=HOSTS[job % 2],
        environment=environment(f"env{job % 3}", arch=("amd64", "arm64")[job % 2]),
        assigned_s=1000.0 + job,
        started_s=None if job % 7 == 1 else 1001.0 + job,
    )
    done.append(ev.SavePlaced(job=job, placement=place, cancelling=""))
    if job % 7 > 2:
        outcome = OUTCOMES[job % 3]
        done.append(
            ev.SaveFinished(
                job=job,
                spec=spec,
                submitted_s=1000.0 + job,
                finished_s=1002.0 + job,
                attempt=1,
                outcome=outcome,
                exit_status=job % 3,
                reason="",
            )
        )
    return done


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "master.db")
    opened.apply([save for job in range(1, 101) for save in saves(job)], 1)
    yield opened
    opened.close()


def fits(row: dict[str, Any], wanted: Filter) -> bool:
    states = {"": {row["state"]}, "unfinished": {"waiting", "running"}}
    return (
        row["state"] in states.get(wanted.state, {wanted.state})
        and wanted.name.lower() in row["name"].lower()
        and all(
            not getattr(wanted, name) or (row[name] or "") in getattr(wanted, name).split(",")
            for name in ("outcome", "worker", "user", "host", "environment", "arch", "platform")
        )
    )


FILTERS = st.builds(
    Filter,
    state=st.sampled_from(["", "waiting", "running", "finished", "unfinished"]),
    outcome=st.sampled_from(["", "passed", "failed,infra", "' OR 1"]),
    name=st.sampled_from(["", "curl", "%", "TEST"]),
    worker=st.sampled_from(["", "web"]),
    user=st.sampled_from(["", "ann"]),
    host=st.sampled_from(["", "alder", "alder,birch"]),
    environment=st.sampled_from(["", "env1"]),
    arch=st.sampled_from(["", "arm64"]),
    platform=st.sampled_from(["", "debian12", "none"]),
)


@given(
    wanted=FILTERS,
    before=st.none() | st.integers(1, 110),
    after=st.none() | st.integers(0, 100),
    limit=st.integers(1, 9),
)
@settings(deadline=None, max_examples=150)
def test_a_page_has_the_newest_that_fit(wanted: Filter, before: int | None, after: int | None, limit: int) -> None:
    listed = JobList(SHARED)
    rows = listed._rows(list(range(1, 101)))
    assert [row["job"] for row in rows] == list(range(100, 0, -1))
    expected = [row["job"] for row in rows if fits(row, wanted)]
    assert listed._count(wanted) == len(expected)
    between = [job for job in expected if (before is None or job < before) and (after is None or job > after)]
    assert listed._numbers(wanted, before, after, limit) == between[:limit]
    listed._connection.close()


@pytest.fixture(autouse=True, scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One store for all examples of the property: reading changes nothing in it."""
    global SHARED
    SHARED = Store(tmp_path_factory.mktemp("list") / "master.db")
    SHARED.apply([save for job in range(1, 101) for save in saves(job)], 1)
    yield
    SHARED.close()


SHARED: Store


async def test_a_row_has_what_the_list_shows(store: Store) -> None:
    listed = JobList(store)
    waiting, finished = await listed.rows([6, 7])
    assert finished == {
        "job": 6, "state": "finished", "name": "hello", "user": "ann", "worker": None, "arch": "amd64",
        "platform": "debian12", "host": "alder", "environment": "env0", "outcome": "passed", "exit_status": 0,
        "reason": "", "submitted": "1970-01-01T00:16:46.000000Z", "started": "1970-01-01T00:16:47.000000Z",
        "finished": "1970-01-01T00:16:48.000000Z", "attempt": 1, "cancelling": False,
    }  # fmt: skip
    assert (waiting["state"], waiting["host"], waiting["started"], waiting["attempt"]) == ("waiting", None, None, None)


async def test_times_narrow_the_list(store: Store) -> None:
    listed = JobList(store)
    since = Filter(since="1970-01-01T00:17:20Z", until="1970-01-01T00:17:25Z")  # 1040 s and 1045 s
    assert await listed.numbers(since, limit=10) == [44, 43, 42, 41, 40]
    assert await listed.numbers(Filter(since="1h"), limit=10) == []
    assert len(await listed.numbers(Filter(until="1d"), limit=1000)) == 100
    for wrong in ("yesterday", "1y", "12"):
        with pytest.raises(InvalidRequest, match="no instant"):
            await listed.numbers(Filter(since=wrong), limit=10)


async def test_a_job_that_runs_again_has_no_place_until_it_has_one(store: Store) -> None:
    listed = JobList(store)
    (row,) = await listed.rows([6])
    assert row["host"] == "alder"
    store.apply([ev.SaveQueued(job=6, spec=job_spec(), submitted_s=1006.0, last_attempt=1, infra_failures=0)], 10_000)
    (row,) = await listed.rows([6])
    assert (row["host"], row["started"], row["finished"], row["state"]) == (None, None, None, "waiting")


async def test_the_last_that_passed_is_of_the_same_name_and_place(store: Store) -> None:
    listed = JobList(store)
    passed = [row for row in await listed.rows(list(range(1, 101))) if row["outcome"] == "passed" and not row["worker"]]
    newest = passed[0]
    same = [r for r in passed if (r["name"], r["environment"]) == (newest["name"], newest["environment"])]
    found = await listed.last_passed(newest["job"], newest["name"], newest["environment"], "")
    assert found == (same[1]["job"], 1)
    assert await listed.last_passed(newest["job"], "no such", newest["environment"], "") is None


@pytest.mark.parametrize("query", [{"state": "odd"}, {"jobs": "1,x"}, {"jobs": ""}, {"jobs": ",".join(["1"] * 1001)}])
def test_a_filter_that_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parsed_filter(query)


def test_jobs_of_an_older_store_get_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made with the schema before, filled, opened with this one."""
    path = tmp_path / "master.db"
    newest = store_module.MIGRATIONS
    before = newest[: newest.index("0004.sql")]
    monkeypatch.setattr(store_module, "MIGRATIONS", before)
    old = Store(path)
    spec = orjson.dumps(replace(job_spec(), name="old", user="ann"))
    place = ev.Placement(attempt=1, host="alder", environment=environment("env1"), assigned_s=1.0, started_s=1500.25)
    record = views.placed_view(1, job_spec(), 1000.0, place)
    execute = old.connect().execute
    execute(
        "INSERT INTO jobs VALUES (1, 'finished', 'old', '', 'passed', 0, '', 1000.0, 2000.0, 1, 0, '', ?, NULL)",
        (spec,),
    )
    execute("INSERT INTO attempts VALUES (1, 1, ?)", (orjson.dumps(record),))
    execute(
        "INSERT INTO jobs VALUES (2, 'running', 'old', '', '', NULL, '', 1000.0, NULL, 1, 0, '', ?, ?)",
        (spec, orjson.dumps(place)),
    )
    old.close()
    monkeypatch.setattr(store_module, "MIGRATIONS", newest)
    opened = Store(path)
    rows = JobList(opened)._rows([1, 2])
    for row in rows:
        assert (row["user"], row["host"], row["environment"], row["arch"]) == ("ann", "alder", "env1", "amd64")
        assert row["started"] == "1970-01-01T00:25:00.250000Z"
    opened.close()
