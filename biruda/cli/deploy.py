"""`biruda deploy`: another host becomes one of the farm, with nothing but ssh; or it is none any more."""

import ipaddress
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from biruda.cli.answers import Fields
from biruda.cli.client import Client
from biruda.cli.command import command, settings
from biruda.cli.screen import out
from biruda.cli.text import count, escape, size
from biruda.errors import EnvironmentFault, UsageError, UserError

if TYPE_CHECKING:
    from biruda.cli.remotehost import RemoteHost, There
    from biruda.coordinator.credentials import Joined
    from biruda.coordinator.spawners.ssh_target import Target

TOKEN_S: Final = 300.0
SEEN_S: Final = 60.0
LOOKED_AT_S: Final = 120.0
_POLL_S: Final = 0.2
_UNREACHABLE: Final = 3  # the status of a command that found no master


@command(
    "deploy",
    """
    biruda deploy root@beech
    biruda deploy ci@10.0.0.7 --port 2222 --identity ~/.ssh/farm
    biruda deploy beech --master https://10.0.0.1:7879 --name beech-lab
    biruda deploy root@beech --executable ./biruda-arm64
    biruda deploy root@beech --remove
    """,
    short_help="Bring in another host by ssh, or take biruda off it.",
)
@click.argument("host", metavar="[USER@]HOST")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Of its ssh server.")
@click.option("--identity", type=click.Path(path_type=Path), metavar="F", help="Private key for ssh.")
@click.option("--known-hosts", type=click.Path(path_type=Path), metavar="F", help="The file with its host key.")
@click.option("--ssh-option", "ssh_options", multiple=True, metavar="K=V", help="As in ssh_config; can be repeated.")
@click.option("--master", "master_url", default="", metavar="URL", help="This master, as that host reaches it.")
@click.option(
    "--home",
    "home_there",
    default="",
    metavar="DIR",
    help="biruda's home over there; this host's stands before deploy.",
)
@click.option("--name", default="", metavar="HOST", help="What it is called in the farm.  [default: its host name]")
@click.option("--executable", type=click.Path(path_type=Path), metavar="F", help="Bring this one.")
@click.option("--remove", is_flag=True, help="Take everything of biruda off that host.")
@click.option("--force", is_flag=True, help="With --remove: cancel what runs there.")
def deploy(
    host: str,
    port: int | None,
    identity: Path | None,
    known_hosts: Path | None,
    ssh_options: tuple[str, ...],
    master_url: str,
    home_there: str,
    name: str,
    executable: Path | None,
    remove: bool,
    force: bool,
) -> int:
    """Make another Linux host one of this farm, by ssh; again, it is brought up to date. Nothing need be there but sh.

    What runs there goes on while it is brought up to date. --remove takes all of it away again.
    """
    from biruda.cli.remotehost import RemoteHost

    target = _target(host, port, identity, known_hosts, ssh_options)
    client = settings().client()
    remote = RemoteHost(target, home_there)
    if remove:
        from biruda.cli.undeploy import undeploy

        return undeploy(client, remote, name, force=force)
    if force:
        raise UsageError("--force goes with --remove")
    client.reach()
    there = _look(remote)
    has_changed = _install(remote, there, executable)
    joined, has_joined = _join(client, remote, there, master_url, name)
    there = _start(remote, there, joined.url, anew=has_changed or has_joined)
    return _wait_until_seen(client, remote, there, joined.host)


# Behind the command, --home is the other host's.
deploy.params[:] = [each for each in deploy.params if each.expose_value or "--home" not in each.opts]


def _target(
    host: str, port: int | None, identity: Path | None, known_hosts: Path | None, options: tuple[str, ...]
) -> "Target":
    from biruda.coordinator.spawners.ssh_target import parse_target

    target = parse_target(host)
    if target is None:
        raise UsageError(f"{escape(host)!r} is no host", hint="write HOST, USER@HOST or USER@HOST:PORT")
    if target.port and port and target.port != port:
        raise UsageError(f"--port {port}: {escape(host)} names another port")
    for path in (identity, known_hosts):
        if path is not None and not path.is_file():
            raise UserError(f"{escape(str(path))}: there is no such file")
    for option in options:
        if "=" not in option:
            raise UsageError(f"--ssh-option {escape(option)}: must be KEY=VALUE", hint="man ssh_config lists the keys")
    return replace(
        target,
        port=port or target.port,
        identity=str(identity.absolute()) if identity else "",
        known_hosts=str(known_hosts.absolute()) if known_hosts else "",
        options=options,
    )


def step(text: str) -> None:
    """One thing that was done."""
    screen = out()
    screen.wrapped(f"{screen.sign('passed')} ", text)


def _look(remote: "RemoteHost") -> "There":
    there = remote.look()
    service = "systemd" if there.uses_unit else "no systemd" if not there.has_systemd else "systemd, but not as root"
    user = "root" if there.is_root else "not root"
    facts = f"{there.facts.arch} {there.facts.platform}"
    step(f"{escape(str(remote.target))} is {escape(there.name)}: {escape(facts)}, {user}, {service}")
    if "master" in there.parts and not there.joined:
        raise UserError(
            f"{escape(str(remote.target))} has a farm of its own in {escape(there.home)}",
            hint="--home DIR puts a coordinator beside it",
        )
    return there


