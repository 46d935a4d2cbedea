"""Many short jobs: they wait in workers, and whatever dies, each ends once, with its own output."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.farm import RealFarm, farm, until

CONFIG = '[coordinator]\nslots = 2\n\n[[environment]]\nname = "host"\n'
COUNT = 300


@pytest.fixture
def short(tmp_path: Path) -> Iterator[RealFarm]:
    with farm(tmp_path / "h", CONFIG, "master", "coordinator") as real:
        submit(real, 60, "true")  # it has to be seen that they are short
        finished(real)
        yield real


def submit(real: RealFarm, count: int, script: str) -> list[int]:
    recipe = {"steps": [{"name": "one", "argv": ["/bin/sh", "-c", script]}]}
    numbers: list[int] = real.post("/api/v1/jobs", {"jobs": [{"recipe": recipe}] * count})["jobs"]
    return numbers


def finished(real: RealFarm) -> None:
    """Wait until every job has ended."""
    until("all have ended", lambda: not real.get("/api/v1/jobs?state=unfinished&limit=1")["jobs"])


def check(real: RealFarm, numbers: list[int], *, lost: int = 0) -> None:
    """All have passed with their own output; so many attempts were lost on the way."""
    finished(real)
    for number in numbers:
        job = real.job(number)
        assert (job["outcome"], job["log"]["complete"]) == ("passed", True), job
        lost -= len(job["attempts"])  # those that were sent and had not begun are none
        assert lost >= 0, job
        assert (real.home / "spool" / f"{job['spool']}.log").read_bytes() == b"%d\n" % number
    real.nothing_left()


def waiting_in_workers(real: RealFarm) -> int:
    """Lines of the ledger that give an attempt which has not begun."""
    text = (real.home / "coordinator" / "ledger").read_text()
    return text.count('"started_s":0.0')


def test_short_jobs_wait_in_their_workers(short: RealFarm) -> None:
    numbers = submit(short, COUNT, "echo $BIRUDA_JOB")
    check(short, numbers)
    assert waiting_in_workers(short) > COUNT / 4


@pytest.mark.parametrize("role", ["coordinator", "master"])
def test_a_daemon_that_is_killed_among_short_jobs(short: RealFarm, role: str) -> None:
    numbers = submit(short, COUNT, "echo $BIRUDA_JOB; sleep 0.005")
    short.finished(numbers[20])
    short.daemons[role].kill()
    short.start(role)
    check(short, numbers)


def test_a_worker_that_is_killed_among_short_jobs(short: RealFarm) -> None:
    numbers = submit(short, COUNT, "echo $BIRUDA_JOB; sleep 0.005")
    short.finished(numbers[20])
    for pid in short.worker_pids():
        if Path(f"/proc/{pid}/comm").read_text().startswith("worker"):
            os.kill(pid, signal.SIGKILL)
            break
    check(short, numbers, lost=1)


def test_what_waits_behind_a_long_job_is_taken_back(short: RealFarm) -> None:
    gate = short.home / "gate"
    long = short.get("/api/v1/jobs?limit=1")["jobs"][0]["job"] + 30
    waits = f"until [ -e {gate} ]; do sleep 0.02; done"
    numbers = submit(short, 60, f"if [ $BIRUDA_JOB = {long} ]; then {waits}; fi; echo $BIRUDA_JOB")
    for number in numbers:
        if number != long:
            short.finished(number)
    assert short.job(long)["state"] == "running"
    gate.touch()
    check(short, numbers)


def test_cancelled_short_jobs_end_at_once_and_the_others_go_on(short: RealFarm) -> None:
    gate = short.home / "gate"
    numbers = submit(short, 20, f"until [ -e {gate} ]; do sleep 0.02; done; echo $BIRUDA_JOB")
    for number in numbers[10:]:
        short.post(f"/api/v1/jobs/{number}/cancel", {})
    for number in numbers[10:]:
        assert short.finished(number)["outcome"] == "cancelled"
    gate.touch()
    check(short, numbers[:10])
