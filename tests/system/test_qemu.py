"""Jobs in virtual machines, by a whole farm: sources in, artifacts out, nothing lost when a coordinator is killed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.machines import MachineFiles, fetch_kernel, need_machines
from tests.system.farm import RealFarm, farm, until

pytestmark = pytest.mark.timeout(300)  # the first one's template: emulated machines boot several times

LINES = 400
TALK = f"i=0; while [ $i -lt {LINES} ]; do echo line $i of the log; i=$((i+1)); usleep 5000; done; echo end"
TALKED = b"".join(b"line %d of the log\n" % number for number in range(LINES)) + b"end\n"


@contextmanager
def machine_farm(home: Path, files: MachineFiles, cache: Path, master: str = "") -> Iterator[RealFarm]:
    """A farm with one environment, whose machines are clones from when the block begins."""
    (home / "coordinator").mkdir(parents=True)
    (home / "coordinator" / "cache").symlink_to(cache)
    with farm(home, f"[master]\n{master}\n{files.toml()}", "master", "coordinator") as real:
        wait_for_clones(real)
        yield real


def wait_for_clones(real: RealFarm) -> None:
    def clones() -> bool:
        evidence = real.get("/api/v1/environments/vm")["evidence"]
        return any("clones of a RAM template" in sentence for sentence in evidence)

    until("there is a template", clones, 240)


@pytest.fixture
def vm(tmp_path: Path, machine_files: MachineFiles, machine_cache: Path) -> Iterator[RealFarm]:
    with machine_farm(tmp_path / "h", machine_files, machine_cache) as real:
        yield real


def machine_of(real: RealFarm, number: int) -> int:
    """The pid of the machine that has a job, by the coordinator's ledger."""
    pids: dict[str, int] = {}
    for line in (real.home / "coordinator" / "ledger").read_text().splitlines():
        record = json.loads(line)
        if record["is"] == "spawned":
            pids[record["worker"]] = record["pid"]
        elif record["is"] == "given" and record["given"] and record["given"]["job"] == number:
            return pids[record["worker"]]
    raise AssertionError(f"no machine has job {number}")


