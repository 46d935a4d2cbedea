"""`biruda farm`: coordinators, environments, workers."""

import time
from datetime import datetime

import click

from biruda.cli.answers import Fields
from biruda.cli.client import Client, as_json
from biruda.cli.command import command, json_option, settings
from biruda.cli.screen import SIGNS, Cell, Screen, out
from biruda.cli.text import ago, count, escape

_USABLE = SIGNS["passed"].colour


@command(
    "farm",
    """
    biruda farm
    biruda farm --watch      stays, and draws it anew every second; Ctrl-C ends it
    biruda farm --json
    """,
)
@click.option("--watch", is_flag=True, help="Stay and draw it anew every second.")
@json_option
def farm(watch: bool, json_wanted: bool) -> int:
    """Show the farm: the hosts and their coordinators, the environments, the named workers."""
    client = settings().client()
    if json_wanted:
        parts = ("coordinators", "environments", "workers")
        print(as_json({part: [item.raw for item in client.get(part).parts(part)] for part in parts}))
        return 0
    if watch:
        from biruda.cli.watching import watch_farm

        return watch_farm(client)
    show_farm(out(), client, time.time())
    return 0


def show_farm(screen: Screen, client: Client, now_s: float) -> None:
    """Print the three tables, and under the second why environments cannot be used."""
    coordinators = client.get("coordinators").parts("coordinators")
    environments = client.get("environments").parts("environments")
    workers = client.get("workers").parts("workers")
    if not coordinators:
        screen.line("no coordinator has connected yet: start one with biruda up or biruda coordinator")
        return
    screen.table(
        ("HOST", "STATE", "SLOTS", "ARCH", "PLATFORM", "VERSION"),
        [_coordinator(screen, item, now_s) for item in coordinators],
        flexible=(0,),
    )
    for item in coordinators:
        _show_kinds(screen, item, many=len(coordinators) > 1)
    screen.line()
    show_environments(screen, environments)
    if workers:
        screen.line()
        screen.table(
            ("WORKER", "STATE", "HOST", "ENVIRONMENT", "ARCH", "PLATFORM"),
            [_worker(screen, item) for item in workers],
            flexible=(0, 3, 2),
        )


def _show_kinds(screen: Screen, coordinator: Fields, *, many: bool) -> None:
    """Which kinds of environment a host can have, and what is missing for the others."""
    kinds = coordinator.parts("kinds")
    if not kinds:
        return
    host = f" on {escape(coordinator.text('host'))}" if many else ""
    works = ", ".join(item.text("kind") for item in kinds if item.truth("usable")) or "none"
    screen.wrapped(f"kinds that work{host}: ", works)
    for item in kinds:
        reason = escape(item.text("reason"))
        if reason:
            sign = screen.sign("infra" if item.truth("usable") else "environment")
            screen.wrapped(f"{sign} {item.text('kind')}: ", reason)


def show_environments(screen: Screen, environments: list[Fields]) -> None:
    """Print environments, and below them the problems and warnings of each, whole."""
    if not environments:
        screen.line("no environments; add one: biruda env build NAME --suite bookworm")
        return
    screen.table(
        ("ENVIRONMENT", "STATE", "SLOTS", "KIND", "ARCH", "PLATFORM", "HOST"),
        [
            [
                item.text("name"),
                environment_state(screen, item),
                slots_text(item),
                item.text("kind"),
                item.text("arch") + ", emulated" * item.truth("emulated"),
                item.text("platform"),
                item.text("host"),
            ]
            for item in environments
        ],
        flexible=(0, 6),
    )
    for item in environments:
        name = escape(item.text("name"))
        if not item.truth("usable"):
            problem = escape(item.text("problem")) or "no reason was given"
            screen.wrapped(f"{screen.sign('environment')} {name}: ", problem)
        for warning in item.texts("warnings"):
            screen.wrapped(f"{screen.sign('infra')} {name}: ", escape(warning))


def environment_state(screen: Screen, item: Fields) -> Cell:
    """`● usable`, `◌ 2 running`, `◆ not usable`."""
    if not item.truth("usable"):
        return _cell(screen, "environment", "not usable")
    running = len(item.numbers("running"))
    if running:
        return _cell(screen, "running", f"{running} running")
    return _cell(screen, "passed", "usable")


def slots_text(item: Fields) -> str:
    """`1/4`: taken, and in all."""
    slots = item.maybe_number("slots")
    return f"{len(item.numbers('running'))}/{'-' if slots is None else slots}"


def _coordinator(screen: Screen, item: Fields, now_s: float) -> list[str | Cell]:
    running = len(item.numbers("running"))
    if item.truth("connected"):
        state = _cell(screen, "passed", "connected")
    else:
        go_on = f", {count(running, 'job goes', 'jobs go')} on" if running else ""
        state = _cell(screen, "infra", f"no contact{_since(item, now_s)}{go_on}")
    system = [item.text(key) for key in ("arch", "platform", "version")]
    return [item.text("host"), state, f"{running}/{item.number('slots')}", *system]


def _worker(screen: Screen, item: Fields) -> list[str | Cell]:
    running = item.numbers("running")
    if running:
        shown = ", ".join(map(str, running[:3])) + (", …" if len(running) > 3 else "")
        state = _cell(screen, "running", f"job {shown}")
    elif item.truth("usable"):
        state = _cell(screen, "passed", "ready")
    else:
        state = _cell(screen, "environment", "not usable")
    return [item.text("name"), state, *(item.text(key) for key in ("host", "environment", "arch", "platform"))]


def _since(item: Fields, now_s: float) -> str:
    text = item.text("last_contact")
    try:
        return f" since {ago(now_s - datetime.fromisoformat(text).timestamp()).removesuffix(' ago')}" if text else ""
    except ValueError:
        return ""


def _cell(screen: Screen, state: str, text: str) -> Cell:
    sign = SIGNS[state]
    return Cell(f"{screen.plain(sign.shape)} {text}", sign.colour)
