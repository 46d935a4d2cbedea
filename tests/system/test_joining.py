"""Hosts that join a real master across network namespaces, and those that are refused, each in words on both sides."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from biruda.errors import ConfigError
from biruda.trust import tls
from tests.system.farm import SOURCE, ApiError, RealFarm, until
from tests.system.network import SUBNET, Network

URL = {"a": f"https://{SUBNET}1.1:7879", "b": f"https://{SUBNET}2.1:7879"}
MASTER = '[master]\nlink_listen = ":7879"\n'


@dataclass
class Farm:
    """A master in its namespace, and hosts made as a test wants them."""

    master: RealFarm
    network: Network
    directory: Path
    hosts: list[RealFarm] = field(default_factory=list)

    def host(self, name: str, config: str = "", *, where: str = "a") -> RealFarm:
        host = RealFarm(self.directory / name, config, prefix=self.network.prefix(where), api=self.master.home)
        self.hosts.append(host)
        return host

    def joined(self, name: str, config: str = "", *, where: str = "a") -> RealFarm:
        host = self.host(name, config, where=where)
        host.join(self.master, URL[where], name)
        return host

    def token(self, *options: str) -> str:
        answer = self.master.command("token", "--json", *options)
        assert answer.returncode == 0, answer.stderr
        token: str = json.loads(answer.stdout)["token"]
        return token

    def configure(self, config: str) -> None:
        (self.master.home / "biruda.conf").write_text(config)

    @property
    def log(self) -> str:
        return self.master.daemons["master"].log.read_text()

    def connected(self) -> set[str]:
        answer = self.master.get("/api/v1/coordinators")
        return {item["host"] for item in answer["coordinators"] if item["connected"]}

    def is_told(self, host: RealFarm, words: str, *, master: str = "") -> None:
        """Wait until the coordinator's log has a refusal in these words, and the master's too."""
        log = host.daemons["coordinator"].log
        until(
            f"the coordinator is told {words!r}", lambda: _says(log, f"no link to the master: .*{re.escape(words)}"), 20
        )
        until(f"the master tells {master or words!r}", lambda: (master or words) in self.log, 20)
        assert "Traceback" not in log.read_text() + self.log


def _says(log: Path, pattern: str) -> bool:
    return re.search(pattern, log.read_text()) is not None


@pytest.fixture
def farm(tmp_path: Path, network: Network) -> Iterator[Farm]:
    made = Farm(RealFarm(tmp_path / "m", MASTER, prefix=network.prefix("m")), network, tmp_path)
    try:
        made.master.start("master")
        yield made
        logs = [path for home in (made.master, *made.hosts) for path in home.home.rglob("*.log")]
        assert [path for path in logs if "PRIVATE KEY" in path.read_text(errors="replace")] == []
    finally:
        made.master.cancel_all()
        for real in (*made.hosts, made.master):
            real.stop()


# Joining.


def test_the_printed_command_brings_a_host_in(farm: Farm) -> None:
    farm.master.daemons["master"].kill()
    farm.configure(f'[master]\nlink_listen = "{SUBNET}1.1:7879"\n')
    farm.master.start("master")
    made = farm.master.command("token")
    assert made.returncode == 0
    assert made.stderr == "biruda: on the new host, within 15m 00s:\n"
    words = shlex.split(made.stdout)
    assert words[:3] == ["biruda", "join", URL["a"]]
    host = farm.host("beech", '[coordinator]\nhost = "beech"\n')
    joined = host.command(*words[1:])
    assert (joined.returncode, joined.stderr) == (0, "")
    assert joined.stdout.startswith(f"● this host is beech in the farm of {URL['a']}\nnext: biruda --home ")
    keys = [*(host.home / "credentials").iterdir(), *(farm.master.home / "ca").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert "master" not in (host.home / "biruda.conf").read_text()  # the user's file is the user's
    host.start("up")
    until("the host is linked", lambda: "beech" in farm.connected())
    job = farm.master.finished(farm.master.submit("echo here", env="host", requirements={"host": "beech"}))
    assert (job["outcome"], job["host"]) == ("passed", "beech")
    assert farm.master.log(job["job"]) == b"here\n"

    status = host.command("status")
    assert f"coordinator {host.daemons['up'].process.pid}" in status.stdout
    assert f"the one at {URL['a']}; ask there for jobs" in status.stdout
    assert json.loads(host.command("status", "--json").stdout)["master"] == URL["a"]
    listed = json.loads(farm.master.command("hosts", "--json").stdout)["hosts"]
    assert [(item["host"], item["address"], item["revoked"]) for item in listed] == [("beech", f"{SUBNET}1.2", None)]
    assert "PRIVATE" not in json.dumps(listed)
    assert "● valid" in farm.master.command("hosts").stdout
    down = host.command("down")
    assert (down.returncode, host.daemons["up"].process.wait(30)) == (0, 0), down.stderr


def test_joining_again_replaces_the_credentials_and_nothing_else(farm: Farm) -> None:
    host = farm.joined("beech", "[coordinator]\nslots = 3 # mine\n")
    before = (host.home / "credentials" / "host.pem").read_text()
    host.join(farm.master, URL["a"], "beech")
    assert (host.home / "credentials" / "host.pem").read_text() != before
    assert (host.home / "biruda.conf").read_text() == "[coordinator]\nslots = 3 # mine\n"
    host.start("coordinator")
    again = host.command("join", URL["a"], "--token", farm.token(), "--name", "beech")
    assert "down, then biruda" in again.stdout


def refused(host: RealFarm, *args: str) -> tuple[str, str]:
    """What `biruda join` says where it is refused: the sentence, and the hint."""
    done = host.command("join", *args)
    assert done.returncode in (1, 2, 3), done
    assert not (host.home / "credentials").exists()
    sentence, _, hint = done.stderr.partition("\nhint: ")
    return sentence.removeprefix("biruda: ").rstrip("\n"), hint.rstrip("\n")


def test_tokens_that_let_nobody_in(farm: Farm, tmp_path: Path) -> None:
    host, used = farm.host("beech"), farm.token()
    assert farm.host("oak").command("join", URL["a"], "--token", used, "--name", "oak").returncode == 0
    sentence, hint = refused(host, URL["a"], "--token", used, "--name", "beech")
    assert sentence.startswith("this token was used at ")
    assert sentence.endswith(" UTC by oak")
    assert hint == "`biruda token` on the master makes another"

    other = RealFarm(tmp_path / "other", '[master]\nlink_listen = ":7999"\n', prefix=farm.network.prefix("m"))
    farm.hosts.append(other)
    other.start("master")
    strange = json.loads(other.command("token", "--json").stdout)["token"]
    sentence, hint = refused(host, URL["a"], "--token", strange, "--name", "beech")
    words = "is not the master that this token came from; nothing was told to it"
    assert sentence == f"what answers at {URL['a']} {words}"
    assert hint.startswith("check the address")
    sentence, hint = refused(host, URL["a"], "--token", farm.token("--host", "elm"), "--name", "beech")
    assert sentence == "this token is for the host elm, not for beech"
    sentence, hint = refused(host, URL["a"], "--token", farm.token(), "--name", "oak")
    assert sentence.startswith("another host called oak joined at ")
    assert hint.endswith("biruda token --host oak")
    sentence, hint = refused(host, URL["a"], "--token", used[:-1] + "7", "--name", "beech")
    assert (sentence, hint) == ("this is no join token of biruda", "copy the whole line that `biruda token` printed")
    assert refused(host, URL["a"].replace("https", "http"), "--token", used)[0].endswith("must be https://HOST:PORT")
    sentence, hint = refused(host, f"https://{SUBNET}1.1:9", "--token", farm.token())
    assert sentence == f"no master answers at https://{SUBNET}1.1:9: nobody listens there"
    assert refused(host, URL["a"], "--token", farm.token(), "--name", "not a name")[0].endswith("is no name for a host")
    assert "Traceback" not in farm.log


def test_an_expired_token(farm: Farm) -> None:
    token, host = farm.token("--ttl", "1s"), farm.host("beech")
    made_s = time.time()
    until("its second is over", lambda: time.time() > made_s + 1)
    sentence, hint = refused(host, URL["a"], "--token", token, "--name", "beech")
    assert sentence.startswith("this token expired at ")
    assert hint == "`biruda token` on the master makes another"


def test_a_master_without_a_listener_says_how_to_get_one(tmp_path: Path) -> None:
    home = RealFarm(tmp_path / "m")
    try:
        home.start("master")
        done = home.command("token")
        assert done.returncode == 1
        assert done.stderr == (
            "biruda: this master takes no other hosts\n"
            'hint: [master] link_listen = ":7879" in its biruda.conf, and restart it\n'
        )
        assert not (home.home / "ca").exists()
        assert home.command("hosts").stdout == "no host has joined; biruda token makes a token for one\n"
    finally:
        home.stop()


# Links that are refused.


def test_a_revoked_host_is_cut_off_at_once_and_told_why(farm: Farm) -> None:
    host = farm.joined("beech")
    host.start("coordinator")
    done = farm.master.command("revoke", "beech", "--reason", "the disk was stolen")
    assert (done.returncode, done.stdout) == (0, "beech: 1 certificate revoked\n")
    until("the link is cut", lambda: "beech" not in farm.connected(), 5)
    farm.is_told(host, "the certificate of beech was revoked at ")
    assert ": the disk was stolen (root)" in host.daemons["coordinator"].log.read_text()
    assert "revoked: the disk was stolen" in farm.master.command("hosts").stdout
    assert farm.connected() == set()
    host.join(farm.master, URL["a"], "beech")  # the daemon takes the new credentials up by itself
    until("the host is back", lambda: "beech" in farm.connected())
    assert farm.master.command("revoke", "nobody").stderr.startswith("biruda: no host called 'nobody' has joined\n")


def test_an_expired_certificate_is_refused(farm: Farm) -> None:
    farm.master.daemons["master"].kill()
    farm.configure(MASTER + "certificate_s = 1\n")
    farm.master.start("master")
    host = farm.joined("beech")
    expires_s = tls.owner_of(
        host.home / "credentials" / "host.pem", host.home / "credentials" / "authority.pem"
    ).expires_s
    until("the certificate has expired", lambda: time.time() > expires_s + 0.1)
    host.start("coordinator", linked=False)
    farm.is_told(host, f"the certificate of beech expired at {tls.when(expires_s)}")
    assert farm.connected() == set()


def test_a_host_of_another_farm_is_refused(farm: Farm, tmp_path: Path) -> None:
    other = RealFarm(tmp_path / "other", '[master]\nlink_listen = ":7999"\n', prefix=farm.network.prefix("m"))
    farm.hosts.append(other)
    other.start("master")
    host = farm.host("beech", f'[coordinator]\nmaster = "{URL["a"]}"\n')
    host.join(other, f"https://{SUBNET}1.1:7999", "beech")
    host.start("coordinator", linked=False)
    own = "its certificate is not signed by this farm's authority (self-signed certificate in certificate chain)"
    gone = f"refused {SUBNET}1.2: it went away within the TLS handshake, as a host of another farm does"
    farm.is_told(host, f"{URL['a']}: {own}", master=gone)

    mixed = farm.joined("oak")  # its authority is the right one, and its certificate another's
    shutil.copy(host.home / "credentials" / "host.pem", mixed.home / "credentials" / "host.pem")
    done = mixed.command("coordinator")
    assert done.returncode == 1
    assert "host.pem: this file is not signed by this farm's authority" in done.stderr
    assert "hint: `biruda token` on the master makes a token" in done.stderr


def test_a_host_under_another_name_is_refused(farm: Farm) -> None:
    host = farm.joined("beech")
    (host.home / "biruda.conf").write_text('[coordinator]\nhost = "oak"\n')
    host.start("coordinator", linked=False)
    farm.is_told(host, "it says that it is oak, and its certificate is for beech")
    assert farm.connected() == set()


def test_https_without_having_joined(farm: Farm) -> None:
    host = farm.host("beech", f'[coordinator]\nmaster = "{URL["a"]}"\n')
    done = host.command("coordinator")
    assert done.returncode == 1
    assert "host.pem: there is none: this host has not joined a farm" in done.stderr


def test_plain_links_may_be_allowed(farm: Farm) -> None:
    farm.master.daemons["master"].kill()
    farm.configure('[master]\nlisten = ":7878"\nplain_links = true\n')
    farm.master.start("master")
    config = f'[coordinator]\nhost = "b"\nmaster = "http://{SUBNET}1.1:7878"\ntoken_file = "{farm.master.home}/token"\n'
    farm.host("b", config).start("coordinator")
    assert farm.connected() == {"b"}


# Renewal.


def serial(host: RealFarm) -> str:
    """That of the host's certificate; it is read in two pieces, and may be replaced between them."""
    credentials = host.home / "credentials"
    found = until("a pair", lambda: _serial(credentials))
    assert isinstance(found, str)
    return found


