"""Kind ssh: jobs on a host that has nothing of biruda, before, while and after; and what breaks on the way there."""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.farm import SOURCE, RealFarm, until
from tests.system.network import SUBNET, Network
from tests.system.sshd import USER, SshHost, hosts, make_key, needs

WORKER = SOURCE / "dist" / "workers" / "amd64"
CONFIG = """
[master]
lease_s = {lease_s}

[[environment]]
name = "beech"
kind = "ssh"
host = "{user}@{address}:{port}"
identity = "{identity}"
known_hosts = "{known_hosts}"
ssh_options = [{options}]
cache = {cache}
spares = {spares}
"""
DEAD_SOON = '"ServerAliveInterval=1", "ServerAliveCountMax=2", "ConnectTimeout=2"'
TALK = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; echo end"
TALKED = b"".join(b"line %d\n" % number for number in range(200)) + b"end\n"


@dataclass
class There:
    """A farm with one environment, which is another host."""

    farm: RealFarm
    beech: SshHost
    network: Network
    before: dict[str, str]

    def configure(
        self,
        *,
        user: str = "root",
        cache: bool = False,
        options: str = "",
        lease_s: int = 3600,
        spares: int = 1,
        **more: str,
    ) -> None:
        values = {
            "address": self.beech.address,
            "port": str(self.beech.port),
            "identity": os.fspath(self.beech.identity),
            "known_hosts": os.fspath(self.beech.known_hosts),
            **more,
        }
        config = CONFIG.format(
            user=user, cache=str(cache).lower(), options=options, lease_s=lease_s, spares=spares, **values
        )
        (self.farm.home / "biruda.conf").write_text(config)

    def environment(self) -> dict[str, object]:
        found: dict[str, object] = self.farm.get("/api/v1/environments/beech")
        return found

    def usable(self) -> None:
        """Wait until a worker has been there."""
        until("the environment can be used", lambda: self.environment()["usable"], 40)

    def problem(self) -> str:
        """Why it cannot be used, once that is known."""
        looking = ("it is being looked at", "")
        until("the problem is known", lambda: self.environment()["problem"] not in looking, 40)
        return str(self.environment()["problem"])

    def nothing_left(self) -> None:
        """Wait until the other host is as it was, but for spares that wait."""

        def changed() -> list[str]:
            after = self.beech.files()
            paths = [path for path in self.before | after if self.before.get(path) != after.get(path)]
            return paths + [line for line in self.beech.processes() if not line.endswith("--worker")]

        try:
            until("nothing is left", lambda: not changed(), 30)
        except AssertionError:
            raise AssertionError(f"left on the other host: {changed()}") from None

    def no_process(self, limit_s: float = 30) -> None:
        """Wait until no worker is there either."""
        until(f"no process is left: {self.beech.processes()}", lambda: not self.beech.processes(), limit_s)


@pytest.fixture
def there(tmp_path: Path, network: Network) -> Iterator[There]:
    needs()
    if not WORKER.exists():
        pytest.skip("no dist/workers/amd64: ./build-static.sh makes it")
    beech = SshHost("beech", tmp_path / "beech", f"{SUBNET}1.2", network.prefix("a"))
    beech.directory.mkdir()
    farm = RealFarm(tmp_path / "m", prefix=network.prefix("m"))
    with hosts(beech):
        made = There(farm, beech, network, beech.files())
        made.configure()
        try:
            yield made
        finally:
            network.mend("a")
            farm.stop()


def test_a_job_with_source_and_artifacts_leaves_nothing(there: There, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "greeting").write_text("hello")
    there.farm.start()
    there.usable()
    assert (there.environment()["kind"], there.environment()["arch"]) == ("ssh", "amd64")
    assert there.environment()["platform"] == "busybox1.35"
    done = there.farm.command(
        *("run", "--on", "env=beech", "--source", os.fspath(source), "--artifact", "*.txt"),
        *("--", "sh", "-c", "cat sub/greeting; echo; hostname; echo made > out.txt; pwd"),
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[:2]) == (0, ["hello", "beech"]), done
    assert lines[2].startswith("/var/tmp/biruda-")
    job = there.farm.finished(1)
    assert (job["host"], job["kind"], [item["path"] for item in job["artifacts"]]) == (job["host"], "ssh", ["out.txt"])
    there.nothing_left()
    there.farm.stop()
    there.no_process()
    there.nothing_left()


def test_a_log_of_50_mb_comes_byte_for_byte(there: There) -> None:
    there.farm.start()
    there.usable()
    count = 3_600_000
    expected = hashlib.sha256(b"".join(b"line %07d\n" % number for number in range(count)))
    size = count * len(b"line 0000000\n")
    script = f"awk 'BEGIN {{ for (i = 0; i < {count}; i++) printf \"line %07d\\n\", i }}'"
    began_s = time.monotonic()
    job = there.farm.finished(there.farm.submit(script, env="beech"), 120)
    print(f"{size / 1e6:.0f} MB in {time.monotonic() - began_s:.1f} s")
    assert job["outcome"] == "passed"
    assert job["log"] == {**job["log"], "bytes": size, "sha256": expected.hexdigest(), "complete": True}
    there.nothing_left()


