"""Every section and every key. A key is one line here; the parser, docs/config.md and the example follow from it."""
# ruff: noqa: RUF009 - key() makes a field, not a value

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from biruda.config import forms, values
from biruda.config.forms import Bounds, Form
from biruda.config.keys import build, key, read_values
from biruda.config.problems import BAD, Spot
from biruda.config.values import Accel, Address, Bind, Network
from biruda.model import Kind, Step

_GIB: Final = 1024**3
_DAY_S: Final = 86400.0
_CHROOT_PIDS: Final = 4096
_MOST_PIDS: Final = 4_194_304  # the kernel's own limit
_SHELL: Final = ("/bin/sh", "-e")


@dataclass(frozen=True, slots=True, kw_only=True)
class Master:
    """The master remembers jobs, decides where they run, and serves the API and the pages."""

    listen: Address | None = key("TCP address of API and pages; empty: none.", default=None, form=values.ADDRESS)
    web: bool = key("Serve the pages beside the API.", default=True)
    anonymous_read: bool = key("Let anybody who reaches the pages read all, without a token.", default=False)
    git_files: bool = key("Let pages name git repositories on the master's disk.", default=False)
    link_listen: Address | None = key(
        "TCP address where other hosts join and link, by TLS; empty: none.", default=None, form=values.ADDRESS
    )
    dial: tuple[Address, ...] = key("Coordinators that listen, and are dialled.", default=(), form=values.PEERS)
    certificate_s: float = key("Life of a host's certificate; renewed at a third left.", default=90 * _DAY_S, low=1)
    plain_links: bool = key("Let other hosts link by [master] listen, without TLS.", default=False)
    spool: str = key("Directory of finished jobs; empty: HOME/spool.", default="", form=values.DIRECTORY)
    lease_s: float = key("How long attempts go on without contact to the master.", default=3600.0, low=1)
    infra_retries: int = key("Runs again when worker, host or link died.", default=2, low=0, high=100)
    source_cache_bytes: int = key("Room for source packs; the longest unused go first.", default=10 * _GIB)
    event_history: int = key("Events kept for watchers that come back.", default=100_000, low=0)

    def spool_directory(self, home: Path) -> Path:
        """Where finished jobs are kept."""
        return Path(self.spool) if self.spool else home / "spool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """The coordinator owns one host: its environments and what runs in them."""

    host: str = key("What this host is called in the farm; empty: its host name.", default="", form=values.HOST)
    master: str = key(
        "URL of the master; empty: the one joined, else this home's own.", default="", form=values.MASTER_URL
    )
    listen: Address | None = key(
        "INTERFACE:PORT to be dialled at, in place of dialling; empty: none.", default=None, form=values.INTERFACE
    )
    token_file: str = key("File with the token for a master at http://.", default="", form=values.DIRECTORY)
    slots: int = key("Jobs that run at once; 0: one for each CPU.", default=0, low=0, high=10_000)
    outbox_bytes: int = key("Log bytes of an attempt kept without a master.", default=8 * _GIB, low=1024**2)
    source_cache_bytes: int = key("Room for source packs; the longest unused go first.", default=10 * _GIB)
    docker_socket: str = key(
        "Unix socket of Docker; empty: DOCKER_HOST's, else /var/run/docker.sock.", default="", form=values.DIRECTORY
    )
    cgroup: str = key('Control group of all jobs: "auto", "off" or a path.', default="auto", form=values.CGROUP)
    bridge_subnet: str = key("IPv4 network of the bridge.", default="10.87.0.0/24", form=values.SUBNET)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A place on this host in which jobs run."""

    name: str = key("What it is called; unique on this host.", form=values.NAME)
    kind: Kind = key("How a worker is started there.", default=Kind.PROCESS, form=values.KIND)
    image: str = key("Container image, by name, tag or digest.", default="", form=values.IMAGE)
    root: str = key("Directory of the root tree; a chroot needs one.", default="", form=values.DIRECTORY)
    kernel: str = key("File with the kernel of a machine.", default="", form=values.DIRECTORY)
    modules: str = key("Directory with its modules; empty: none.", default="", form=values.DIRECTORY)
    machine: str = key("Type of a machine: pc, q35, microvm, virt; empty: chosen.", default="", form=values.MACHINE)
    accel: Accel = key("Processor of a machine: host's, emulated, or chosen.", default=Accel.AUTO, form=values.ACCEL)
    arch: str = key("Architecture; empty: found out by looking.", default="", form=values.ARCH)
    platform: str = key("Platform; empty: found out by looking.", default="", form=values.PLATFORM)
    slots: int = key("Jobs that run in it at once; 0: as many as the host's.", default=0, low=0, high=10_000)
    spares: int = key("Workers kept started and waiting.", default=1, low=0, high=64)
    permanent: bool = key("Keep its workers, and what jobs change there, from job to job.", default=False)
    network: Network = key(
        "What jobs reach; empty: none where they are apart, else host.", default=None, form=values.NETWORK
    )
    disk_bytes: int = key("What a job may write; 0: in docker no limit, else 4 GiB.", default=0)
    memory_bytes: int = key("Memory of one job; 0: no limit.", default=0)
    pids: int = key("Processes of one job; 0: 4096 in chroot and docker.", default=0, low=0, high=_MOST_PIDS)
    cpus: float = key("CPUs of one job, such as 1.5; 0: no limit.", default=0.0, low=0, high=10_000)
    user: str = key("User name or number that steps run as; empty: the worker's.", default="", form=values.USER)
    hostname: str = key("Host name seen in a chroot; empty: the name above.", default="", form=values.HOST)
    host: str = key("Host of kind ssh: [user@]name[:port].", default="", form=values.SSH_HOST)
    identity: str = key("File with the private key for ssh.", default="", form=values.DIRECTORY)
    known_hosts: str = key("File with the host key, the only one that counts.", default="", form=values.DIRECTORY)
    ssh_options: tuple[str, ...] = key("Options as in ssh_config.", default=(), form=values.SSH_OPTIONS)
    cache: bool = key("Leave the worker on the host of kind ssh, for the next time.", default=False)
    env: Mapping[str, str] = key("Environment variables of every step.", default={}, form=forms.VARIABLES)
    binds: tuple[Bind, ...] = key("Directories of the host, seen in chroot or docker.", default=(), form=values.BINDS)
    grace_s: float = key("Seconds from SIGTERM to SIGKILL.", default=10.0, low=0.1)

    def __post_init__(self) -> None:
        contained = self.kind in (Kind.CHROOT, Kind.DOCKER)
        if self.network is None:
            apart = contained or self.kind is Kind.QEMU
            object.__setattr__(self, "network", Network.NONE if apart else Network.HOST)
        if (contained or self.kind is Kind.QEMU) and not self.pids:
            object.__setattr__(self, "pids", _CHROOT_PIDS)
        if self.kind is not Kind.DOCKER and not self.disk_bytes:
            object.__setattr__(self, "disk_bytes", 4 * _GIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """One step of a worker, written as a table."""

    name: str = key('What results call it; empty: "step 1" and so on.', default="", form=forms.LINE)
    argv: tuple[str, ...] = key("Program and arguments; with script: the interpreter.", default=(), form=forms.ARGV)
    script: str = key("Text of a script, for /bin/sh -e or argv.", default="")
    env: Mapping[str, str] = key("Environment variables, over the worker's.", default={}, form=forms.VARIABLES)
    cwd: str = key("Where it runs, relative to the work directory.", default="", form=values.RELATIVE)
    limit_s: float = key("Time limit; 0: none.", default=0.0)
    silence_s: float = key("How long it may print nothing; 0: for ever.", default=0.0)
    always: bool = key("Run even when an earlier step failed.", default=False)


def _read_step(value: Any, bounds: Bounds, spot: Spot) -> Any:
    name = f"step {int(spot.path[-1]) + 1}"
    match value:
        case "" | [] | ["", *_]:
            return spot.bad_value(value, "names no command")
        case str():
            script = forms.STRING.read(value, bounds, spot)
            return BAD if script is BAD else Step(name=name, argv=_SHELL, script=script)
        case list():
            argv = forms.ARGV.read(value, bounds, spot)
            return BAD if argv is BAD else Step(name=name, argv=argv)
        case dict():
            table = read_values(StepTable, value, Spot(spot.problems, spot.path, f"{spot.label}: {spot.what}"))
            return _step(table, name, spot)
        case _:
            return spot.bad_value(value, "must be a string, a list of strings or a table")


def _step(values: Mapping[str, Any], name: str, spot: Spot) -> Any:
    table = build(StepTable, values)
    if table is None:
        return BAD
    if not table.argv and not table.script:
        return spot.bad(f"{spot.what}: needs 'argv' or 'script'")
    if table.argv and not table.argv[0]:
        return spot.bad(f"{spot.what}: argv names no program")
    return Step(
        name=table.name or name,
        argv=table.argv or _SHELL,
        script=table.script or None,
        env=table.env,
        cwd=table.cwd,
        limit_s=table.limit_s or None,
        silence_s=table.silence_s or None,
        always=table.always,
    )


STEPS: Final = forms.list_of(Form("a step", _read_step), "a list of steps", least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A named thing to run: `biruda start NAME`."""

    name: str = key("What `biruda start` calls it; unique in an environment.", form=values.NAME)
    environment: tuple[str, ...] = key("Environment that it runs in, or a list of them.", form=values.NAMES)
    steps: tuple[Step, ...] = key("What it does, in order.", form=STEPS)
    arch: str = key("Architecture that the environment must have.", default="", form=values.ARCH)
    platform: str = key("Platform that the environment must have.", default="", form=values.PLATFORM)
    env: Mapping[str, str] = key("Environment variables of every step.", default={}, form=forms.VARIABLES)
    artifacts: tuple[str, ...] = key("Patterns of files to keep.", default=(), form=values.PATTERNS)
    reports: tuple[str, ...] = key("Patterns of test reports to keep and read.", default=(), form=values.PATTERNS)
    source: str = key("Directory of this host to build; empty: a new one.", default="", form=values.DIRECTORY)
    limit_s: float = key("Time limit of all steps together; 0: none.", default=0.0)
    silence_s: float = key("How long it may print nothing; 0: for ever.", default=0.0)
    memory_bytes: int = key("Memory; 0: the environment's limit.", default=0)
    pids: int = key("Processes; 0: the environment's limit.", default=0, low=0, high=_MOST_PIDS)
    cpus: float = key("CPUs; 0: the environment's limit.", default=0.0, low=0, high=10_000)
    disk_bytes: int = key("What it may write; 0: the environment's limit.", default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What all files together say, complete and checked."""

    master: Master = field(default_factory=Master)
    coordinator: Coordinator = field(default_factory=Coordinator)
    environments: tuple[Environment, ...] = (Environment(name="host"),)
    workers: tuple[Worker, ...] = ()
    path: Path | None = None  # biruda.conf, None when there is none
    warnings: tuple[str, ...] = ()  # one sentence each, for an administrator


SECTIONS: Final[Mapping[str, type]] = {"master": Master, "coordinator": Coordinator}
LISTS: Final[Mapping[str, type]] = {"environment": Environment, "worker": Worker}
LATER: Final = ("boot", "project", "target")


def header(name: str) -> str:
    """A section as it is written in a file: [master], [[worker]]."""
    return f"[[{name}]]" if name in LISTS else f"[{name}]"