def _serial(credentials: Path) -> str:
    with suppress(ConfigError):
        return tls.owner_of(credentials / "host.pem", credentials / "authority.pem").serial
    return ""


def test_certificates_are_renewed_before_they_end(farm: Farm) -> None:
    farm.master.daemons["master"].kill()
    farm.configure(MASTER + "certificate_s = 6\n")
    farm.master.start("master")
    host = farm.joined("beech")
    first = serial(host)
    host.start("coordinator")
    until("the certificate is renewed", lambda: serial(host) != first, 20)
    second = serial(host)
    until("it is renewed again", lambda: serial(host) != second, 20)
    farm.network.cut("a")
    farm.network.mend("a")
    farm.master.daemons["master"].kill()
    farm.master.start("master")
    until("the next connection stands on it", lambda: "beech" in farm.connected(), 40)
    assert "was renewed, until " in host.daemons["coordinator"].log.read_text()
    assert "host=beech renewed its certificate" in farm.log


def test_a_host_without_a_clock_joins_links_and_does_not_renew_for_ever(farm: Farm) -> None:
    library = next(Path("/usr/lib").glob("**/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("no libfaketime.so.1: apt-get install faketime")
    clock = (f"LD_PRELOAD={library}", "FAKETIME=@1971-01-01 00:00:00", "DONT_FAKE_MONOTONIC=1")
    host = farm.host("beech")
    host.prefix = [*host.prefix, "env", *clock]
    host.join(farm.master, URL["a"], "beech")
    first = serial(host)
    host.start("coordinator")
    job = farm.master.finished(farm.master.submit("echo late", env="host"))
    assert job["outcome"] == "passed"
    assert serial(host) == first
    assert "renewed" not in farm.log
    assert host.daemons["coordinator"].log.read_text().startswith("1971-01-01 ")


# Coordinators that listen.

PROBE = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def tries(network: Network, where: str, address: str, port: int = 7880) -> str:
    done = subprocess.run(
        [*network.prefix(where), sys.executable, "-c", PROBE, address, str(port)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def second_interface(network: Network) -> None:
    """eth1 in a, 10.99.75.2, with its other end in m."""
    end = f"w{network.tag}a"
    network.ip(*f"link add {end} netns {network.name('m')} type veth peer name eth1 netns {network.name('a')}".split())
    for host, interface, address in (("m", end, f"{SUBNET}5.1/24"), ("a", "eth1", f"{SUBNET}5.2/24")):
        network.ip("-n", network.name(host), "addr", "add", address, "dev", interface)
        network.ip("-n", network.name(host), "link", "set", interface, "up")


def test_a_coordinator_listens_on_one_interface_and_on_no_other(farm: Farm) -> None:
    network = farm.network
    second_interface(network)
    farm.master.daemons["master"].kill()
    farm.configure(MASTER + f'dial = ["{SUBNET}5.2:7880"]\ncertificate_s = 15\n')
    farm.master.start("master")
    until("the master says that nobody is there", lambda: f"coordinator at {SUBNET}5.2:7880: " in farm.log)
    host = farm.joined("beech", '[coordinator]\nlisten = "eth1:7880"\n')
    first = serial(host)
    host.start("coordinator", linked=False)
    assert f"waiting for the master on interface eth1: {SUBNET}5.2:7880" in host.daemons["coordinator"].log.read_text()
    until("the master has dialled", lambda: "beech" in farm.connected(), 40)
    job = farm.master.finished(farm.master.submit("echo listened", env="host"))
    assert (job["outcome"], job["host"]) == ("passed", "beech")

    assert tries(network, "m", f"{SUBNET}5.2") == "connected"
    assert tries(network, "m", f"{SUBNET}1.2") == "ConnectionRefusedError"  # its other address
    assert tries(network, "a", "127.0.0.1") == "ConnectionRefusedError"
    # its address, but over the other interface: the kernel would take that for the address alone
    network.ip("-n", network.name("m"), "route", "add", f"{SUBNET}5.2/32", "via", f"{SUBNET}1.2")
    assert tries(network, "m", f"{SUBNET}5.2") in ("ConnectionRefusedError", "TimeoutError")
    network.ip("-n", network.name("m"), "route", "del", f"{SUBNET}5.2/32")
    assert tries(network, "m", f"{SUBNET}5.2") == "connected"

    until("the master renews its certificate", lambda: serial(host) != first, 30)
    assert "host=beech renewed its certificate" in farm.log
    host.daemons["coordinator"].kill()
    host.start("coordinator", linked=False)
    until("the master has dialled again", lambda: "beech" in farm.connected(), 40)
    farm.master.command("revoke", "beech", "--reason", "tried")
    until("the link is cut", lambda: "beech" not in farm.connected())
    farm.is_told(host, "the certificate of beech was revoked at ")


AS_HOST = """
import asyncio, sys, aiohttp
from pathlib import Path
from biruda.trust import tls
from biruda.transports import open_websocket
async def main():
    own = Path(sys.argv[2]) / "host.pem" if sys.argv[2] else None
    context = tls.dialling_master(Path(sys.argv[3]), own)
    context.check_hostname = False
    async with aiohttp.ClientSession() as session:
        try:
            await open_websocket(session, f"https://{sys.argv[1]}:7880/api/v1/link", context=context)
            print("linked")
        except ConnectionError as error:
            print(error)
asyncio.run(main())
"""


def test_only_the_master_may_dial_a_coordinator(farm: Farm) -> None:
    host, other = farm.joined("beech", '[coordinator]\nlisten = "dummy0:7880"\n', where="b"), farm.joined("oak")
    name = farm.network.name("b")
    done = host.command("coordinator")
    assert (done.returncode, "this host has no interface 'dummy0'" in done.stderr) == (1, True)
    farm.network.ip("-n", name, "link", "add", "dummy0", "type", "bridge")
    done = host.command("coordinator")
    assert (done.returncode, "the interface has no address" in done.stderr) == (1, True)
    farm.network.ip("-n", name, "addr", "add", f"{SUBNET}8.1/24", "dev", "dummy0")
    farm.network.ip("-n", name, "link", "set", "dummy0", "up")
    host.start("coordinator", linked=False)
    farm.network.ip("-n", farm.network.name("m"), "route", "add", f"{SUBNET}8.1/32", "via", f"{SUBNET}2.2")
    assert tries(farm.network, "m", f"{SUBNET}8.1") in ("ConnectionRefusedError", "TimeoutError")
    assert tries(farm.network, "b", f"{SUBNET}8.1") == "connected"  # what the host says to itself

    def asks(own: Path | str) -> str:
        authority = host.home / "credentials" / "authority.pem"
        done = subprocess.run(
            [*farm.network.prefix("b"), sys.executable, "-c", AS_HOST, f"{SUBNET}8.1", str(own), str(authority)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        return done.stdout.strip()

    words = "and only the master of this farm may come in here"
    assert asks("") == f"it shows no certificate, {words}"
    assert asks(other.home / "credentials") == f"its certificate is that of the host oak, {words}"
    assert (
        f"refused {SUBNET}8.1: its certificate is that of the host oak" in host.daemons["coordinator"].log.read_text()
    )


def test_the_api_refuses_what_is_no_token_request(farm: Farm) -> None:
    for body in ({"ttl_s": -1}, {"ttl_s": "long"}, {"host": "a b"}, {"host": 5}, {"more": 1}, []):
        with pytest.raises(ApiError) as problem:
            farm.master.post("/api/v1/tokens", body)
        assert problem.value.status in (409, 422)
        assert problem.value.body["detail"]
