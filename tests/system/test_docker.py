"""Jobs in containers: with a daemon of the tests' own, the static worker and real images."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dockerd import Dockerd, docker_daemon, need_worker
from tests.system.farm import RealFarm, farm, until
from tests.system.test_survival import TALK, assert_whole

IMAGE = "biruda-tests/tiny"

CONFIG = """
[coordinator]
docker_socket = "{socket}"
slots = 4

[[environment]]
name = "box"
kind = "docker"
image = "biruda-tests/tiny"
"""


@pytest.fixture(scope="module")
def dockerd(busybox_root: Path) -> Iterator[Dockerd]:
    need_worker()
    with docker_daemon() as daemon:
        daemon.import_tree(busybox_root, IMAGE, "ENV GREETING=moin", "ENV PATH=/opt/bin:/bin")
        yield daemon
        assert daemon.containers() == []


def config_of(dockerd: Dockerd, more: str = "") -> str:
    return CONFIG.format(socket=dockerd.socket) + more


def no_container_left(dockerd: Dockerd) -> None:
    """Wait until none is there."""
    try:
        until("no container is left", lambda: not dockerd.containers(), 15)
    except AssertionError:
        left = [(each["Names"], each["State"], each["Status"]) for each in dockerd.containers()]
        raise AssertionError(f"containers are left: {left}") from None


@pytest.fixture
def up(tmp_path: Path, dockerd: Dockerd) -> Iterator[RealFarm]:
    with farm(tmp_path / "h", config_of(dockerd)) as real:
        yield real
    no_container_left(dockerd)


@pytest.fixture
def apart(tmp_path: Path, dockerd: Dockerd) -> Iterator[RealFarm]:
    with farm(tmp_path / "h", config_of(dockerd), "master", "coordinator") as real:
        yield real
    no_container_left(dockerd)


def attempts_of(dockerd: Dockerd, real: RealFarm) -> list[str]:
    """The ids of containers that have an attempt."""
    given = {}
    for line in (real.home / "coordinator" / "ledger").read_text().splitlines():
        record = json.loads(line)
        if record["is"] == "given":
            given[record["worker"]] = record["given"] is not None
    return [each["Id"] for each in dockerd.containers() if given.get(each["Labels"]["biruda.worker"])]


def test_a_job_runs_in_a_container(up: RealFarm) -> None:
    number = up.submit("echo $GREETING from $(hostname) as $(id -u) in $PWD; echo $PATH; cat /proc/1/comm", env="box")
    job = up.finished(number)
    assert job["outcome"] == "passed", job
    assert up.log(number) == b"moin from box as 0 in /build\n/opt/bin:/bin\n.biruda\n"
    (shown,) = [each for each in up.get("/api/v1/environments")["environments"] if each["name"] == "box"]
    assert (shown["kind"], shown["platform"], shown["usable"]) == ("docker", "busybox1.35", True)
    assert re.search(rf"image {IMAGE}: sha256:[0-9a-f]{{64}}", " ".join(shown["evidence"]))


def test_nothing_of_the_network_is_there_by_default(up: RealFarm) -> None:
    number = up.submit("ip -o link | wc -l; grep -c : /proc/net/dev", env="box")
    assert up.finished(number)["outcome"] == "passed"
    assert up.log(number).split()[0] == b"1"


def test_each_job_finds_the_image_as_it_was(up: RealFarm) -> None:
    for _ in range(3):
        number = up.submit("ls /new 2>/dev/null; echo x > /new; ls /new", env="box")
        assert up.finished(number)["outcome"] == "passed"
        assert up.log(number) == b"/new\n"


def test_a_large_log_is_whole(up: RealFarm) -> None:
    number = up.submit(
        "dd if=/dev/urandom of=r bs=1M count=8; for i in 1 2 3 4 5 6 7 8; do cat r; done; sha256sum r >&2", env="box"
    )
    began_s = time.monotonic()
    job = up.finished(number)
    took_s = time.monotonic() - began_s
    assert job["outcome"] == "passed"
    log = (up.home / "spool" / f"{job['spool']}.log").read_bytes()
    assert len(log) > 64 << 20
    assert job["log"]["sha256"] == hashlib.sha256(log).hexdigest()
    assert job["log"]["complete"]
    print(f"{len(log) / took_s / 1e6:.0f} MB/s to the spool")


def test_job_goes_on_when_the_coordinator_is_killed(apart: RealFarm) -> None:
    number = apart.submit(TALK, env="box")
    apart.log_has(number, b"line 20\n")
    apart.daemons["coordinator"].kill()
    apart.start("coordinator")
    assert_whole(apart, number)
    assert apart.job(number)["attempt"] == 1, apart.daemons["coordinator"].log.read_text()[-1500:]
    apart.nothing_left()


def test_a_flood_goes_on_byte_by_byte_when_the_coordinator_is_killed(apart: RealFarm) -> None:
    flood = (
        "i=0; while [ $i -lt 16 ]; do dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' x; echo $i; i=$((i+1)); done"
    )
    expected = b"".join(b"x" * (1 << 20) + b"%d\n" % number for number in range(16))
    number = apart.submit(flood, env="box")
    for pause in (b"0\n", b"1\n"):
        apart.log_has(number, pause)
        apart.daemons["coordinator"].kill()
        apart.start("coordinator")
    assert_whole(apart, number, expected)
    assert apart.job(number)["attempt"] == 1
    apart.nothing_left()


def test_job_goes_on_when_both_are_killed_in_one_process(up: RealFarm) -> None:
    number = up.submit(TALK, env="box")
    up.log_has(number, b"line 20\n")
    up.daemons["up"].kill()
    up.start()
    assert_whole(up, number)
    assert up.job(number)["attempt"] == 1
    up.nothing_left()


def test_job_that_ends_while_nobody_is_there_is_not_run_again(apart: RealFarm, dockerd: Dockerd) -> None:
    number = apart.submit("echo before; sleep 1; echo after", env="box")
    apart.log_has(number, b"before")
    apart.daemons["coordinator"].kill()
    time.sleep(1.5)  # the step ends where nobody can see it
    apart.start("coordinator")
    assert_whole(apart, number, b"before\nafter\n")
    assert apart.job(number)["attempt"] == 1


def test_nothing_is_left_when_the_lease_is_over(tmp_path: Path, dockerd: Dockerd) -> None:
    config = "[master]\nlease_s = 2\n" + config_of(dockerd)
    with farm(tmp_path / "h", config, "master", "coordinator") as real:
        number = real.submit("echo here; (setsid sleep 1000 &) ; sleep 5; echo still; sleep 1000", env="box", retries=0)
        real.log_has(number, b"still")  # longer than the lease: the coordinator is heard within it
        (container,) = attempts_of(dockerd, real)
        real.daemons["coordinator"].kill()
        began_s = time.monotonic()
        until("its container is gone", lambda: container not in [each["Id"] for each in dockerd.containers()], 20)
        assert time.monotonic() - began_s < 6
        assert real.finished(number)["outcome"] == "infra"
        real.start("coordinator")
        assert real.finished(real.submit("echo on", env="box"))["outcome"] == "passed"
        real.nothing_left()
    no_container_left(dockerd)


def test_a_container_that_is_removed_behind_our_back_is_infra(up: RealFarm, dockerd: Dockerd, tmp_path: Path) -> None:
    number = up.submit("echo here; sleep 30", env="box")
    up.log_has(number, b"here")
    (container,) = attempts_of(dockerd, up)
    dockerd.request("DELETE", f"/containers/{container}?force=1")
    until("it is run again", lambda: up.job(number)["attempt"] == 2)
    assert up.job(number)["attempts"][0]["outcome"] == "infra"
    up.post(f"/api/v1/jobs/{number}/cancel", {})
    up.finished(number)
    up.nothing_left()


def test_cancelled_fork_bomb_is_dead(up: RealFarm) -> None:
    bomb = "echo here; b() { b | b & }; (b) & exec sleep 1000"
    number = up.submit(bomb, env="box", recipe={"limits": {"pids": 60, "grace_s": 0.1}})
    up.log_has(number, b"here")
    up.post(f"/api/v1/jobs/{number}/cancel", {})
    assert up.finished(number)["outcome"] == "cancelled"
    up.nothing_left()


def test_limits_of_a_job_are_held(up: RealFarm) -> None:
    hog = "echo begin; tail /dev/zero; echo status $?"
    number = up.submit(hog, env="box", recipe={"limits": {"memory_bytes": 64 << 20, "cpus": 0.5}})
    job = up.finished(number)
    assert job["outcome"] == "passed", job
    assert up.log(number) == b"begin\nKilled\nstatus 137\n"
    job = up.finished(up.submit("true", env="box", recipe={"limits": {"disk_bytes": 20 << 20}}))
    assert (job["outcome"], "disk space" in job["reason"]) == ("environment", True)


def test_environments_of_all_sorts(tmp_path: Path, dockerd: Dockerd) -> None:
    dockerd.import_tree(None, "biruda-tests/scratch")
    more = """