def test_a_user_that_is_not_root_and_a_cache(there: There) -> None:
    there.configure(user=USER, cache=True)
    there.farm.start()
    there.usable()
    job = there.farm.finished(there.farm.submit("id -u; (setsid sleep 1000 &); echo $HOME", env="beech"))
    assert job["outcome"] == "passed"
    assert there.farm.log(job["job"]).startswith(b"1000\n")
    digest = hashlib.sha256(WORKER.read_bytes()).hexdigest()
    kept = there.beech.root / "home" / "builder" / ".cache" / "biruda"
    assert [path.name for path in kept.iterdir()] == [f"worker-{digest}"]
    # one that was changed is not run
    wrong = kept / "wrong"
    wrong.write_text("#!/bin/sh\necho no\n")
    wrong.chmod(0o755)
    wrong.replace(kept / f"worker-{digest}")
    job = there.farm.finished(there.farm.submit("echo on", env="beech"))
    assert job["outcome"] == "passed"
    job = there.farm.finished(there.farm.submit("echo on", env="beech"))
    assert job["outcome"] == "passed"
    assert (kept / f"worker-{digest}").read_bytes() == WORKER.read_bytes()


def test_a_login_that_talks_is_listened_to_with_patience(there: There) -> None:
    (there.beech.root / "etc" / "ssh" / "sshrc").write_text("echo welcome; printf 'no newline'; echo noise >&2\n")
    (there.beech.root / "bin" / "gzip").unlink()  # nor has it what makes the way shorter
    there.before = there.beech.files()
    there.farm.start()
    there.usable()
    job = there.farm.finished(there.farm.submit("echo on", env="beech"))
    assert (job["outcome"], there.farm.log(job["job"])) == ("passed", b"on\n")
    there.nothing_left()


def test_cancelled_job_leaves_no_process(there: There) -> None:
    there.farm.start()
    there.usable()
    number = there.farm.submit(
        "echo here; (setsid sleep 1000 &); trap '' TERM; sleep 1000; sleep 1000",
        env="beech",
        recipe={"limits": {"grace_s": 0.3}},
    )
    there.farm.log_has(number, b"here")
    there.farm.post(f"/api/v1/jobs/{number}/cancel", {"reason": "not needed"})
    assert there.farm.finished(number)["outcome"] == "cancelled"
    there.nothing_left()


def test_a_permanent_worker_takes_job_after_job_and_leaves_nothing_when_it_ends(there: There) -> None:
    config = there.farm.home / "biruda.conf"
    config.write_text(config.read_text() + "permanent = true\n")
    there.farm.start()
    there.usable()
    said = set()
    for _ in range(3):
        job = there.farm.finished(there.farm.submit("echo $PPID; touch here", env="beech"))
        assert job["outcome"] == "passed"
        said.add(there.farm.log(job["job"]))
    assert len(said) == 1, "it was another worker"
    there.farm.stop()
    there.no_process()
    there.nothing_left()


def test_limits_are_refused_in_words(there: There) -> None:
    there.farm.start()
    there.usable()
    for limits in ({"memory_bytes": 1 << 28}, {"pids": 10}, {"cpus": 1}, {"disk_bytes": 1 << 28}):
        job = there.farm.finished(there.farm.submit("echo no", env="beech", recipe={"limits": limits}))
        assert job["outcome"] == "environment"
        assert "cannot be held on a host that only ssh reaches" in job["reason"]
    there.nothing_left()


def test_killed_coordinator_leaves_nothing_and_the_job_runs_again(there: There) -> None:
    there.farm.start()
    there.usable()
    number = there.farm.submit(f"(setsid sleep 1000 &); {TALK}", env="beech")
    there.farm.log_has(number, b"line 20\n")
    there.farm.daemons["up"].kill()
    there.no_process()
    there.nothing_left()
    there.farm.start()
    job = there.farm.finished(number)
    assert (job["outcome"], job["attempt"], job["attempts"][0]["outcome"]) == ("passed", 2, "infra")
    assert there.farm.log(number) == TALKED
    there.nothing_left()
    there.farm.nothing_left()


def test_killed_worker_is_infra_and_all_of_it_is_ended(there: There) -> None:
    there.farm.start()
    there.usable()
    script = (
        "echo $PPID; if [ -e /tmp/once ]; then rm /tmp/once; else touch /tmp/once; setsid sleep 1000 & sleep 1000; fi"
    )
    number = there.farm.submit(script, env="beech")
    until("it sleeps", lambda: (there.beech.root / "tmp" / "once").exists())
    there.beech.run(f"kill -9 {there.farm.log(number).split()[0].decode()}")
    job = there.farm.finished(number)
    assert (job["outcome"], job["attempt"], job["attempts"][0]["outcome"]) == ("passed", 2, "infra")
    until("its work directory is gone", lambda: not list((there.beech.root / "var" / "tmp").iterdir()))


