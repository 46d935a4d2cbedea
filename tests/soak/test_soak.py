"""The soak itself: its checker sees what is wrong, whoever did it, and two rounds of it are clean."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.soak import checker as checker_file
from tests.soak.places import SOURCE

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def soak(*options: str) -> tuple[int, str]:
    """Its exit status and what it said."""
    argv = [sys.executable, "-m", "tests.soak", "--quick", *options]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two clean rounds have left."""
    directory = tmp_path_factory.mktemp("kept")
    status, said = soak("--seed=4", "--rounds=2", f"--keep={directory}", "--keep-all")
    assert status == 0, said
    return directory / "4"


@pytest.mark.parametrize(
    ("plant", "options", "finding"),
    [
        ("drop-frame", ("--seed=5", "--most-faults=0"), '"what": "log"'),
        ("ack-early", ("--seed=15", "--only=kill master"), '"what": "lost"'),  # four kills, each soon after a submit
        ("skip-reap", ("--seed=5", "--most-faults=0"), '"what": "left"'),
    ],
)
def test_what_biruda_does_wrong_is_found(plant: str, options: tuple[str, ...], finding: str) -> None:
    status, said = soak("--rounds=1", "--settle-s=5", f"--plant={plant}", *options)
    assert status == 1, said
    assert finding in said
    assert "make soak" in said.partition("replay: ")[2].partition("\n")[0]


# What the checker says of files that somebody has changed.


class Kept:
    """A copy of what a farm left, to be damaged."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: dict[str, Any] = json.loads((directory / "facts.json").read_text())
        self.spool = directory / "m" / "spool"
        (self.spool / ".partial").mkdir(exist_ok=True)
        self.facts |= {
            "db": str(directory / "m" / "master.db"),
            "spool": str(self.spool),
            "events": str(directory / "events"),
            "witness": str(directory / "witness"),
            "logs": {str(directory / "log-m"): 0},
            "hosts": {},
            "homes": [],
            "temporary": [],
            "docker": "",
            "stopped": False,
            "settle_s": 0,
            "machine_is_ours": False,
        }

    def sql(self, statement: str) -> None:
        base = sqlite3.connect(self.directory / "m" / "master.db")
        base.execute(statement)
        base.commit()
        base.close()

    def log(self) -> Path:
        """The longest log."""
        return max(self.spool.glob("*.log"), key=lambda path: path.stat().st_size)

    def check(self) -> set[str]:
        """What kinds of findings there are."""
        (self.directory / "facts.json").write_text(json.dumps(self.facts))
        argv = [sys.executable, "-I", checker_file.__file__, str(self.directory / "facts.json")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        kinds = {json.loads(line)["what"] for line in done.stdout.splitlines()}
        assert done.returncode == (1 if kinds else 0)
        return kinds


def cut(one: Kept) -> None:
    log = one.log()
    log.write_bytes(log.read_bytes()[:-1])


def doubled(one: Kept) -> None:
    log = one.log()
    log.write_bytes(log.read_bytes() * 2)


def flipped(one: Kept) -> None:
    log = one.log()
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)


def artifact_of(one: Kept) -> Path:
    return max((path for path in one.spool.rglob("file *") if path.is_file()), key=lambda path: path.stat().st_size)


def artifact_changed(one: Kept) -> None:
    path = artifact_of(one)
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def corrupted(one: Kept) -> None:
    base = sqlite3.connect(one.directory / "m" / "master.db")
    base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    base.execute("PRAGMA writable_schema = ON")
    base.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'outcome, job', 'job, outcome') WHERE name LIKE 'jobs_by_o%'"
    )
    base.commit()
    base.close()


def ended_twice(one: Kept) -> None:
    base = sqlite3.connect(one.directory / "m" / "master.db")
    batches = [json.loads(events) for (events,) in base.execute("SELECT events FROM event_batches ORDER BY last_id")]
    end = next(event for batch in batches for event in batch if event[1] == "job.finished")
    last = sum(len(batch) for batch in batches) + 1
    base.execute("INSERT INTO event_batches VALUES (?, ?, ?)", (last, last, json.dumps([end]).encode()))
    base.commit()
    base.close()


DAMAGES: dict[str, tuple[Callable[[Kept], object], str]] = {
    "a log is cut": (cut, "log"),
    "a log is doubled": (doubled, "log"),
    "a bit of a log is flipped": (flipped, "log"),
    "a log is gone": (lambda one: one.log().unlink(), "log"),
    "a result is gone": (lambda one: next(one.spool.glob("*.json")).unlink(), "spool"),
    "a file has no name": (lambda one: (one.spool / "x.log").touch(), "spool"),
    "a file is of no attempt": (lambda one: (one.spool / "amd64-debian12-a-99999.log").touch(), "spool"),
    "something came in and stayed": (lambda one: (one.spool / ".partial" / "1.1.log").touch(), "left"),
    "an artifact is another": (artifact_changed, "artifact"),
    "an artifact is gone": (lambda one: artifact_of(one).unlink(), "artifact"),
    "a job is gone": (lambda one: one.sql("DELETE FROM jobs WHERE job = 3"), "lost"),
    "a job has not ended": (lambda one: one.sql("UPDATE jobs SET state = 'running' WHERE job = 3"), "lost"),
    "a job is another": (lambda one: one.sql("UPDATE jobs SET name = 'x' WHERE job = 3"), "lost"),
    "an outcome is another": (
        lambda one: one.sql("UPDATE jobs SET outcome = 'timeout' WHERE job = (SELECT max(job) FROM jobs)"),
        "outcome",
    ),
    "an exit status is another": (lambda one: one.sql("UPDATE jobs SET exit_status = exit_status + 1"), "outcome"),
    "an attempt is doubled": (
        lambda one: one.sql(
            "INSERT INTO attempts SELECT job, attempt + 1, record FROM attempts ORDER BY job DESC LIMIT 1"
        ),
        "store",
    ),
    "an attempt ran twice": (
        lambda one: (one.directory / "witness").write_text((one.directory / "witness").read_text() * 2),
        "doubled",
    ),
    "events are gone": (
        lambda one: one.sql(
            "DELETE FROM event_batches WHERE last_id = (SELECT last_id FROM event_batches LIMIT 1 OFFSET 5)"
        ),
        "events",
    ),
    "a job ended twice": (ended_twice, "events"),
    "the watcher missed an event": (lambda one: one.facts["gaps"].append("after event 3 came 5"), "events"),
    "the store's index is wrong": (corrupted, "store"),
    "a daemon failed": (lambda one: (one.directory / "log-m").write_text("Traceback (most recent call last)"), "fault"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_changed_afterwards_is_found(kept: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    one = Kept(tmp_path / "kept")
    assert one.check() == set()
    damage, finding = DAMAGES[name]
    damage(one)
    assert finding in one.check()


def test_the_checker_shares_no_code_with_what_it_checks() -> None:
    argv = [sys.executable, "-I", "-c", "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"]
    loaded = subprocess.run([*argv, checker_file.__file__], capture_output=True, text=True, check=True, cwd=os.sep)
    assert not {name for name in loaded.stdout.split() if name.partition(".")[0] in ("biruda", "tests", "orjson")}