def test_a_source_tree_goes_in_and_an_artifact_comes_out(vm: RealFarm, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src" / "data").write_bytes(os.urandom(300_000))
    step = "sha256sum src/data | cut -d' ' -f1; mkdir out; cat src/data src/data > out/both"
    ran = vm.command(
        *("run", "--on", "env=vm", "--source", os.fspath(tree), "--artifact", "out/*", "--json", "--", "sh", "-c", step)
    )
    assert ran.returncode == 0, ran.stderr
    data = (tree / "src" / "data").read_bytes()
    assert hashlib.sha256(data).hexdigest() in ran.stderr
    (job,) = json.loads(ran.stdout)
    assert [(item["path"], item["sha256"]) for item in job["artifacts"]] == [
        ("out/both", hashlib.sha256(data + data).hexdigest())
    ]
    vm.nothing_left()


def test_a_job_goes_on_when_the_coordinator_is_killed(vm: RealFarm) -> None:
    number = vm.submit(TALK, env="vm")
    vm.log_has(number, b"line 20 ")
    for line in (b"line 120 ", b"line 220 "):
        vm.daemons["coordinator"].kill()
        vm.start("coordinator")
        vm.log_has(number, line)
    job = vm.finished(number, 120)
    assert (job["outcome"], job["attempt"]) == ("passed", 1), job
    assert (job["log"]["complete"], job["log"]["bytes"]) == (True, len(TALKED))
    assert (vm.home / "spool" / f"{job['spool']}.log").read_bytes() == TALKED
    vm.nothing_left()


def test_a_flood_goes_on_byte_by_byte_when_the_coordinator_is_killed(vm: RealFarm) -> None:
    flood = "dd if=/dev/zero bs=64k count=80 2>/dev/null | tr '\\0' x; echo {}"
    number = vm.submit("; ".join(flood.format(turn) for turn in range(4)), env="vm")
    for turn in (0, 1):
        vm.log_has(number, b"x%d\n" % turn)
        vm.daemons["coordinator"].kill()
        vm.start("coordinator")
    job = vm.finished(number, 120)
    assert (job["outcome"], job["attempt"], job["log"]["complete"]) == ("passed", 1, True), job
    expected = b"".join(b"x" * (80 << 16) + b"%d\n" % turn for turn in range(4))
    assert (vm.home / "spool" / f"{job['spool']}.log").read_bytes() == expected
    vm.nothing_left()


def test_a_job_that_ends_while_nobody_is_there_is_not_run_again(vm: RealFarm) -> None:
    number = vm.submit("echo before; sleep 1; cat /proc/sys/kernel/random/uuid; echo after", env="vm")
    vm.log_has(number, b"before")
    vm.daemons["coordinator"].kill()
    (pid,) = until("only its machine is left", lambda: len(vm.worker_pids()) == 1 and vm.worker_pids(), 30)
    assert pid
    vm.start("coordinator")
    job = vm.finished(number)
    assert (job["outcome"], job["attempt"], job["log"]["complete"]) == ("passed", 1, True)
    assert vm.log(number).endswith(b"after\n")
    vm.nothing_left()


def test_a_machine_ends_itself_when_its_lease_is_over(
    tmp_path: Path, machine_files: MachineFiles, machine_cache: Path
) -> None:
    with machine_farm(tmp_path / "h", machine_files, machine_cache, "lease_s = 2") as real:
        number = real.submit("echo here; sleep 1000", env="vm", retries=0)
        real.log_has(number, b"here")
        real.daemons["coordinator"].kill()
        until("every process and cgroup of it is gone", lambda: not real.worker_pids() and not real.cgroups(), 20)
        job = real.finished(number)
        assert (job["outcome"], "no contact" in job["reason"]) == ("infra", True)
        real.start("coordinator")
        assert real.finished(real.submit("echo on", env="vm"))["outcome"] == "passed"
        real.nothing_left()


def test_a_machine_that_is_killed_is_infra_and_its_job_runs_again(vm: RealFarm) -> None:
    number = vm.submit("echo here; sleep 3", env="vm")
    vm.log_has(number, b"here")
    os.kill(machine_of(vm, number), 9)
    job = vm.finished(number)
    assert (job["outcome"], job["attempt"]) == ("passed", 2), job
    vm.nothing_left()


@pytest.mark.slow
def test_an_environment_is_built_used_and_removed(tmp_path: Path, busybox_root: Path) -> None:
    need_machines()
    taken = fetch_kernel(tmp_path / "kernel", "amd64")
    boot, modules = tmp_path / "k" / "boot", tmp_path / "k" / "lib" / "modules" / "1.2"
    boot.mkdir(parents=True)
    (boot / "vmlinuz-1.2").write_bytes((taken / "kernel").read_bytes())
    with farm(tmp_path / "h") as real:

        def build() -> tuple[int, str]:
            argv = ("env", "build", "made", "--kind", "qemu", "--replace", "--directory", os.fspath(busybox_root))
            done = real.command(*argv, "--kernel", os.fspath(boot / "vmlinuz-1.2"))
            return done.returncode, done.stdout + done.stderr

        status, said = build()  # this kernel has next to nothing built in
        assert (status, "no port to talk by" in said) == (1, True), said
        modules.mkdir(parents=True)
        for module in (taken / "modules").iterdir():
            (modules / module.name.partition("-")[2]).write_bytes(module.read_bytes())
        (modules / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
        status, said = build()
        assert status == 0, said
        ran = real.command("run", "--no-source", "--on", "env=made", "--", "uname", "-r")
        assert ran.returncode == 0, ran.stderr
        removed = real.command("env", "remove", "made")
        assert removed.returncode == 0, removed.stderr
        assert not (real.home / "environments" / "made").exists()
        assert not (real.home / "coordinator" / "cache" / "machines" / "templates" / "made").exists()
