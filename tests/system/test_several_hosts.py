"""Several coordinators, each in its own network namespace: addressing, load, and links that are cut."""

import hashlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.farm import RealFarm, until
from tests.system.network import SUBNET, Network

WORKER = """
[[environment]]
name = "tiny-{host}"
kind = "chroot"
root = "{root}"

[[worker]]
name = "hello"
environment = "tiny-{host}"
steps = ["echo hello from {{host}} {{arch}} {{platform}} {{name}} {{job}}; sleep 0.3"]
"""


@dataclass
class Star:
    master: RealFarm
    hosts: dict[str, RealFarm]
    network: Network


@pytest.fixture
def star(tmp_path: Path, network: Network, busybox_root: Path) -> Iterator[Star]:
    """A master and two coordinators that have joined it and dial it over TLS."""
    config = '[master]\nlisten = ":7878"\nlink_listen = ":7879"\n'
    master = RealFarm(tmp_path / "m", config, prefix=network.prefix("m"))
    hosts = {}
    try:
        master.start("master")
        for number, host in enumerate("ab", start=1):
            config = "[coordinator]\nslots = 2\n" + WORKER.format(host=host, root=busybox_root)
            hosts[host] = RealFarm(tmp_path / host, config, prefix=network.prefix(host), api=master.home)
            hosts[host].join(master, f"https://{SUBNET}{number}.1:7879", host)
            hosts[host].start("coordinator")
        yield Star(master, hosts, network)
    finally:
        master.cancel_all()
        for real in (*hosts.values(), master):
            real.stop()


def test_ten_starts_spread_over_equal_hosts(star: Star) -> None:
    jobs = [star.master.post("/api/v1/workers/hello/start", {})["jobs"][0] for _ in range(10)]
    ended = [star.master.finished(job) for job in jobs]
    assert {job["outcome"] for job in ended} == {"passed"}
    spread = Counter(job["host"] for job in ended)
    assert spread["a"] >= 4
    assert spread["b"] >= 4
    for job in ended:
        assert (
            star.master.log(job["job"]) == f"hello from {job['host']} amd64 busybox1.35 hello {job['job']}\n".encode()
        )
        assert job["spool"] == f"amd64-busybox1.35-{job['host']}-{job['job']}"


def test_start_on_a_host_that_is_named(star: Star) -> None:
    number = star.master.post("/api/v1/workers/hello/start", {"host": "b"})["jobs"][0]
    assert star.master.finished(number)["host"] == "b"
    everywhere = star.master.post("/api/v1/workers/hello/start", {"all": True})["jobs"]
    assert {star.master.finished(number)["host"] for number in everywhere} == {"a", "b"}


def _talk_through_a_cut(star: Star, seconds: int) -> None:
    lines = (seconds + 4) * 50
    script = f"i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); sleep 0.02; done"
    number = star.master.submit(script, env="tiny-a")
    star.master.log_has(number, b"line 20\n")
    star.network.cut("a")
    try:
        subprocess.run(["sleep", str(seconds)], check=True)
        before = len(star.master.log(number))
    finally:
        star.network.mend("a")
    job = star.master.finished(number, seconds + 120)
    expected = b"".join(b"line %d\n" % line for line in range(lines))
    assert before < len(expected)
    assert (job["outcome"], job["attempt"], job["log"]["complete"]) == ("passed", 1, True)
    assert star.master.log(number) == expected
    assert job["log"]["sha256"] == hashlib.sha256(expected).hexdigest()


def test_log_is_exact_after_a_short_cut(star: Star) -> None:
    _talk_through_a_cut(star, 3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_log_is_exact_after_a_minute_without_link(star: Star) -> None:
    _talk_through_a_cut(star, 60)


def test_wrong_token_is_refused_in_words(tmp_path: Path, star: Star) -> None:
    token = tmp_path / "wrong"
    token.write_text("0" * 64)
    config = f'[coordinator]\nhost = "c"\nmaster = "http://{SUBNET}1.1:7878"\ntoken_file = "{token}"\n'
    stranger = RealFarm(tmp_path / "c", config, prefix=star.network.prefix("a"), api=star.master.home)
    try:
        daemon = stranger.start("coordinator", linked=False)
        until("the refusal is told", lambda: "token" in daemon.log.read_text(), 15)
        assert "Traceback" not in daemon.log.read_text()
        assert "c" not in {item["host"] for item in star.master.get("/api/v1/coordinators")["coordinators"]}
    finally:
        stranger.stop()


def test_a_link_without_tls_from_another_host_is_refused(tmp_path: Path, star: Star) -> None:
    config = f'[coordinator]\nhost = "c"\nmaster = "http://{SUBNET}1.1:7878"\ntoken_file = "{star.master.home}/token"\n'
    plain = RealFarm(tmp_path / "c", config, prefix=star.network.prefix("a"), api=star.master.home)
    try:
        daemon = plain.start("coordinator", linked=False)
        words = "without TLS the master takes links from its own host only"
        until("the refusal is told", lambda: words in daemon.log.read_text(), 15)
        assert words in star.master.daemons["master"].log.read_text()
    finally:
        plain.stop()


def test_second_coordinator_of_one_name_is_refused(tmp_path: Path, star: Star) -> None:
    double = RealFarm(tmp_path / "c", prefix=star.network.prefix("a"), api=star.master.home)
    shutil.copytree(star.hosts["a"].home / "credentials", double.home / "credentials")
    try:
        daemon = double.start("coordinator", linked=False)
        until("the refusal is told", lambda: "another coordinator" in daemon.log.read_text(), 15)
        assert star.master.finished(star.master.submit("echo on", env="tiny-a"))["outcome"] == "passed"
    finally:
        double.stop()
