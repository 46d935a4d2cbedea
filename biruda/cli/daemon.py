"""`biruda up`, `down`, `status`, and the roles in the foreground."""

import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import click

from biruda import VERSION
from biruda.cli.answers import Fields
from biruda.cli.client import Client, as_json
from biruda.cli.command import command, json_option, settings
from biruda.cli.coordinating import Elsewhere, elsewhere
from biruda.cli.jobview import job_of
from biruda.cli.screen import out, tell
from biruda.cli.text import ago, count, escape
from biruda.errors import BirudaError, UsageError, UserError

_STOP_LIMIT_S = 120.0
_PATIENT_AFTER_S = 5.0
_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Read this, not HOME/biruda.conf or /etc/biruda/biruda.conf.",
)


@command(
    "up",
    """
    biruda up                              this host becomes a farm
    biruda up --config ./biruda.conf
    biruda --home /srv/second up           one more beside it
    biruda up --foreground                 for a service manager
    """,
)
@_config_option
@click.option("--foreground", is_flag=True, help="Stay, and log to stderr.")
def up(config: Path | None, foreground: bool) -> int:
    """Start this host's daemon: master and coordinator in one process. Returns when it takes jobs."""
    options = settings()
    options.only_here("up")
    if foreground:
        return _serve(options.home, config, master=True, coordinator=True)
    from biruda.cli.detach import start_detached

    arguments = ["--config", str(config.absolute())] if config else []
    start_detached(options.home, ["--home", str(options.home), "up", "--foreground", *arguments])
    there = elsewhere(options.home, config)
    if there is None:
        _print_welcome(settings().client())
    else:
        out().line(f"biruda is up on {escape(there.host)}, pid {there.pid}")
        _print_facts(_facts_of(there))
    return 0


@command("master", "biruda master\nbiruda master --config /etc/biruda/biruda.conf")
@_config_option
def master(config: Path | None) -> int:
    """Serve as master in the foreground until SIGTERM: remember jobs, decide where they run, serve the API."""
    settings().only_here("master")
    return _serve(settings().home, config, master=True, coordinator=False)


@command("coordinator", "biruda coordinator\nbiruda coordinator --config /etc/biruda/biruda.conf")
@_config_option
def coordinator(config: Path | None) -> int:
    """Serve as coordinator in the foreground until SIGTERM: run this host's jobs for [coordinator] master."""
    settings().only_here("coordinator")
    return _serve(settings().home, config, master=False, coordinator=True)


def _serve(home: Path, path: Path | None, *, master: bool, coordinator: bool) -> int:
    from biruda.cli.detach import telling_who_waits
    from biruda.cli.roles import serve
    from biruda.config import find_config, load

    with telling_who_waits():
        config = load(find_config(home, path), home=home)
        return serve(home, config, master=master, coordinator=coordinator)


def _facts_of(there: Elsewhere) -> list[tuple[str, str]]:
    home = settings().home
    whose = f"the one at {there.master}; ask there for jobs" if there.master else "the one that dials this host"
    return [("home", str(home)), ("master", whose), ("log", str(home / "log" / "daemon.log"))]


def _print_welcome(client: Client) -> None:
    status, screen = client.get("status"), out()
    pids = sorted(set(pids_of(status).values()))
    screen.line(f"biruda is up on {escape(status.text('host'))}, pid {', '.join(map(str, pids))}")
    _print_facts(
        [
            ("home", status.text("home")),
            ("socket", client.address.shown),
            ("web and API", _web(status)),
            ("environments", ", ".join(map(_environment, client.get("environments").parts("environments"))) or "none"),
        ]
    )
    screen.line("next: biruda run -- CMD, and biruda farm shows what there is")


def _web(status: Fields) -> str:
    listen = status.text("listen")
    return f"http://{listen}" if listen and "://" not in listen else listen


def _environment(item: Fields) -> str:
    problem = "" if item.truth("usable") else ", not usable"
    return f"{item.text('name')} ({item.text('kind')}, {item.text('arch')} {item.text('platform')}{problem})"


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    screen = out()
    for name, text in facts:
        if text:
            screen.wrapped(screen.paint(f"  {name:<13} ", 245), escape(text))


