"""A host that ssh reaches: how it is named, and what ssh's refusals to go there mean in words."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.config.values import parse_ssh_host
from biruda.errors import EnvironmentFault

OWN_STATUS: Final = 255  # with which the client itself ends; also a program over there may, but ours do not


class SshRefused(EnvironmentFault):
    """The host cannot be reached, or does not let us in: nothing was run over there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A host, and how ssh gets to it."""

    host: str
    user: str = ""  # "": as ssh's configuration says
    port: int = 0  # 0: as ssh's configuration says
    identity: str = ""  # a file with a private key; "": as ssh's configuration says
    known_hosts: str = ""  # the only file of host keys that counts; "": as ssh's configuration says
    options: tuple[str, ...] = ()  # `Key=value` of ssh_config(5), which count before ours

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")

    @property
    def key_name(self) -> str:
        """What a file of host keys calls it."""
        return f"[{self.host}]:{self.port}" if self.port not in (0, 22) else self.host


def parse_target(text: str) -> Target | None:
    """The target that `[user@]name[:port]` names; None where it names none."""
    found = parse_ssh_host(text)
    return Target(user=found[0], host=found[1], port=found[2]) if found else None


# What a refusal means.

_UNKNOWN_KEY = re.compile(r"No (\S+) host key is known for|Host key verification failed")
_CHANGED_KEY = re.compile(
    r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed|host key .*revoked", re.I
)


def refusal(target: Target, words: str, status: int) -> EnvironmentFault:
    """What the client's last words mean, as one sentence with what to do."""
    for pattern, sentence, hint in _REFUSALS:
        if re.search(pattern, words):
            return SshRefused(f"{target}: {sentence}", hint=hint)
    if _CHANGED_KEY.search(words):
        return _changed_key(target)
    if _UNKNOWN_KEY.search(words):
        return _unknown_key(target)
    if "Permission denied" in words or "Too many authentication failures" in words:
        return _key_refused(target, words)
    if status in (126, 127) or "/bin/sh" in words:
        return EnvironmentFault(f"{target}: it has no /bin/sh that runs", hint="a shell of POSIX is all that is needed")
    last = next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "")
    if status == OWN_STATUS:
        return SshRefused(f"{target}: ssh does not get in: {last or 'it says no reason'}"[:500])
    said = f": {last}"[:300] if last else ""
    return EnvironmentFault(
        f"{target}: what answers there runs no commands (status {status}){said}",
        hint="log in by hand: ssh HOST 'uname -a' has to work",
    )


_REFUSALS: Final = (
    (r"Could not resolve hostname", "the name of the host is not known", "check it, and its entry in ~/.ssh/config"),
    (
        r"Connection refused",
        "no ssh server listens there",
        "check the port; or start one: apt-get install openssh-server",
    ),
    (r"(?:timed out|Timeout, server)", "no answer in time", "is it switched on, and is a firewall in between?"),
    (r"(?:No route to host|Network is unreachable)", "there is no way to it from here", "is it switched on?"),
    (
        r"UNPROTECTED PRIVATE KEY FILE|bad permissions",
        "ssh does not take a private key that others may read",
        "chmod 600 the file",
    ),
    (r"(?:invalid format|error in libcrypto)", "the identity is no private key that ssh can read", "name another file"),
    (
        r"(?:kex_exchange_identification|banner exchange|Connection (?:closed|reset) by)",
        "it closed the connection before anybody logged in",
        "its log says why; perhaps it is busy, or another service has that port",
    ),
    (
        r"Unable to negotiate",
        "it and this host's ssh know no algorithm in common",
        "ssh_options can allow an older one; man ssh_config",
    ),
    (
        r"Bad configuration option|unknown option|unsupported option",
        "ssh does not know one of the options",
        "man ssh_config",
    ),
)


def _files_of(target: Target) -> str:
    return target.known_hosts or "~/.ssh/known_hosts"


def _scan(target: Target) -> str:
    port = f"-p {target.port} " if target.port not in (0, 22) else ""
    return f"ssh-keyscan {port}{target.host} >> {_files_of(target)}"


def _unknown_key(target: Target) -> SshRefused:
    return SshRefused(
        f"{target}: its host key is not in {_files_of(target)}, so it may be any host",
        hint=f"{_scan(target)}    and compare it with the one that the host shows: ssh-keygen -lf",
    )


def _changed_key(target: Target) -> SshRefused:
    return SshRefused(
        f"{target}: its host key is another one than in {_files_of(target)}: set up anew, or not that host",
        hint=f"if it was set up anew: ssh-keygen -f {_files_of(target)} -R '{target.key_name}' && {_scan(target)}",
    )


def _key_refused(target: Target, words: str) -> SshRefused:
    if target.identity and not Path(target.identity).exists():
        return SshRefused(f"{target}: there is no key file {target.identity}", hint="ssh-keygen -t ed25519 makes one")
    match = re.search(r"Permission denied \(([^)]*)\)", words)
    ways = f" (it takes {match[1].replace(',', ', ')})" if match else ""
    what = f"the key {target.identity}" if target.identity else "any key that this user has"
    public = f"-i {target.identity} " if target.identity else ""
    port = f"-p {target.port} " if target.port else ""
    user = f"{target.user}@" if target.user else ""
    return SshRefused(
        f"{target}: it does not take {what}{ways}",
        hint=f"ssh-copy-id {public}{port}{user}{target.host}    adds it there",
    )
