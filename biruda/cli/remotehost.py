"""The host that `biruda deploy` works on: what is there, and each thing that is done to it."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from biruda.cli import deployscripts as scripts
from biruda.cli.executable import Executable
from biruda.coordinator.spawners import ssh_client
from biruda.coordinator.spawners.network import Bridge
from biruda.coordinator.spawners.ssh_client import Said
from biruda.coordinator.spawners.ssh_look import SYSTEM_SCRIPT, facts_of, kernel_arch
from biruda.coordinator.spawners.ssh_target import Target
from biruda.errors import EnvironmentFault
from biruda.model import Facts

SEND_LIMIT_S: Final = 900.0
START_LIMIT_S: Final = 180.0
REMOVE_LIMIT_S: Final = 300.0
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f]+")
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9._/@+-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class There:
    """What a host is and what of biruda it has."""

    name: str  # what it calls itself
    facts: Facts
    arches: tuple[str, ...]  # whose programs it runs, its own first
    is_root: bool
    has_systemd: bool
    seen_from: str  # the address that our connection comes from, as it sees it; "" when it does not say
    exe: str
    home: str
    unit: str  # the file's name, also where there is no systemd
    digest: str = ""  # of the executable that is there
    version: str = ""
    instance: str = ""
    pid: int = 0  # of the coordinator that runs
    joined: Mapping[str, str] = field(default_factory=dict)  # `master`, `host`: which farm it has joined
    parts: frozenset[str] = frozenset()  # of exe, home, deployed, unit, master

    @property
    def uses_unit(self) -> bool:
        """Whether a service of systemd is what runs it."""
        return self.has_systemd and self.is_root


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a command of biruda said over there."""

    status: int
    lines: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Its error, without the program's name and the hint."""
        wanted = [line.removeprefix("biruda: ") for line in self.lines if line and not line.startswith("hint: ")]
        return wanted[-1] if wanted else f"it ended with status {self.status}"

    @property
    def hint(self) -> str:
        return next((line.removeprefix("hint: ") for line in self.lines if line.startswith("hint: ")), "")


class RemoteHost:
    """One host over ssh. Every method blocks, and raises EnvironmentFault when ssh does not get there."""

    def __init__(self, target: Target, home: str = "") -> None:
        self.target = target
        self._given_home = home
        if home and (not _PLAIN_PATH.fullmatch(home) or ".." in home.split("/") or home.count("/") < 2):
            raise EnvironmentFault(
                f"--home {home!r}: must be an absolute path below a directory of the host, of plain letters",
                hint="such as /srv/biruda",
            )

    def look(self) -> There:
        """What is there now."""
        said = self._run(SYSTEM_SCRIPT + scripts.COMMON + scripts.LOOK, {"given_home": self._given_home})
        if said.text("system") != "Linux":
            raise EnvironmentFault(
                f"{self.target}: it runs {said.text('system') or 'something unknown'}",
                hint="a coordinator needs Linux",
            )
        for key in ("exe", "home"):
            if not _PATH.fullmatch(said.text(key)):
                raise EnvironmentFault(
                    f"{self.target}: {said.text(key)!r} is no path for the {key}", hint="is $HOME set?"
                )
        facts = facts_of(said)
        return There(
            name=said.text("name"),
            facts=facts,
            arches=tuple(dict.fromkeys((facts.arch, kernel_arch(said)))),
            is_root=said.text("user") == "0",
            has_systemd=said.text("systemd") == "yes",
            seen_from=said.text("connection").partition(" ")[0],
            exe=said.text("exe"),
            home=said.text("home"),
            unit=said.text("unit"),
            digest=said.text("digest").partition(" ")[0],
            version=said.text("version"),
            instance=said.text("instance") if said.text("instance").isalnum() else "",
            pid=_pid_of(said.text("status")),
            joined=_strings_of(said.text("joined")),
            parts=frozenset(said.texts("there")),
        )

    def install(self, there: There, executable: Executable) -> str:
        """The executable is in its place, and has run there; its version. EnvironmentFault in its own words."""
        wanted = {"wanted_bytes": str(executable.size_bytes), "wanted_digest": executable.sha256}
        said = self._run(
            scripts.COMMON + scripts.INSTALL,
            self._variables(there) | wanted,
            data=executable.pieces(),
            limit_s=SEND_LIMIT_S,
        )
        if said.text("problem") or not said.text("version"):
            raise EnvironmentFault(
                f"{self.target}: {said.text('problem') or 'the executable did not get there'}"[:500],
                hint="what was there is as it was; is there room, and may programs run on that file system?",
            )
        return said.text("version")

    def join(self, there: There, url: str, token: str, name: str) -> Told:
        """What `biruda join` says there."""
        given = self._variables(there) | {"url": url, "name": name}
        return _told(self._run(scripts.COMMON + scripts.JOIN, given, data=[token.encode() + b"\n"]))

    def start(self, there: There, url: str) -> Told:
        """Start its coordinator, for good where there is systemd."""
        unit = scripts.UNIT.format(exe=there.exe, home=there.home, url=url)
        said = self._run(
            scripts.COMMON + scripts.START, self._variables(there), data=[unit.encode()], limit_s=START_LIMIT_S
        )
        return _told(said)

    def stop(self, there: There) -> Told:
        """Stop its coordinator; what runs there goes on."""
        return _told(self._run(scripts.COMMON + scripts.STOP, self._variables(there), limit_s=START_LIMIT_S))

    def log(self, there: There) -> list[str]:
        """The last lines of its coordinator's log."""
        return self._run(scripts.COMMON + scripts.LOG, self._variables(there)).texts("log")

    def remove(self, there: There) -> Said:
        """Take everything away: `removed`, `killed`, `kept` and in the end `left`, or a `problem`."""
        bridge = Bridge(there.instance, "10.87.0.0/24").name if there.instance else ""
        given = self._variables(there) | {"instance": there.instance, "bridge": bridge}
        return self._run(scripts.COMMON + scripts.REMOVE, given, limit_s=REMOVE_LIMIT_S)

    def _variables(self, there: There) -> dict[str, str]:
        return {"exe": there.exe, "home": there.home, "unit": there.unit, "systemd": "yes" if there.uses_unit else ""}

    def _run(
        self,
        script: str,
        variables: Mapping[str, str],
        *,
        data: Iterable[bytes] = (),
        limit_s: float = ssh_client.LIMIT_S,
    ) -> Said:
        return ssh_client.run(self.target, script, variables, data=data, limit_s=limit_s)


def _told(said: Said) -> Told:
    status = said.text("status", "1")
    return Told(status=int(status) if status.isdigit() else 1, lines=tuple(said.texts("told")))


def _strings_of(text: str) -> dict[str, str]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, str)}


def _pid_of(text: str) -> int:
    try:
        pid = json.loads(text)["pids"]["coordinator"] if text else 0
    except (ValueError, KeyError, TypeError):
        return 0
    return pid if type(pid) is int else 0
