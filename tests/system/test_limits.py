"""Limits of jobs hold, end only the job, and do not stay with the worker."""

import os

import pytest

from tests.system.farm import RealFarm

HOG = "head -c 300000000 /dev/zero | tail -c 299999999 > /dev/null"


@pytest.mark.parametrize("env", ["host", "tiny"])
def test_memory_limit_ends_the_hog_and_not_the_worker(up: RealFarm, env: str) -> None:
    if os.getuid() != 0:
        pytest.skip("limits need root or a delegated control group")
    number = up.submit(f"{HOG}; echo status $?", env=env, recipe={"limits": {"memory_bytes": 100 << 20}})
    job = up.finished(number)
    assert job["outcome"] in ("passed", "failed"), job
    assert b"status 0" not in up.log(number)
    again = up.submit(f"{HOG} && echo fits", env=env)
    assert (up.finished(again)["outcome"], up.log(again)) == ("passed", b"fits\n")
    up.nothing_left()


def test_disk_limit_of_a_chroot(up: RealFarm) -> None:
    number = up.submit(
        "dd if=/dev/zero of=big bs=1M count=50; echo status $?", env="tiny", recipe={"limits": {"disk_bytes": 20 << 20}}
    )
    assert up.finished(number)["outcome"] == "passed"
    assert b"No space left" in up.log(number)
    assert b"status 1" in up.log(number)


def test_limit_that_cannot_be_held_is_refused_in_words(up: RealFarm) -> None:
    job = up.finished(up.submit("true", env="host", recipe={"limits": {"disk_bytes": 20 << 20}}))
    assert job["outcome"] == "environment"
    assert "disk" in job["reason"]


def test_time_limits_say_which(up: RealFarm) -> None:
    silent = up.finished(
        up.submit("echo a; sleep 100", env="tiny", recipe={"limits": {"silence_s": 0.3, "grace_s": 0.1}})
    )
    total = up.finished(up.submit("sleep 100", env="host", recipe={"limits": {"total_s": 0.3, "grace_s": 0.1}}))
    assert (silent["outcome"], total["outcome"]) == ("timeout", "timeout")
    assert "no output" in silent["reason"]
    assert "0.3 s" in total["reason"]
