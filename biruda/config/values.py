"""The forms of biruda's own words: names, kinds, addresses, paths."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from biruda.config.forms import STRING, Bounds, Form, enum_form, list_of, matching, refuse, required, text_form
from biruda.config.problems import BAD, Spot, choice
from biruda.model import Kind

_LATER_KINDS: Final = ("boot",)
_SSH_HOST: Final = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.@\\-]*\$?)@)?(?P<host>\[[0-9A-Fa-f:.%A-Za-z0-9]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)


class Network(StrEnum):
    """What a job in an environment can reach."""

    NONE = "none"  # a network namespace of its own with only lo
    BRIDGE = "bridge"  # an address on the coordinator's bridge
    USER = "user"  # a machine of kind qemu: what the daemon's user reaches, translated by qemu
    HOST = "host"  # the host's own network


class Accel(StrEnum):
    """What a virtual machine's processor is."""

    AUTO = "auto"  # the host's own where that passed a test, else emulated
    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on; an empty host means every interface, port 0 any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the host that is visible inside an environment."""

    host: str
    inside: str
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.inside}" + (":ro" if self.read_only else "")


def parse_address(text: str) -> Address | None:
    """HOST:PORT, :PORT or [IPv6]:PORT; None where it is none of them."""
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        return Address(host[1:-1], int(port)) if _is_ipv6(host[1:-1]) else None
    return Address(host, int(port)) if re.fullmatch(r"[A-Za-z0-9._-]*", host) else None


def _is_ipv6(text: str) -> bool:
    import ipaddress  # 6 ms that most commands need not pay

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> Address:
    return parse_address(text) or refuse('must be an address such as "127.0.0.1:7878", ":7878" or "[::1]:7878"')


def _master_url(text: str) -> str:
    scheme, separator, rest = text.rstrip("/").rpartition("://")
    address = parse_address(rest)
    if address is None or not address.host or not address.port or (separator and scheme not in ("http", "https")):
        refuse('must be "https://HOST:PORT" or "http://HOST:PORT"')
    if not separator:
        refuse(f'write "https://{rest}"')
    return f"{scheme}://{address}"


def _interface(text: str) -> Address:
    name, _, port = text.rpartition(":")
    address = parse_address(f":{port}")
    if address is None or not re.fullmatch(r"[^/\s:]{1,15}", name):
        refuse('must be an interface of this host and a port, such as "eth1:7880"')
    return Address(name, address.port)


def _peer_address(text: str) -> Address:
    address = _address(text)
    return address if address.host and address.port else refuse('must be "HOST:PORT"')


def parse_ssh_host(text: str) -> tuple[str, str, int] | None:
    """(user, host, port) of [USER@]HOST[:PORT], "" and 0 where they are left out; None where it is none."""
    match = _SSH_HOST.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        return None
    host = match["host"]
    if host.startswith("[") and not _is_ipv6(host[1:-1].partition("%")[0]):
        return None
    return match["user"] or "", host.strip("[]"), int(match["port"] or 0)


def _ssh_host(text: str) -> str:
    return text if parse_ssh_host(text) else refuse('must be a host such as "ci@beech" or "10.0.0.7:2222"')


def _ssh_option(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9]+=[^\x00-\x1f]+", text) else refuse('must be such as "Compression=yes"')


def _subnet(text: str) -> str:
    import ipaddress

    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        refuse('must be an IPv4 network such as "10.87.0.0/24"')
    if str(network) != text:
        refuse(f'write "{network}"')
    return text if 8 <= network.prefixlen <= 29 else refuse("must be between /8 and /29")


def _arch(text: str) -> str:
    from biruda.guessenv.names import ALIASES  # one list of architectures; most files name none

    if (name := ALIASES.get(text.lower(), text)) != text:
        refuse(f'write "{name}"')
    return text if re.fullmatch(r"[a-z0-9_]+", text) else refuse(f"must be {ARCH.says}")


def _kind(text: str) -> Kind:
    words = [kind.value for kind in Kind]
    if text in _LATER_KINDS:
        refuse(f"not in this version of biruda; there are {', '.join(words)}")
    return Kind(text) if text in words else refuse(f"must be {choice(text, words)}")


def _cgroup(text: str) -> str:
    if text not in ("auto", "off") and (not text.startswith("/") or ".." in text.split("/")):
        refuse('must be "auto", "off" or the absolute path of a control group')
    return text


def _relative(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        refuse('must be relative to the work directory, without ".."')
    return text


def _bind(text: str) -> Bind:
    host, _, inside = text.partition(":")
    inside, colon, mode = inside.partition(":")
    if not host.startswith("/") or not inside.startswith("/") or (colon and mode not in ("ro", "rw")):
        refuse('must be "HOST:INSIDE" or "HOST:INSIDE:ro", both absolute paths')
    if ".." in inside.split("/") or not inside.strip("/"):
        refuse('the path inside must not be "/" or contain ".."')
    return Bind(host, "/" + "/".join(part for part in inside.split("/") if part not in ("", ".")), mode == "ro")


def _directory(value: Any, bounds: Bounds, spot: Spot) -> Any:
    if type(value) is not str:
        return spot.bad_value(value, "must be a path")
    text = STRING.read(value, bounds, spot)
    return text if text is BAD or not text else str(spot.problems.directory / text)


def _one_or_many(value: Any, bounds: Bounds, spot: Spot) -> Any:
    if type(value) is str:
        name = NAME.read(value, bounds, spot)
        return BAD if name is BAD else (name,)
    return list_of(NAME, NAMES.says, least=1).read(value, bounds, spot)


NAME: Final = required(matching("a name: letters, digits, . _ -", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"))
ARCH: Final = text_form('an architecture such as "amd64", "i386" or "arm64"', _arch)
PLATFORM: Final = matching('a platform such as "debian12" or "alpine3.19.1"', r"[A-Za-z0-9._+-]+")
HOST: Final = matching("a host name", r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
USER: Final = matching("a user name or number", r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
ADDRESS: Final = text_form("an address", _address, empty=None)
INTERFACE: Final = text_form("an interface and a port", _interface, empty=None)
PEERS: Final = list_of(required(text_form("the address of a coordinator", _peer_address)), 'a list of "HOST:PORT"')
IMAGE: Final = matching('an image such as "debian:12"', r"[A-Za-z0-9](?:[A-Za-z0-9._/:@-]{0,253}[A-Za-z0-9])?")
MASTER_URL: Final = text_form("the address of a master", _master_url)
SSH_HOST: Final = text_form("a host that ssh reaches", _ssh_host)
SSH_OPTIONS: Final = list_of(required(text_form("an option of ssh", _ssh_option)), 'a list of "KEY=VALUE"')
SUBNET: Final = required(text_form("an IPv4 network", _subnet))
CGROUP: Final = required(text_form('"auto", "off" or a path', _cgroup))
KIND: Final = required(text_form("one of " + ", ".join(f'"{kind}"' for kind in Kind), _kind))
NETWORK: Final = enum_form(Network)
MACHINE: Final = matching('a machine such as "pc"', r"[a-z0-9][a-z0-9.-]{0,31}")
ACCEL: Final = enum_form(Accel)
RELATIVE: Final = text_form("a relative path", _relative)
DIRECTORY: Final = Form("a path", _directory)
PATTERNS: Final = list_of(required(RELATIVE), "a list of file patterns")
BINDS: Final = list_of(required(text_form('"HOST:INSIDE[:ro]"', _bind)), 'a list of "HOST:INSIDE[:ro]"')
NAMES: Final = Form("the name of an environment or a list of names", _one_or_many)