def test_short_cut_of_the_cable_costs_nothing(there: There) -> None:
    there.farm.start()
    there.usable()
    number = there.farm.submit(TALK, env="beech")
    there.farm.log_has(number, b"line 20\n")
    there.network.cut("a")
    subprocess.run(["sleep", "3"], check=True)
    there.network.mend("a")
    job = there.farm.finished(number)
    assert (job["outcome"], job["attempt"], there.farm.log(number)) == ("passed", 1, TALKED)
    there.nothing_left()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_long_cut_of_the_cable_ends_the_worker_by_its_lease(there: There) -> None:
    there.configure(options='"ServerAliveInterval=2", "ServerAliveCountMax=6", "ConnectTimeout=2"', lease_s=6)
    there.farm.start()
    there.usable()
    number = there.farm.submit("echo here; (setsid sleep 1000 &); sleep 1000", env="beech", retries=0)
    there.farm.log_has(number, b"here")
    there.network.cut("a")
    began_s = time.monotonic()
    until("what ran there has ended", lambda: "sleep 1000" not in there.beech.processes(), 60)
    print(f"ended {time.monotonic() - began_s:.1f} s after the cut")
    assert there.farm.job(number)["state"] == "running", "it was given up before it had ended"
    job = there.farm.finished(number, 60)
    assert (job["outcome"], job["attempt"]) == ("infra", 1)
    print(f"given up {time.monotonic() - began_s:.1f} s after the cut")
    there.network.mend("a")
    there.nothing_left()
    there.usable()
    assert there.farm.finished(there.farm.submit("echo on", env="beech"))["outcome"] == "passed"


def test_a_host_that_is_off_is_said_and_comes_back(there: There) -> None:
    there.configure(options=DEAD_SOON)
    there.beech.stop()
    there.farm.start()
    where = f"root@{there.beech.address}:22"
    assert there.problem().startswith(f"{where}: no ssh server listens there")
    there.beech.start()
    done = there.farm.command("env", "probe", "beech")
    assert done.returncode == 0, done
    assert there.farm.finished(there.farm.submit("echo on", env="beech"))["outcome"] == "passed"


def test_keys_that_do_not_fit(there: There, tmp_path: Path) -> None:
    where = f"root@{there.beech.address}:22"
    empty, other = tmp_path / "empty", make_key(tmp_path / "other")
    empty.touch()
    there.farm.start()
    there.usable()

    def told() -> str:
        assert there.farm.command("env", "probe", "beech").returncode == 1
        return there.problem()

    def reload() -> None:
        there.farm.post("/api/v1/coordinators/" + there.farm.get("/api/v1/status")["host"] + "/reload", {})

    there.configure(known_hosts=os.fspath(empty))
    reload()
    assert told().startswith(f"{where}: its host key is not in {empty}, so it may be any host; ssh-keyscan ")
    shutil.copy(other.with_suffix(".pub"), empty)
    public = other.with_suffix(".pub").read_text().split()
    empty.write_text(f"{there.beech.key_name} {public[0]} {public[1]}\n")
    assert told().startswith(f"{where}: its host key is another one than in {empty}")
    there.configure(identity=os.fspath(other))
    reload()
    assert told().startswith(f"{where}: it does not take the key {other}")
    there.configure(identity=os.fspath(tmp_path / "none"))
    reload()
    assert told().startswith(f"{where}: there is no key file {tmp_path / 'none'}")


def test_a_host_without_a_place_for_programs(there: There) -> None:
    there.beech.run("mount -t tmpfs -o noexec tmpfs /dev/shm; mount -t tmpfs -o noexec tmpfs /tmp")
    there.beech.run("mount -t tmpfs -o noexec tmpfs /var/tmp; mount -t tmpfs -o noexec tmpfs /root")
    there.farm.start()
    assert "no directory may be written to and lets programs run" in there.problem()
    there.beech.run("umount /tmp")
    assert there.farm.command("env", "probe", "beech").returncode == 0
    assert there.farm.finished(there.farm.submit("echo on", env="beech"))["outcome"] == "passed"


def test_an_architecture_without_a_worker_and_a_host_without_a_shell(there: There) -> None:
    there.farm.start()
    there.usable()
    config = there.farm.home / "biruda.conf"
    config.write_text(config.read_text() + 'arch = "s390x"\n')
    host = there.farm.get("/api/v1/status")["host"]
    there.farm.post(f"/api/v1/coordinators/{host}/reload", {})
    assert there.problem().startswith("there is no worker executable for s390x on this host; make dist/workers/s390x")
    there.configure()
    there.beech.run("sed -i s,/root:/bin/sh,/root:/bin/ash, /etc/passwd; rm /bin/sh")
    there.farm.post(f"/api/v1/coordinators/{host}/reload", {})
    assert there.problem().startswith(f"root@{there.beech.address}:22: it has no /bin/sh that runs")
