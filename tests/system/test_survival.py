"""Whatever dies in the middle of a job, it ends once, with its right outcome and its whole log; nothing is left."""

import hashlib
import os
import re
import signal
from pathlib import Path

import pytest

from tests.system.farm import RealFarm, farm, until

TALK = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo end"
TALKED = b"".join(b"line %d\n" % number for number in range(300)) + b"end\n"


def assert_whole(real: RealFarm, number: int, expected: bytes = TALKED) -> None:
    job = real.finished(number)
    assert job["outcome"] == "passed", job
    assert job["log"] == {
        **job["log"],
        "complete": True,
        "bytes": len(expected),
        "sha256": hashlib.sha256(expected).hexdigest(),
    }
    assert (Path(real.home) / "spool" / f"{job['spool']}.log").read_bytes() == expected


@pytest.mark.parametrize("env", ["host", "tiny"])
def test_job_goes_on_when_the_master_is_killed(apart: RealFarm, env: str) -> None:
    number = apart.submit(TALK, env=env)
    apart.log_has(number, b"line 20\n")
    apart.daemons["master"].kill()
    apart.start("master")
    assert_whole(apart, number)
    assert apart.job(number)["attempt"] == 1, (
        apart.job(number)["attempts"],
        apart.daemons["coordinator"].log.read_text()[-1500:],
    )
    apart.nothing_left()


@pytest.mark.parametrize("env", ["host", "tiny"])
def test_job_goes_on_when_the_coordinator_is_killed(apart: RealFarm, env: str) -> None:
    number = apart.submit(TALK, env=env)
    apart.log_has(number, b"line 20\n")
    apart.daemons["coordinator"].kill()
    apart.start("coordinator")
    assert_whole(apart, number)
    assert apart.job(number)["attempt"] == 1, (
        apart.job(number)["attempts"],
        apart.daemons["coordinator"].log.read_text()[-1500:],
    )
    apart.nothing_left()


@pytest.mark.parametrize("env", ["host", "tiny"])
def test_job_goes_on_when_both_are_killed_in_one_process(up: RealFarm, env: str) -> None:
    number = up.submit(TALK, env=env)
    up.log_has(number, b"line 20\n")
    up.daemons["up"].kill()
    up.start()
    assert_whole(up, number)
    assert up.job(number)["attempt"] == 1
    up.nothing_left()


