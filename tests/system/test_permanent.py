"""A permanent environment keeps its workers, and what jobs change there; logs and outcomes are as elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.farm import RealFarm, farm, until

LONG = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done"
LONG_LOG = b"".join(b"line %d\n" % number for number in range(5000))


@pytest.fixture
def node(tmp_path: Path, busybox_root: Path) -> Iterator[RealFarm]:
    config = f"""
[coordinator]
slots = 1

[[environment]]
name = "node"
kind = "chroot"
root = "{busybox_root}"
permanent = true
"""
    with farm(tmp_path / "h", config, "master", "coordinator") as real:
        yield real


def test_a_permanent_node_stays_up_and_takes_job_after_job(node: RealFarm) -> None:
    first = node.submit("echo mark > /mark; echo $$ > inside", env="node")
    assert node.finished(first)["outcome"] == "passed"
    workers = until("its worker is the only one", lambda: len(node.worker_pids()) == 1 and node.worker_pids())
    for number in [node.submit(f"cat /mark; ls; {LONG}", env="node") for _ in range(3)]:
        job = node.finished(number)
        assert (job["outcome"], job["log"]["complete"]) == ("passed", True)
        assert node.log(number) == b"mark\n" + LONG_LOG  # the work directory is new, the rest is as it was left
    until("its worker is the only one again", lambda: node.worker_pids() == workers)
    node.nothing_left()


def test_its_job_goes_on_when_the_coordinator_is_killed(node: RealFarm) -> None:
    number = node.submit(f"echo first; sleep 3; {LONG}", env="node")
    node.log_has(number, b"first\n")
    node.daemons["coordinator"].kill()
    node.start("coordinator")
    job = node.finished(number)
    assert (job["outcome"], job["attempt"], job["log"]["complete"]) == ("passed", 1, True)
    assert node.log(number) == b"first\n" + LONG_LOG
    again = node.submit("echo again", env="node")
    assert node.finished(again)["outcome"] == "passed"


def test_what_a_job_left_running_is_gone_before_the_next(node: RealFarm) -> None:
    number = node.submit("setsid sleep 1000 & echo started", env="node")
    assert node.finished(number)["outcome"] == "passed"
    after = node.submit("ps | grep -c '[s]leep 1000' || true", env="node")
    assert node.finished(after)["outcome"] == "passed"
    assert node.log(after) == b"0\n"
