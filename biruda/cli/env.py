"""`biruda env`: environments, and building new ones."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from click.core import ParameterSource

from biruda.cli.answers import Fields
from biruda.cli.client import Client, Refused, as_json, quote
from biruda.cli.command import Command, Group, command, json_option, settings
from biruda.cli.farm import environment_state, show_environments, slots_text
from biruda.cli.parameters import ENVIRONMENT
from biruda.cli.screen import Screen, err, out
from biruda.cli.text import count, escape
from biruda.errors import NoMaster, UsageError

T = TypeVar("T")

_LOOK_S = 600.0  # a self-test may have to unpack, mount and start things
_host_option = click.option("--host", metavar="H", help="The one on this host, when several have that name.")


@click.group(
    "env",
    cls=Group,
    examples="""
    biruda env list
    biruda env build bookworm --suite bookworm
    biruda run --on env=bookworm -- make check
    """,
)
def env() -> None:
    """Show, test, build and remove environments: the places where jobs run."""


def _sub(made: Command) -> Command:
    env.add_command(made)
    return made


@_sub
@command("list", "biruda env list\nbiruda env list --json")
@json_option
def list_(json_wanted: bool) -> None:
    """List the environments of all hosts, and why some cannot be used."""
    found = settings().client().get("environments").parts("environments")
    if json_wanted:
        print(as_json([item.raw for item in found]))
    else:
        show_environments(out(), found)


@_sub
@command("show", "biruda env show bookworm\nbiruda env show bookworm --host alder --json")
@click.argument("name", type=ENVIRONMENT)
@_host_option
@json_option
def show(name: str, host: str | None, json_wanted: bool) -> None:
    """Show all that is known of an environment, and by which evidence."""
    client = settings().client()
    _print(_choosing(name, "show", lambda: client.get(f"environments/{quote(name)}", host=host)), json_wanted)


@_sub
@command("probe", "biruda env probe bookworm")
@click.argument("name", type=ENVIRONMENT)
@_host_option
@json_option
def probe(name: str, host: str | None, json_wanted: bool) -> int:
    """Test an environment anew: start a worker in it, ask it what it is. Exit status 1 when it cannot be used."""
    client = settings().client(timeout_s=_LOOK_S)
    body = {"host": host} if host else {}
    answer = _choosing(name, "probe", lambda: client.post(f"environments/{quote(name)}/probe", body))
    _print(answer, json_wanted)
    return 0 if answer.truth("usable") else 1


@_sub
@command("remove", "biruda env remove bookworm")
@click.argument("name", type=ENVIRONMENT)
@_host_option
def remove(name: str, host: str | None) -> None:
    """Remove an environment that `env build` made, with its root tree. Those of a biruda.conf are edited there."""
    client = settings().client(timeout_s=_LOOK_S)
    _choosing(name, "remove", lambda: client.delete(f"environments/{quote(name)}", host=host))
    out().line(f"environment {escape(name)} is removed")


@_sub
@command(
    "build",
    """
    biruda env build bookworm --suite bookworm
    biruda env build old32 --suite bookworm --arch i386 --include gcc,make
    biruda env build arm --suite bookworm --arch arm64 --emulate
    biruda env build centos6 --tarball ./centos6-rootfs.tar.xz
    biruda env build mine --directory /srv/chroot/mine
    biruda env build box --image debian:12
    biruda env build vm --kind qemu --suite bookworm
    """,
    short_help="Make an environment on this host.",
)
@click.argument("name")
@click.option("--kind", default="chroot", show_default=True, help="How workers are started in it.")
@click.option("--suite", metavar="S", help="Of a Debian-like distribution: bookworm, jammy.")
@click.option("--arch", metavar="A", help="Such as i386.  [default: this host's]")
@click.option("--include", "packages", multiple=True, metavar="PKG,...", help="More packages to install.")
@click.option("--mirror", metavar="URL", help="Where the suite's packages come from.")
@click.option("--keyring", type=click.Path(path_type=Path), metavar="F", help="Of who signs those.  [default: apt's]")
@click.option("--tarball", type=click.Path(path_type=Path), metavar="F", help="A root tree, packed.")
@click.option("--directory", type=click.Path(path_type=Path), metavar="D", help="A root tree, copied.")
@click.option("--emulate", is_flag=True, help="Have the kernel run a foreign --arch by qemu-user, until the next boot.")
@click.option("--replace", is_flag=True, help="Instead of the one of that name that is there.")
@click.option("--fresh", is_flag=True, help="Do not use what an earlier build of the same kept.")
@click.option("--kernel", type=click.Path(path_type=Path), metavar="F", help="Of a machine.  [default: the suite's]")
@click.option("--image", metavar="I", help="A container image by name, pulled where it is not there.")
def build(
    name: str,
    kind: str,
    suite: str | None,
    arch: str | None,
    packages: tuple[str, ...],
    mirror: str | None,
    keyring: Path | None,
    tarball: Path | None,
    directory: Path | None,
    kernel: Path | None,
    image: str | None,
    replace: bool,
    fresh: bool,
    emulate: bool,
) -> int:
    """Make an environment on this host, from packages or from a root tree, and register it here."""
    options = settings()
    options.only_here("env build")
    if image is not None and _is_default("kind"):
        kind = "docker"
    _check_source(kind, image, suite, tarball, directory)
    if suite is None and (packages or mirror or keyring):
        raise UsageError("--include, --mirror and --keyring go with --suite: a root tree is taken as it is")
    if kernel is not None and kind != "qemu":
        raise UsageError("--kernel goes with --kind qemu: others run on this host's")
    from biruda.cli.detach import make_home
    from biruda.config import docker_socket, find_config, load, proxies
    from biruda.coordinator import envbuild
    from biruda.model import Kind

    make_home(options.home)
    config = load(find_config(options.home, None), home=options.home)
    envbuild.build(
        options.home,
        name,
        kind=Kind(kind),
        kernel=kernel,
        image=image,
        docker=docker_socket(config.coordinator.docker_socket, os.environ),
        suite=suite,
        arch=arch,
        include=[package for given in packages for package in given.split(",") if package],
        tarball=tarball,
        directory=directory,
        mirror=mirror,
        keyring=keyring,
        replace=replace,
        fresh=fresh,
        emulate=emulate,
        proxies=proxies(os.environ),
        progress=lambda text: err().line(f"biruda: {escape(text)}"),
    )
    return _register(options.client(timeout_s=_LOOK_S), name, anew=replace)


def _check_source(kind: str, image: str | None, *sources: object) -> None:
    if kind not in ("chroot", "docker", "qemu"):
        raise UsageError(f"env build makes environments of kind chroot, docker and qemu, not {escape(kind)}")
    if image is not None and kind != "docker":
        raise UsageError(f"--image goes with --kind docker, not {escape(kind)}")
    if sum(source is not None for source in (image, *sources)) != 1:
        more = ", --directory and --image" if kind == "docker" else " and --directory"
        raise UsageError(f"give one of --suite, --tarball{more}", hint="biruda env build --help")


def _is_default(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is ParameterSource.DEFAULT


def _register(client: Client, name: str, *, anew: bool) -> int:
    """Have it taken in. anew: it was there, and its configuration may say the same as before."""
    try:
        host = client.get("status").text("host")
        client.post(f"coordinators/{quote(host)}/reload")
        if anew:
            client.post(f"environments/{quote(name)}/probe", {"host": host})
        answer = client.get(f"environments/{quote(name)}", host=host)
    except NoMaster:
        out().line(f"environment {escape(name)} is built; the next biruda up takes it in")
        return 0
    _print_page(out(), answer)
    if not answer.truth("usable"):
        return 1
    out().line(f"next: biruda run --on env={escape(name)} -- CMD")
    return 0


def _choosing(name: str, verb: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Refused as error:
        candidates = error.problem.parts("candidates") if error.problem else []
        if error.status != 409 or not candidates:
            raise
        err().table(("NAME", "HOST"), [[item.text("name"), item.text("host")] for item in candidates])
        raise Refused(
            f"{count(len(candidates), 'host')} have an environment {escape(name)!r}: say which with --host",
            hint=f"biruda env {verb} {escape(name)} --host {escape(candidates[0].text('host'))}",
            status=error.status,
            problem=error.problem,
        ) from error


def _print(answer: Fields, json_wanted: bool) -> None:
    if json_wanted:
        print(as_json(answer.raw))
    else:
        _print_page(out(), answer)


def _print_page(screen: Screen, answer: Fields) -> None:
    state = environment_state(screen, answer)
    system = f"{answer.text('arch')} {answer.text('platform')}"
    parts = [answer.text("name"), answer.text("kind"), system, answer.text("host")]
    shown = " · ".join(escape(part) for part in parts if part.strip())
    screen.line(f"{screen.paint(state.text, state.colour)} · {shown}")
    if not answer.truth("usable"):
        screen.wrapped("  ", escape(answer.text("problem")) or "no reason was given")
    for warning in answer.texts("warnings"):
        screen.wrapped(f"  {screen.sign('infra')} ", escape(warning))
    running = ", ".join(map(str, answer.numbers("running"))) or "none"
    lines = [("slots", f"{slots_text(answer)}, {answer.number('spares')} spare"), ("jobs", running)]
    for name in ("declared", "guessed"):
        part = answer.part(name)
        if part and part.raw:
            lines.append((name, ", ".join(f"{key}={part.text(key)}" for key in part.raw)))
    if answer.truth("emulated"):
        lines.append(("emulated", "yes"))
    for name, text in lines:
        screen.wrapped(screen.paint(f"{name:<10} ", 245), escape(text))
    for sentence in answer.texts("evidence"):
        screen.wrapped("  - ", escape(sentence))