def _install(remote: "RemoteHost", there: "There", given: Path | None) -> bool:
    """Whether another executable is there now."""
    from biruda.cli.executable import find_executable

    executable = find_executable(given, there.arches)
    if there.digest == executable.sha256 and there.version:
        step(f"{escape(there.exe)} is there: {escape(there.version)}")
        return False
    step(f"sending {size(executable.size_bytes)} to {escape(there.exe)}")
    version = remote.install(there, executable)
    step(f"{escape(there.exe)} runs there: {escape(version)}")
    return True


# Joining.


def _join(client: Client, remote: "RemoteHost", there: "There", master_url: str, name: str) -> "tuple[Joined, bool]":
    """The farm that the host belongs to, and whether it joined it only now."""
    from biruda.coordinator.credentials import Joined

    wanted = name or there.joined.get("host") or there.name
    known = there.joined.get("master", "")
    is_same = known and there.joined.get("host") == wanted and master_url.rstrip("/") in ("", known)
    if is_same and is_valid(client, wanted):
        step(f"it has joined as {escape(wanted)}, at {escape(known)}")
        return Joined(url=known, host=wanted), False
    made = client.post("tokens", {"ttl_s": TOKEN_S, "host": ""})
    url = master_url.rstrip("/") or _url_there(made.text("url"), there.seen_from)
    told = remote.join(there, url, made.text("token"), wanted)
    if told.status == _UNREACHABLE:
        raise UserError(
            f"{escape(str(remote.target))} cannot reach this master: {escape(told.sentence)}",
            hint="say how it can with --master https://HOST:PORT, or let the firewall allow it; nothing was started",
        )
    if told.status:
        raise UserError(f"{escape(str(remote.target))}: {escape(told.sentence)}", hint=escape(told.hint))
    step(f"joined as {escape(wanted)}, at {escape(url)}")
    return Joined(url=url, host=wanted), True


def is_valid(client: Client, host: str) -> bool:
    """Whether a host has a certificate that the master takes."""
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    for item in client.get("hosts").parts("hosts"):
        if item.text("host") == host and not item.text("revoked"):
            try:
                if datetime.fromisoformat(item.text("expires")) > now:
                    return True
            except ValueError:
                continue
    return False


def _url_there(url: str, seen_from: str) -> str:
    """The master's URL as the other host may use it: where it listens, or else where our ssh connection comes from."""
    from biruda.cli.address import address_of

    address = address_of(url)
    try:
        listens_at = ipaddress.ip_address(address.host)
    except ValueError:
        listens_at = None
    if listens_at is not None:
        if listens_at.is_loopback:
            raise UserError(
                f"this master takes other hosts at {escape(url)} only, which none of them reaches",
                hint='[master] link_listen = ":7879" in its biruda.conf, and restart it',
            )
        return url
    asked = settings().url
    here = seen_from if not asked or settings().address.socket_path else settings().address.host
    if not here:
        return url
    return f"https://{f'[{here}]' if ':' in here else here}:{address.port}"


# Starting.


def _start(remote: "RemoteHost", there: "There", url: str, *, anew: bool) -> "There":
    if there.pid and not anew:
        step(f"its coordinator runs, pid {there.pid}")
        return there
    if there.pid:
        told = remote.stop(there)
        if told.status:
            raise EnvironmentFault(
                f"{remote.target}: its coordinator cannot be stopped: {told.sentence}", hint=told.hint
            )
        step("its coordinator is stopped: what runs there goes on")
    told = remote.start(there, url)
    if told.status:
        raise EnvironmentFault(f"{remote.target}: its coordinator does not start: {told.sentence}", hint=told.hint)
    how = f"by systemd, as {there.unit}" if there.uses_unit else "by itself: after a reboot, deploy it again"
    step(f"its coordinator is started, {how}")
    return remote.look()


def _wait_until_seen(client: Client, remote: "RemoteHost", there: "There", name: str) -> int:
    deadline = time.monotonic() + SEEN_S
    while (
        (item := _coordinator(client, name)) is None or not item.truth("connected") or item.number("pid") != there.pid
    ):
        if time.monotonic() > deadline:
            raise _not_seen(remote, there)
        time.sleep(_POLL_S)
        if not there.pid:
            there = remote.look()
    environments = _environments(client, name)
    deadline = time.monotonic() + LOOKED_AT_S
    while any(each.text("problem") == "it is being looked at" for each in environments) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        environments = _environments(client, name)
    usable = sum(each.truth("usable") for each in environments)
    step(
        f"{escape(name)} is in the farm: {count(item.number('slots'), 'slot')}, "
        f"{count(usable, 'environment')} that can be used"
    )
    from biruda.cli.farm import show_environments

    show_environments(out(), environments)
    return 0


def _coordinator(client: Client, name: str) -> Fields | None:
    found = client.get("coordinators").parts("coordinators")
    return next((item for item in found if item.text("host") == name), None)


def _environments(client: Client, name: str) -> list[Fields]:
    return [item for item in client.get("environments").parts("environments") if item.text("host") == name]


def _not_seen(remote: "RemoteHost", there: "There") -> EnvironmentFault:
    lines = [line for line in remote.log(there) if "no link to the master" in line] or remote.log(there)
    last = lines[-1].partition("no link to the master: ")[2] or lines[-1] if lines else "its log is empty"
    return EnvironmentFault(
        f"{remote.target}: its coordinator runs, but gets no link to this master: {last}"[:600],
        hint=f"its log is {there.home}/log/daemon.log"
        + (f", or journalctl -u {there.unit}" if there.uses_unit else ""),
    )
