"""`biruda token`, `join`, `hosts`, `revoke`: how other hosts come into the farm, and out of it."""

import socket
import sys
import time
from datetime import datetime
from pathlib import Path

import click

from biruda.cli import tokens
from biruda.cli.answers import Fields
from biruda.cli.client import as_json, quote
from biruda.cli.command import command, json_option, settings
from biruda.cli.parameters import DURATION
from biruda.cli.screen import SIGNS, Cell, Screen, out, tell
from biruda.cli.text import ago, count, duration, escape
from biruda.errors import UsageError

DEFAULT_TOKEN_S = 900.0
ROLES = ("viewer", "user", "admin")


@command(
    "token",
    """
    biruda token                        for any host, within 15 minutes
    biruda token --ttl 1d --host beech
    biruda token --json
    biruda token --role viewer --name ann --ttl 90d    to log in with
    biruda token --list
    biruda token --revoke ann
    """,
)
@click.option("--ttl", type=DURATION, help="How long it can be used; of a person's token: for ever.  [default: 15m]")
@click.option("--host", default="", metavar="NAME", help="Only for a host of this name, even if there is one already.")
@click.option("--role", type=click.Choice(ROLES), help="Not for a host: for a person or a program, with --name.")
@click.option("--name", default="", metavar="NAME", help="Of the person or program.")
@click.option("--list", "listed", is_flag=True, help="Show the tokens of persons and programs.")
@click.option("--revoke", "revoked", default="", metavar="NAME", help="End the token of NAME, and log NAME out.")
@json_option
def token(
    ttl: float | None, host: str, role: str | None, name: str, listed: bool, revoked: str, json_wanted: bool
) -> None:
    """Make a token with which one host joins this farm, and print the command to run there.

    With --role it is one to log in with: a viewer reads, a user also submits jobs and ends their own, an admin may all.
    """
    if bool(role) != bool(name):
        raise UsageError("--role and --name go together", hint="biruda token --role viewer --name ann")
    if sum((bool(role), bool(host), listed, bool(revoked))) > 1:
        raise UsageError("--host, --role, --list and --revoke are four things: choose one")
    if role:
        tokens.make(name, role, ttl, json_wanted=json_wanted)
    elif listed:
        tokens.show(json_wanted=json_wanted)
    elif revoked:
        tokens.revoke(revoked)
    else:
        _host_token(DEFAULT_TOKEN_S if ttl is None else ttl, host, json_wanted=json_wanted)


def _host_token(ttl: float, host: str, *, json_wanted: bool) -> None:
    answer = settings().client().post("tokens", {"ttl_s": ttl, "host": host})
    if json_wanted:
        print(as_json(answer.raw))
        return
    tell(f"on the new host, within {duration(ttl)}:")
    print(escape(answer.text("command")))


@command(
    "join",
    """
    biruda join https://farm.example:7879 --token aelhao4v5nlocm…
    biruda join https://10.0.0.1:7879 --token aelhao4v5nlocm… --name beech
    biruda join https://10.0.0.1:7879 --token -    reads it
    """,
)
@click.argument("master_url", metavar="URL")
@click.option("--token", "token_text", required=True, metavar="TOKEN", help="What biruda token printed; - reads it.")
@click.option("--name", default="", metavar="HOST", help="What this host is called in the farm.")
def join(master_url: str, token_text: str, name: str) -> None:
    """Make this host one of the farm of the master at URL. Again, with a new token, it gets new credentials."""
    options = settings()
    options.only_here("join")
    from biruda.cli.joinhost import join_host
    from biruda.config import find_config, load

    text = sys.stdin.read(4096) if token_text == "-" else token_text
    config = load(find_config(options.home, None), home=options.home)
    wanted = name or config.coordinator.host
    if config.coordinator.host not in ("", wanted):
        raise UsageError(
            f"--name {escape(name)}: {escape(str(config.path))} says [coordinator] host = '{config.coordinator.host}'",
            hint="leave --name out, or change the file",
        )
    joined = join_host(options.home, master_url, text, wanted or socket.gethostname())
    screen = out()
    screen.line(f"{screen.sign('passed')} this host is {escape(joined.host)} in the farm of {escape(joined.url)}")
    other = config.coordinator.master
    if other and other != joined.url:
        tell(f"{config.path} says [coordinator] master = '{escape(other)}', which counts more: take it out")
    _say_next(options.home)


def _say_next(home: Path) -> None:
    from biruda.cli.coordinating import holder

    running = holder(home, "coordinator")
    option = f" --home {home}" if settings().home_option else ""
    if running:
        out().line(f"next: biruda{option} down, then biruda{option} up: what runs now goes on for its old master")
    else:
        out().line(f"next: biruda{option} up, or biruda{option} coordinator under a service manager")


@command("hosts", "biruda hosts\nbiruda hosts --json")
@json_option
def hosts(json_wanted: bool) -> None:
    """Show the hosts that have joined, and how long their certificates are good for."""
    answer = settings().client().get("hosts")
    if json_wanted:
        print(as_json(answer.raw))
        return
    screen, found = out(), answer.parts("hosts")
    if not found:
        screen.line("no host has joined; biruda token makes a token for one")
        return
    rows = [_row(screen, item, time.time()) for item in found]
    screen.table(("HOST", "STATE", "JOINED", "FROM", "UNTIL"), rows, flexible=(0, 1))


def _row(screen: Screen, item: Fields, now_s: float) -> list[str | Cell]:
    expires_s, issued_s = _seconds(item.text("expires")), _seconds(item.text("issued"))
    state, words = "passed", "valid"
    if item.text("revoked"):
        state, words = "cancelled", f"revoked: {item.text('reason')}"
    elif expires_s <= now_s:
        state, words = "infra", "expired"
    sign = SIGNS[state]
    return [
        item.text("host"),
        Cell(f"{screen.plain(sign.shape)} {words}", sign.colour),
        ago(now_s - issued_s),
        item.text("address"),
        item.text("expires")[:10],
    ]


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


@command("revoke", "biruda revoke beech\nbiruda revoke beech --reason 'the disk was stolen'")
@click.argument("host")
@click.option("--reason", default="", metavar="TEXT", help="Shown on the host, and in biruda hosts.")
def revoke(host: str, reason: str) -> None:
    """Let a host in no more: its link is cut at once, and its certificates are refused. It can join again."""
    answer = settings().client().post(f"hosts/{quote(host)}/revoke", {"reason": reason})
    revoked = answer.number("revoked")
    what = f"{count(revoked, 'certificate')} revoked" if revoked else "it had no valid certificate"
    out().line(f"{escape(host)}: {what}")
