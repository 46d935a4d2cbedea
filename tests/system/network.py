"""Hosts for tests: network namespaces around that of a master."""

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

SUBNET = "10.99.7"


@dataclass
class Network:
    """A bridge-less star: the master's namespace with a veth to each coordinator's."""

    tag: str

    def name(self, host: str) -> str:
        return f"bt{self.tag}{host}"

    def prefix(self, host: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name(host)}"]

    def ip(self, *args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True)

    def cut(self, host: str) -> None:
        self.ip("-n", self.name("m"), "link", "set", f"v{self.tag}{host}", "down")

    def mend(self, host: str) -> None:
        self.ip("-n", self.name("m"), "link", "set", f"v{self.tag}{host}", "up")


@contextlib.contextmanager
def star_of_hosts() -> Iterator[Network]:
    """Three namespaces: m with a veth to each of a and b. Needs root and iproute2."""
    net = Network(secrets.token_hex(2))
    with contextlib.ExitStack() as stack:
        for host in ("m", "a", "b"):
            net.ip("netns", "add", net.name(host))
            stack.callback(net.ip, "netns", "del", net.name(host))
            net.ip("-n", net.name(host), "link", "set", "lo", "up")
        for number, host in enumerate("ab", start=1):
            end = f"v{net.tag}{host}"
            net.ip(
                "link",
                "add",
                end,
                "netns",
                net.name("m"),
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                net.name(host),
            )
            net.ip("-n", net.name("m"), "addr", "add", f"{SUBNET}{number}.1/24", "dev", end)
            net.ip("-n", net.name("m"), "link", "set", end, "up")
            net.ip("-n", net.name(host), "addr", "add", f"{SUBNET}{number}.2/24", "dev", "eth0")
            net.ip("-n", net.name(host), "link", "set", "eth0", "up")
        yield net