@command("status", "biruda status\nbiruda status --json")
@json_option
def status(json_wanted: bool) -> None:
    """Show this host's daemon: where it is, what it does, what is wrong."""
    there = None if settings().url else elsewhere(settings().home)
    if there is not None:
        _print_elsewhere(there, json_wanted)
        return
    answer = settings().client().get("status")
    if json_wanted:
        print(as_json(answer.raw))
        return
    screen, jobs = out(), answer.part("jobs")
    screen.line(f"{screen.sign('passed')} biruda {escape(answer.text('version'))} on {escape(answer.text('host'))}")
    hosts = [
        f"{item.text('host')}{'' if item.truth('connected') else ' (no contact)'}"
        for item in answer.parts("coordinators")
    ]
    _print_facts(
        [
            ("pids", ", ".join(f"{role} {pid}" for role, pid in pids_of(answer).items())),
            ("started", _started(answer)),
            ("home", answer.text("home")),
            ("spool", answer.text("spool")),
            ("web and API", _web(answer) or "the local socket only"),
            ("jobs", f"{jobs.number('running')} running, {jobs.number('waiting')} waiting" if jobs else ""),
            ("coordinators", ", ".join(hosts) or "none"),
        ]
    )
    for warning in answer.texts("warnings"):
        screen.wrapped(f"{screen.sign('infra')} ", escape(warning))


def _print_elsewhere(there: Elsewhere, json_wanted: bool) -> None:
    if json_wanted:
        print(as_json(there.as_json()))
        return
    out().line(
        f"{out().sign('passed')} biruda {VERSION} on {escape(there.host)}, a coordinator of another master's farm"
    )
    _print_facts([("pids", f"coordinator {there.pid}"), *_facts_of(there)])


def pids_of(answer: Fields) -> dict[str, int]:
    """The processes of the daemon by role."""
    pids = answer.part("pids")
    return {role: pids.number(role) for role in pids.raw if pids.number(role)} if pids else {}


def _started(answer: Fields) -> str:
    text = answer.text("started")
    try:
        return ago(time.time() - datetime.fromisoformat(text).timestamp()) if text else ""
    except ValueError:
        return text


@command(
    "down",
    """
    biruda down              running jobs go on; the next up finds them
    biruda down --cancel     end them first
    """,
)
@click.option("--cancel", is_flag=True, help="Cancel what runs, and wait until it has ended.")
def down(cancel: bool) -> int:
    """Stop this host's daemon. Jobs survive that: what runs goes on, what waits is kept."""
    options = settings()
    options.only_here("down")
    there = elsewhere(options.home)
    if there is not None:
        if cancel:
            raise UsageError("--cancel: the jobs here are another master's", hint="cancel them there, or leave it out")
        _stop({there.pid})
        out().line("biruda is down: what runs here goes on for its master until the next up, or its lease ends")
        return 0
    client = options.client()
    answer = client.get("status")
    if cancel:
        _cancel_running(client)
        answer = client.get("status")
    pids = pids_of(answer)
    _stop({pid for role, pid in pids.items() if role in ("master", "coordinator")})
    jobs = answer.part("jobs")
    running, waiting = (jobs.number("running"), jobs.number("waiting")) if jobs else (0, 0)
    kept = [
        *([f"{count(running, 'job goes', 'jobs go')} on without it"] if running else []),
        *([f"{count(waiting, 'job is', 'jobs are')} kept waiting"] if waiting else []),
    ]
    out().line(f"biruda is down{': ' if kept else ''}{', '.join(kept)}")
    return 0


def _cancel_running(client: Client) -> None:
    numbers = [job_of(item).number for item in client.get("jobs", state="running", limit=1000).parts("jobs")]
    for number in numbers:
        with suppress(UserError):  # it has ended meanwhile
            client.post(f"jobs/{number}/cancel", {"reason": "biruda down --cancel"})
    for number in numbers:
        while not job_of(client.get(f"jobs/{number}", wait_s=30)).finished:
            tell(f"job {number} has not ended yet")
    if numbers:
        out().line(f"cancelled {count(len(numbers), 'job')}")


def _stop(pids: set[int]) -> None:
    """SIGTERM, and return when all of them have ended. A pidfd cannot mean another process by then."""
    if not pids:
        raise BirudaError("the master does not say which processes it has", hint="stop it by hand")
    watched = {_open(pid): pid for pid in pids}
    watched.pop(-1, None)
    try:
        for descriptor, pid in watched.items():
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            except ProcessLookupError:
                pass
            except PermissionError:
                raise UserError(f"pid {pid} is another user's", hint="run biruda down as that user") from None
        _await_end(watched)
    finally:
        for descriptor in watched:
            os.close(descriptor)


def _open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _await_end(watched: dict[int, int]) -> None:
    deadline_s, told = time.monotonic() + _STOP_LIMIT_S, False
    left, poll = dict(watched), select.poll()
    for descriptor in left:
        poll.register(descriptor, select.POLLIN)
    while left:
        for descriptor, _ in poll.poll(_PATIENT_AFTER_S * 1000):
            poll.unregister(descriptor)
            del left[descriptor]
        names = ", ".join(map(str, left.values()))
        if left and time.monotonic() > deadline_s:
            raise BirudaError(f"pid {names} has not ended {_STOP_LIMIT_S:.0f} s after SIGTERM", hint=f"kill -9 {names}")
        if left and not told:
            told = True
            tell(f"pid {names} is still ending")