[[environment]]
name = "scratch"
kind = "docker"
image = "biruda-tests/scratch"

[[environment]]
name = "bounded"
kind = "docker"
image = "biruda-tests/tiny"
disk_bytes = "20 MiB"
memory_bytes = "256 MiB"
pids = 100
user = "1000"
hostname = "elsewhere"
binds = ["/etc/hostname:/mnt/name:ro"]

[[environment]]
name = "absent"
kind = "docker"
image = "biruda-tests/absent:1"
"""
    with farm(tmp_path / "h", config_of(dockerd, more)) as real:
        steps = [{"name": "itself", "argv": ["/.biruda", "--guess-env"]}]
        job = {"recipe": {"steps": steps}, "requirements": {"env": "scratch"}}
        number = real.post("/api/v1/jobs", {"jobs": [job]})["jobs"][0]
        assert real.finished(number)["outcome"] == "passed", real.log(number)
        assert b"amd64" in real.log(number)

        number = real.submit(
            "id -u; hostname; touch /root/x; touch f; dd if=/dev/zero of=big bs=1M count=50; echo status $?;"
            "cat /mnt/name; touch /mnt/name",
            env="bounded",
        )
        real.finished(number)
        said = real.log(number).decode()
        assert said.startswith("1000\nelsewhere\n"), said
        assert "/root/x: Read-only file system" in said
        assert "No space left on device" in said
        assert "status 1" in said

        shown = {each["name"]: each for each in real.get("/api/v1/environments")["environments"]}
        assert not shown["absent"]["usable"]
        assert "there is no image biruda-tests/absent:1 on this host; docker pull" in shown["absent"]["problem"]
    no_container_left(dockerd)


def images_of(dockerd: Dockerd) -> list[str]:
    """The names of images that `env build` made."""
    found = json.loads(dockerd.request("GET", "/images/json"))
    return [tag for each in found for tag in each["RepoTags"] or [] if tag.startswith("biruda-env/")]


def test_an_environment_is_built_from_a_tree_and_removed(up: RealFarm, dockerd: Dockerd, busybox_root: Path) -> None:
    done = up.command("env", "build", "Built.Tree", "--kind", "docker", "--directory", str(busybox_root))
    assert done.returncode == 0, done.stderr
    assert "biruda: making the image" in done.stderr
    (image,) = images_of(dockerd)
    assert re.fullmatch(r"biruda-env/[0-9a-f]{8}-built-tree:[0-9a-f]{24}", image)
    file = (up.home / "environments" / "Built.Tree" / "environment.toml").read_text()
    assert f'kind = "docker"\nimage = "{image}"\narch = "amd64"\n' in file
    assert not (up.home / "environments" / "Built.Tree" / "root").exists()
    number = up.submit("cat /etc/os-release", env="Built.Tree")
    assert up.finished(number)["outcome"] == "passed"
    assert b"ID=busybox" in up.log(number)
    done = up.command("env", "remove", "Built.Tree")
    assert done.returncode == 0, done.stderr
    assert images_of(dockerd) == []


def test_an_environment_is_built_from_an_image_by_name(up: RealFarm, dockerd: Dockerd) -> None:
    done = up.command("env", "build", "named", "--image", IMAGE)
    assert done.returncode == 0, done.stderr
    number = up.submit("echo $GREETING", env="named")
    assert up.finished(number)["outcome"] == "passed"
    assert up.log(number) == b"moin\n"
    done = up.command("env", "build", "named", "--image", IMAGE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 2)
    assert up.command("env", "remove", "named").returncode == 0
    assert IMAGE in str(json.loads(dockerd.request("GET", "/images/json")))  # which was there before

    done = up.command("env", "build", "nobody", "--image", "biruda-tests/no-such-image:1")
    assert done.returncode == 1
    assert "biruda: the image biruda-tests/no-such-image:1 cannot be pulled: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (up.home / "environments" / "nobody").exists()


def test_without_a_daemon_nothing_is_built(tmp_path: Path) -> None:
    lone = RealFarm(tmp_path / "h", f'[coordinator]\ndocker_socket = "{tmp_path}/nobody"\n')
    done = lone.command("env", "build", "x", "--image", "debian:12")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"biruda: no Docker daemon answers at {tmp_path}/nobody (no such file or directory)\n"
        "hint: install docker.io and start it, or set [coordinator] docker_socket\n"
    )


def test_a_source_pack_goes_in_and_artifacts_come_out(up: RealFarm, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data").write_bytes(os.urandom(3 << 20))
    (source / "run").write_text("#!/bin/sh\nsha256sum data\ncp data out.bin\n")
    (source / "run").chmod(0o755)
    done = up.command("run", "--on", "env=box", "--source", str(source), "--artifact", "*.bin", "--", "./run")
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256((source / "data").read_bytes()).hexdigest() in done.stdout


def test_the_daemon_may_go_and_come_back(tmp_path: Path, dockerd: Dockerd) -> None:
    with farm(tmp_path / "h", config_of(dockerd)) as real:
        number = real.submit("echo here; [ -e /tmp/x ] || sleep 3; echo done", env="box")
        real.log_has(number, b"here")
        dockerd.stop()

        def state() -> dict[str, object]:
            (shown,) = [each for each in real.get("/api/v1/environments")["environments"] if each["name"] == "box"]
            return dict(shown)

        until("it is not usable", lambda: not state()["usable"], 20)
        assert re.match(r"(docker does not work on this host: )?no Docker daemon answers at ", str(state()["problem"]))
        assert "\n" not in str(state()["problem"])
        assert real.job(number)["state"] != "finished", real.job(number)
        dockerd.start()
        until("it is usable", lambda: state()["usable"], 40)
        job = real.finished(number)
        assert (job["outcome"], job["attempts"][0]["outcome"]) == ("passed", "infra")
        real.nothing_left()
    no_container_left(dockerd)


def test_without_a_daemon_it_is_said_in_one_sentence(tmp_path: Path, busybox_root: Path) -> None:
    config = CONFIG.format(socket=tmp_path / "nobody")
    with farm(tmp_path / "h", config) as real:
        (shown,) = [each for each in real.get("/api/v1/environments")["environments"] if each["name"] == "box"]
        expected = "install docker.io and start it, or set [coordinator] docker_socket"
        assert shown["problem"].endswith(f"(no such file or directory); {expected}")


def test_first_bytes_come_soon(up: RealFarm) -> None:
    """Printed, not judged but coarsely: this machine may be busy."""
    times = []
    for _ in range(5):
        time.sleep(0.5)  # a spare is there again
        began_s = time.monotonic()
        number = up.submit("echo x; sleep 0.3", env="box")
        up.log_has(number, b"x")
        times.append(time.monotonic() - began_s)
        up.finished(number)
    print("submit to first byte seen, warm:", [f"{each * 1000:.0f} ms" for each in sorted(times)])
    assert sorted(times)[2] < 1