def test_job_that_ends_while_nobody_is_there_is_not_run_again(apart: RealFarm, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    number = apart.submit(f"echo before; sleep 0.3; echo ran >> {mark}; echo after", env="host")
    apart.log_has(number, b"before")
    apart.daemons["coordinator"].kill()
    apart.daemons["master"].kill()
    until("the job has run", mark.exists)
    apart.start("master")
    apart.start("coordinator")
    assert_whole(apart, number, b"before\nafter\n")
    assert mark.read_text() == "ran\n"
    apart.nothing_left()


def test_job_whose_log_was_removed_from_the_outbox_ends_and_says_so(apart: RealFarm, tmp_path: Path) -> None:
    number = apart.submit(f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo second", env="host")
    apart.log_has(number, b"first\n")
    apart.daemons["master"].kill()
    (tmp_path / "go").touch()
    log = apart.home / "coordinator" / "outbox" / f"{number}.1.log"
    until("its log is in the outbox", log.exists)
    apart.daemons["coordinator"].kill()
    log.unlink()
    apart.start("master")
    apart.start("coordinator")
    job = apart.finished(number)
    assert (job["outcome"], job["log"]["complete"], job["log"]["bytes"]) == ("passed", False, len(b"first\n"))
    apart.nothing_left()


def test_restart_of_both_by_term_costs_no_build(apart: RealFarm) -> None:
    number = apart.submit(TALK, env="tiny")
    apart.log_has(number, b"line 20\n")
    for role in ("coordinator", "master"):
        apart.daemons[role].kill(signal.SIGTERM)
    for role in ("master", "coordinator"):
        apart.start(role)
    assert_whole(apart, number)
    assert apart.job(number)["attempt"] == 1, (
        apart.job(number)["attempts"],
        apart.daemons["coordinator"].log.read_text()[-1500:],
    )


def _worker_of(real: RealFarm, number: int) -> int:
    """The pid of the process that prints; its parent is the worker."""
    match = re.search(rb"my parent is (\d+)", real.log(number))
    assert match is not None
    return int(match[1])


def test_killed_worker_is_infra_and_its_job_runs_again(up: RealFarm, tmp_path: Path) -> None:
    once = tmp_path / "once"
    first = f"touch {once}; setsid sleep 1000 & sleep 1000"
    script = f"echo my parent is $PPID; if [ -e {once} ]; then echo second; else {first}; fi"
    number = up.submit(script, env="host")
    up.log_has(number, b"my parent")
    until("the job waits", once.exists)
    os.kill(_worker_of(up, number), signal.SIGKILL)
    job = up.finished(number)
    assert (job["outcome"], job["attempt"], job["attempts"][0]["outcome"]) == ("passed", 2, "infra")
    assert b"second" in up.log(number)
    assert re.search(r"-\d+\.2$", job["spool"])
    assert up.log(number, 1).startswith(b"my parent is")
    up.nothing_left()


def test_a_job_whose_worker_always_dies_ends_as_infra(up: RealFarm) -> None:
    number = up.submit("kill -9 $PPID; sleep 1000", env="host", retries=1)
    job = up.finished(number)
    assert (job["outcome"], job["attempt"]) == ("infra", 2)
    up.nothing_left()


@pytest.mark.slow
def test_a_coordinator_starts_although_its_workers_do_not_answer(apart: RealFarm) -> None:
    script = "echo my parent is $PPID; [ $BIRUDA_ATTEMPT = 2 ] || sleep 1000"
    numbers = [apart.submit(script, env=env) for env in ("host", "tiny")]
    for number in numbers:
        apart.log_has(number, b"my parent")
    stopped = [pid for pid in apart.worker_pids() if b"spawners.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    apart.daemons["coordinator"].kill()
    apart.start("coordinator")
    assert "Traceback" not in apart.daemons["coordinator"].log.read_text()
    for number in numbers:
        job = apart.finished(number)
        assert (job["outcome"], job["attempt"], job["attempts"][0]["outcome"]) == ("passed", 2, "infra")
    apart.nothing_left()


def test_killed_zygote_costs_nothing(up: RealFarm) -> None:
    number = up.submit(TALK, env="tiny")
    up.log_has(number, b"line 5\n")
    zygotes = [
        int(pid)
        for pid in Path(f"/proc/{up.daemons['up'].process.pid}/task/{up.daemons['up'].process.pid}/children")
        .read_text()
        .split()
    ]
    assert zygotes
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)
    assert_whole(up, number)
    assert up.finished(up.submit("echo again", env="tiny"))["outcome"] == "passed"
    up.nothing_left()


@pytest.mark.parametrize("env", ["host", "tiny"])
def test_worker_ends_itself_when_its_lease_is_over(tmp_path: Path, busybox_root: Path, env: str) -> None:
    from tests.system.conftest import CONFIG

    config = "[master]\nlease_s = 2\n" + CONFIG.format(root=busybox_root)
    with farm(tmp_path / "h", config, "master", "coordinator") as real:
        number = real.submit("echo here; (setsid sleep 1000 &) ; sleep 1000", env=env, retries=0)
        real.log_has(number, b"here")
        real.daemons["coordinator"].kill()
        until("every process and cgroup of it is gone", lambda: not real.worker_pids() and not real.cgroups(), 20)
        job = real.finished(number)
        assert job["outcome"] == "infra"
        assert "no contact" in job["reason"]
        real.start("coordinator")
        assert real.finished(real.submit("echo on", env=env))["outcome"] == "passed"
        real.nothing_left()


def test_thread_attempt_ends_with_the_process_and_runs_again(up: RealFarm, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    number = up.submit(
        f"echo pid $$; if [ -e {mark} ]; then echo second; else touch {mark}; sleep 1000; fi", env="thread"
    )
    up.log_has(number, b"pid")
    until("it waits", mark.exists)
    pid = int(up.log(number).split()[1])
    up.daemons["up"].kill()
    until("its process is gone", lambda: not Path(f"/proc/{pid}").exists(), 10)
    up.start()
    job = up.finished(number)
    assert (job["outcome"], job["attempt"]) == ("passed", 2)
    up.nothing_left()


@pytest.mark.parametrize("env", ["host", "tiny", "thread"])
def test_cancelled_job_leaves_no_process(up: RealFarm, env: str) -> None:
    number = up.submit(
        "echo here; (setsid sleep 1000 &); trap '' TERM; sleep 1000; sleep 1000",
        env=env,
        recipe={"limits": {"grace_s": 0.3}},
    )
    up.log_has(number, b"here")
    up.post(f"/api/v1/jobs/{number}/cancel", {"reason": "not needed"})
    job = up.finished(number)
    assert (job["outcome"], job["reason"]) == ("cancelled", "not needed")
    up.nothing_left()


def test_fork_bomb_is_confirmed_dead(up: RealFarm) -> None:
    bomb = "echo here; b() { b | b & }; b; sleep 1000"
    number = up.submit(bomb, env="tiny", recipe={"limits": {"pids": 60, "grace_s": 0.1}})
    up.log_has(number, b"here")
    up.post(f"/api/v1/jobs/{number}/cancel", {})
    assert up.finished(number)["outcome"] == "cancelled"
    up.nothing_left()
