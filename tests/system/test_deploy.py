"""`biruda deploy`: from the first host to the second, a job there, and off it again with nothing left."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.farm import SOURCE, RealFarm, until
from tests.system.network import SUBNET, Network
from tests.system.sshd import USER, SshHost, cgroups, hosts, make_key, needs
from tests.system.systemd import SystemdHost, make_debian

EXECUTABLE = SOURCE / "dist" / "biruda"
MASTER = '[master]\nlink_listen = ":7879"\n'
TALK = "i=0; while [ $i -lt 80 ]; do echo line $i; i=$((i+1)); sleep 0.1; done"
TALKED = b"".join(b"line %d\n" % number for number in range(80))


@dataclass
class Two:
    """A master on the first host, and a second host with nothing but sshd."""

    master: RealFarm
    beech: SshHost
    network: Network
    executable: Path

    def deploy(self, *options: str, user: str = "root", host: str = "") -> "subprocess.CompletedProcess[str]":
        beech = self.beech
        given = ["--identity", os.fspath(beech.identity), "--known-hosts", os.fspath(beech.known_hosts)]
        given += [] if "--remove" in options else ["--executable", os.fspath(self.executable)]
        return self.master.command("deploy", f"{user}@{host or beech.address}", *given, *options)

    def deployed(self, *options: str, user: str = "root") -> str:
        done = self.deploy(*options, user=user)
        assert (done.returncode, done.stderr) == (0, ""), (done, self.beech.log()[-1000:])
        return done.stdout

    def refused(self, *options: str, user: str = "root", host: str = "") -> str:
        done = self.deploy(*options, user=user, host=host)
        assert done.returncode in (1, 2, 3), done
        assert "Traceback" not in done.stderr
        return done.stderr

    def coordinator(self) -> "dict[str, object] | None":
        found = self.master.get("/api/v1/coordinators")["coordinators"]
        return next((item for item in found if item["host"] == "beech"), None)


def built(directory: Path) -> Path:
    """A copy of the one executable."""
    if not EXECUTABLE.exists():
        pytest.skip("no dist/biruda: ./build-static.sh makes it")
    return Path(shutil.copy(EXECUTABLE, directory / "biruda"))


def change(executable: Path) -> None:
    """Another one by its digest, and the same by what it does."""
    with executable.open("r+b") as file:
        file.seek(15)  # padding of the ELF header, which nobody reads
        file.write(b"\1")


@pytest.fixture
def two(tmp_path: Path, network: Network) -> Iterator[Two]:
    needs()
    executable = built(tmp_path)
    beech = SshHost("beech", tmp_path / "beech", f"{SUBNET}1.2", network.prefix("a"))
    beech.directory.mkdir()
    master = RealFarm(tmp_path / "m", MASTER, prefix=network.prefix("m"))
    with hosts(beech):
        try:
            master.start("master")
            yield Two(master, beech, network, executable)
        finally:
            master.cancel_all()
            master.stop()


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    return {path: after.get(path, "gone") for path in before | after if before.get(path) != after.get(path)}


@pytest.mark.timeout(240)
def test_deploy_a_job_there_remove_and_nothing_is_left(two: Two) -> None:
    before = two.beech.files()
    said = two.deployed()
    instance = two.beech.run("cat /var/lib/biruda/instance").strip()
    assert "● joined as beech, at https://" in said
    assert "is in the farm" in said
    job = two.master.finished(two.master.submit("hostname; echo from $0", requirements={"host": "beech"}))
    assert (job["outcome"], two.master.log(job["job"])) == ("passed", b"beech\nfrom /bin/sh\n")
    said = two.deployed("--remove")
    assert said.endswith(f"nothing of biruda is left on root@{two.beech.address}\n")
    assert changed(before, two.beech.files()) == {}
    assert two.beech.processes() == []
    assert instance
    assert cgroups(instance) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_deploy_a_job_upgrade_remove_and_nothing_is_left(two: Two) -> None:
    before = two.beech.files()
    said = two.deployed()
    instance = two.beech.run("cat /var/lib/biruda/instance").strip()
    lines = [re.sub(r"^● ", "", line) for line in said.splitlines()]
    assert lines[0] == f"root@{two.beech.address} is beech: amd64 busybox1.35, root, no systemd"
    assert re.fullmatch(r"sending [0-9.]+ MiB to /usr/local/bin/biruda", lines[1])
    assert lines[2].startswith("/usr/local/bin/biruda runs there: biruda ")
    assert lines[3] == f"joined as beech, at https://{SUBNET}1.1:7879"
    assert lines[4] == "its coordinator is started, by itself: after a reboot, deploy it again"
    assert re.fullmatch(r"beech is in the farm: \d+ slots?, 1 environment that can be used", lines[5])
    assert any("host" in line and "process" in line and "busybox1.35" in line for line in lines[6:])

    job = two.master.finished(two.master.submit("hostname; echo from $0", requirements={"host": "beech"}))
    assert (job["outcome"], two.master.log(job["job"])) == ("passed", b"beech\nfrom /bin/sh\n")

    # Again: nothing is sent, and nothing is started anew.
    first = two.coordinator()
    said = two.deployed()
    assert "sending" not in said
    assert "it has joined as beech" in said
    assert f"its coordinator runs, pid {first and first['pid']}" in said

    # Another executable: the coordinator is started anew, and what runs goes on.
    number = two.master.submit(TALK, requirements={"host": "beech"})
    two.master.log_has(number, b"line 5\n")
    change(two.executable)
    said = two.deployed()
    assert "sending" in said
    assert "what runs there goes on" in said
    second = two.coordinator()
    assert first is not None
    assert second is not None
    assert second["pid"] != first["pid"]

    said = two.refused("--remove")
    assert said == (f"biruda: 1 job runs on beech: {number}\nhint: wait for them, or end them: --remove --force\n")
    job = two.master.finished(number)
    assert (job["outcome"], job["attempt"], two.master.log(number)) == ("passed", 1, TALKED)

    said = two.deployed("--remove")
    assert "● removed /var/lib/biruda\n" in said
    assert "● removed /usr/local/bin/biruda\n" in said
    assert "● 1 certificate of beech revoked\n" in said
    assert said.endswith(f"nothing of biruda is left on root@{two.beech.address}\n")
    assert changed(before, two.beech.files()) == {}
    assert two.beech.processes() == []
    assert instance
    assert cgroups(instance) == []
    assert "nothing of biruda is left" in two.deployed("--remove")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_deploy_as_a_user_that_is_not_root(two: Two) -> None:
    before = two.beech.files()
    said = two.deployed("--name", "oak", user=USER)
    assert "not root" in said
    assert "/home/builder/.local/bin/biruda runs there" in said
    job = two.master.finished(two.master.submit("id -u; hostname", requirements={"host": "oak"}))
    assert (job["outcome"], two.master.log(job["job"])) == ("passed", b"1000\nbeech\n")
    number = two.master.submit("echo on; sleep 1000", requirements={"host": "oak"})
    two.master.log_has(number, b"on")
    said = two.deployed("--remove", "--force", user=USER)
    assert "cancelled 1 job" in said
    assert two.master.job(number)["outcome"] == "cancelled"
    assert changed(before, two.beech.files()) == {}
    assert two.beech.processes() == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_home_that_was_there_keeps_what_deploy_did_not_make(two: Two) -> None:
    two.beech.run("mkdir -p /srv/farm && echo mine > /srv/farm/notes")
    before = two.beech.files()
    assert "is in the farm" in two.deployed("--home", "/srv/farm")
    said = two.deployed("--remove", "--home", "/srv/farm")
    assert "● kept /srv/farm/notes, which deploy did not make\n" in said
    assert said.endswith(f"nothing that deploy brought is left on root@{two.beech.address}\n")
    assert changed(before, two.beech.files()) == {}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_homes_on_one_host_and_an_executable_that_was_there(two: Two) -> None:
    before = two.beech.files()
    two.deployed()
    assert "is in the farm" in two.deployed("--home", "/srv/second", "--name", "oak")
    said = two.deployed("--remove")
    assert "● kept /usr/local/bin/biruda, which another daemon here runs\n" in said
    job = two.master.finished(two.master.submit("echo on", requirements={"host": "oak"}))
    assert job["outcome"] == "passed"
    two.deployed("--remove", "--home", "/srv/second")
    assert changed(before, two.beech.files()) == {}

    two.beech.run("echo mine > /usr/local/bin/biruda")
    before = two.beech.files()
    assert "● kept /usr/local/bin/biruda, which deploy did not bring\n" in two.deployed("--remove")
    assert changed(before, two.beech.files()) == {}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_is_refused_is_said_in_a_sentence_and_leaves_nothing(two: Two, tmp_path: Path) -> None:
    beech, before = two.beech, two.beech.files()
    where = f"root@{beech.address}"

    said = two.refused("--master", f"https://{SUBNET}1.1:9")
    assert said.startswith(f"biruda: {where} cannot reach this master: no master answers at https://{SUBNET}1.1:9: ")
    assert "--master https://HOST:PORT" in said
    assert beech.processes() == []
    two.deployed("--remove")
    assert changed(before, beech.files()) == {}

    other = make_key(tmp_path / "other")
    said = two.refused("--identity", os.fspath(other))
    assert said.startswith(
        f"biruda: {where}: it does not take the key {other} (it takes publickey)\nhint: ssh-copy-id "
    )
    empty = tmp_path / "empty"
    empty.touch()
    said = two.refused("--known-hosts", os.fspath(empty))
    assert said.startswith(
        f"biruda: {where}: its host key is not in {empty}, so it may be any host\nhint: ssh-keyscan "
    )
    public = other.with_suffix(".pub").read_text().split()
    empty.write_text(f"{beech.key_name} {public[0]} {public[1]}\n")
    said = two.refused("--known-hosts", os.fspath(empty))
    assert f"its host key is another one than in {empty}" in said
    assert f"ssh-keygen -f {empty} -R '{beech.address}'" in said
    assert "no ssh server listens there" in two.refused("--port", "9")
    assert "the name of the host is not known" in two.refused(host="nobody.invalid")
    assert two.refused(host="not a host").endswith("hint: write HOST, USER@HOST or USER@HOST:PORT\n")

    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho no; exit 1\n")
    said = two.refused("--executable", os.fspath(script))
    assert "/usr/local/bin/biruda does not run there: no" in said
    arm = SOURCE / "dist" / "workers" / "arm64"
    if arm.exists():
        said = two.refused("--executable", os.fspath(arm))
        assert f"{arm} is for arm64, and that host is amd64" in said
        assert "build-static.sh" in said
    assert changed(before, beech.files()) == {}
    assert beech.processes() == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_master_that_listens_for_nobody_says_so_before_anything_is_started(two: Two) -> None:
    two.master.daemons["master"].kill(signal.SIGTERM)
    (two.master.home / "biruda.conf").write_text('[master]\nlink_listen = "127.0.0.1:7879"\n')
    two.master.start("master")
    said = two.refused()
    assert "this master takes other hosts at https://127.0.0.1:7879 only" in said
    assert two.beech.processes() == []
    two.master.daemons["master"].kill(signal.SIGTERM)
    (two.master.home / "biruda.conf").write_text("")
    two.master.start("master")
    assert "this master takes no other hosts" in two.refused()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_executable_brings_itself(two: Two, tmp_path: Path) -> None:
    beech, before = two.beech, two.beech.files()
    argv = [*two.master.prefix, os.fspath(two.executable), "--home", os.fspath(two.master.home), "deploy"]
    argv += [
        f"root@{beech.address}",
        "--identity",
        os.fspath(beech.identity),
        "--known-hosts",
        os.fspath(beech.known_hosts),
    ]
    env = {**os.environ, "BIRUDA_CACHE": os.fspath(tmp_path / "cache"), "NO_COLOR": "1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    digest = hashlib.sha256(two.executable.read_bytes()).hexdigest()
    assert beech.run("sha256sum /usr/local/bin/biruda").split()[0] == digest
    # What somebody there unpacks for himself goes too.
    assert beech.run("/usr/local/bin/biruda status").startswith("● biruda ")
    assert (beech.root / "var" / "cache" / "biruda").exists()
    assert "● removed /var/cache/biruda\n" in two.deployed("--remove")
    assert changed(before, beech.files()) == {}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_revoked_host_joins_again_when_it_is_deployed_again(two: Two) -> None:
    two.deployed()
    assert two.master.command("revoke", "beech").returncode == 0
    until("the link is cut", lambda: not (item := two.coordinator()) or not item["connected"])
    said = two.deployed()
    assert "joined as beech" in said
    assert "is in the farm" in said
    two.deployed("--remove")


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs()
    root = tmp_path_factory.mktemp("debian") / "root"
    make_debian(root)
    return root


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_where_systemd_runs_it_is_a_service(tmp_path: Path, network: Network, debian: Path) -> None:
    executable = built(tmp_path)
    oak = SystemdHost("oak", tmp_path / "oak", f"{SUBNET}1.2", network.prefix("a"), tree=debian)
    oak.directory.mkdir()
    master = RealFarm(tmp_path / "m", MASTER, prefix=network.prefix("m"))
    with hosts(oak):
        try:
            master.start("master")
            two = Two(master, oak, network, executable)
            before = oak.files()
            said = two.deployed()
            assert "is oak: amd64 debian12, root, systemd" in said
            assert "its coordinator is started, by systemd, as biruda.service" in said
            assert oak.run("systemctl is-enabled biruda; systemctl is-active biruda") == "enabled\nactive\n"
            job = master.finished(master.submit("hostname; cat /etc/debian_version", requirements={"host": "oak"}))
            assert (job["outcome"], master.log(job["job"])[:6]) == ("passed", b"oak\n12")

            # It is killed, and systemd starts another, which finds what runs.
            number = master.submit(TALK, requirements={"host": "oak"})
            master.log_has(number, b"line 5\n")
            oak.run("systemctl kill --kill-whom=main --signal=KILL biruda")
            job = master.finished(number)
            assert (job["outcome"], job["attempt"], master.log(number)) == ("passed", 1, TALKED)
            # Another executable.
            number = master.submit(TALK, requirements={"host": "oak"})
            master.log_has(number, b"line 5\n")
            change(executable)
            assert "what runs there goes on" in two.deployed()
            job = master.finished(number)
            assert (job["outcome"], job["attempt"], master.log(number)) == ("passed", 1, TALKED)

            said = two.deployed("--remove")
            assert "● removed /etc/systemd/system/biruda.service\n" in said
            assert changed(before, oak.files()) == {}
            assert [line for line in oak.processes() if "biruda" in line] == []
            assert "biruda" not in oak.run("systemctl list-units --all; systemctl list-unit-files; find /sys/fs/cgroup")
        finally:
            master.cancel_all()
            master.stop()
