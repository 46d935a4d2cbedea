"""Help pages, completion scripts, and what a command imports."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from conftest import environment
from fake_master import PASSED, FakeMaster

from biruda.cli.main import COMMANDS, biruda

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that name it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield (*path, name), found
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))


ALL = dict(commands(biruda))


@pytest.mark.parametrize("path", [(), *ALL], ids=lambda path: " ".join(path) or "biruda")
def test_every_page_shows_examples_and_fits(path: tuple[str, ...]) -> None:
    command = ALL[path] if path else biruda
    page = command.get_help(click.Context(command, info_name=" ".join(("biruda", *path)), max_content_width=80))
    assert "\nExamples:\n  biruda " in page or "\nExamples:\n  source <(biruda" in page
    assert not [line for line in page.splitlines() if len(line) > 80]
    if path and not isinstance(command, click.Group):
        assert f"biruda {' '.join(path)}" in page.partition("Examples:")[2]


def test_the_overview_says_what_the_pages_say() -> None:
    assert list(COMMANDS) == [path[0] for path in ALL if len(path) == 1]


def test_help_of_a_command(biruda: Run) -> None:
    done = biruda("run", "--help")
    assert done.stdout.startswith("Usage: biruda run [OPTIONS] -- CMD...\n")
    assert (done.stderr, done.returncode) == ("", 0)


def test_no_command_is_a_usage_error_with_the_overview(biruda: Run) -> None:
    done = biruda()
    assert done.stderr.startswith("Usage: biruda")
    assert (done.stdout, done.returncode) == ("", 2)


def test_version(biruda: Run) -> None:
    from biruda import VERSION

    assert biruda("--version").stdout == f"biruda {VERSION}\n"


def test_guess_env(biruda: Run) -> None:
    assert biruda("--guess-env").stdout.startswith("arch:      ")
    assert biruda("--guess-env", "--root=/", "--json").stdout.startswith("{\n")
    assert "Examples:" in biruda("--guess-env", "--help").stdout


def imports(home: Path, *arguments: str) -> set[str]:
    """The modules that a command has imported at its end."""
    code = (
        "import sys, atexit\n"
        f"sys.argv = ['biruda', *{arguments!r}]\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "from biruda.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(home), capture_output=True, text=True, timeout=60
    )
    return set(done.stderr.splitlines()[-1].split())


SLOW = {"asyncio", "aiohttp", "ssl", "email", "http.client", "sqlite3", "msgspec", "subprocess", "tomllib", "logging"}


@pytest.mark.parametrize(
    "arguments",
    [("jobs",), ("show", "1"), ("log", "1"), ("farm",), ("status",), ("run", "--no-source", "--detach", "--", "x")],
    ids=" ".join,
)
def test_a_client_command_starts_fast(master: FakeMaster, arguments: tuple[str, ...]) -> None:
    master.set_job(1, **PASSED)
    master.add_log(1, b"", end=True)
    modules = imports(master.home, *arguments)
    assert "biruda.cli.main" in modules
    assert not modules & SLOW
    assert not {name for name in modules if name.startswith(("biruda.master", "biruda.coordinator", "biruda.worker"))}


def test_guess_env_starts_like_the_plain_interpreter(home: Path) -> None:
    code = "import sys; print(*sorted(sys.modules))"  # the virtual environment's own start imports some, too
    plain = subprocess.run([sys.executable, "-c", code], env=environment(home), capture_output=True, text=True)
    modules = imports(home, "--guess-env") - {*plain.stdout.split()}
    assert not modules & {*SLOW, "click", "re", "json", "dataclasses", "typing", "pathlib", "enum"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(biruda: Run, tmp_path: Path, shell: str) -> None:
    script = tmp_path / f"biruda.{shell}"
    script.write_text(biruda("completion", shell).stdout)
    assert "_BIRUDA_COMPLETE" in script.read_text()
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    subprocess.run([found, "-n", str(script)], check=True, timeout=10)


@pytest.fixture
def complete(home: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Ask bash, with our script, what could come next."""
    shell = shutil.which("bash")
    if shell is None:
        pytest.skip("there is no bash here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/biruda").write_text(f'#!/bin/sh\nexec {sys.executable} -m biruda "$@"\n')
    (tmp_path / "bin/biruda").chmod(0o755)
    path = f"{tmp_path}/bin:{environment(home)['PATH']}"

    def ask(*words: str) -> list[str]:
        code = (
            "source <(biruda completion bash)\n"
            'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
            '_biruda_completion biruda 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            [str(shell), "-c", code, "x", *words],
            env=environment(home, PATH=path),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return ask


def test_completion_knows_the_farm(master: FakeMaster, complete: Callable[..., list[str]]) -> None:
    for number in (7, 12, 13):
        master.set_job(number)
    master.lists["workers"] = [{"name": "hello"}, {"name": "$(reboot)"}, {"name": "a b"}, {"name": "*"}]
    system = {"arch": "amd64", "platform": "debian12", "host": "alder", "kind": "chroot"}
    master.lists["environments"] = [{"name": "bookworm", **system}, {"name": "evil\nname,x", **system}]
    assert complete("biruda", "show", "1") == ["13", "12"]
    assert complete("biruda", "cancel", "7", "") == ["13", "12", "7"]
    assert complete("biruda", "start", "") == ["hello"]
    assert complete("biruda", "env", "show", "b") == ["bookworm"]
    assert complete("biruda", "run", "--on", "a") == ["arch="]
    assert complete("biruda", "run", "--on", "arch", "=", "") == ["amd64"]
    assert complete("biruda", "run", "--on", "arch", "=", "amd64,pl") == ["amd64,platform="]
    assert complete("biruda", "run", "--on", "arch", "=", "amd64,env", "=", "b") == ["bookworm"]


def test_completion_without_a_master(complete: Callable[..., list[str]]) -> None:
    assert complete("biruda", "st") == ["status", "start", "stop"]
    assert complete("biruda", "show", "") == []
    assert complete("biruda", "jobs", "--state", "w") == ["waiting"]
    assert complete("biruda", "jobs", "--out") == ["--outcome"]


def test_completion_does_not_wait_for_a_master_that_hangs(home: Path, complete: Callable[..., list[str]]) -> None:
    import socket
    import time

    home.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(home / "master.sock"))
        silent.listen()
        before_s = time.monotonic()
        assert complete("biruda", "show", "") == []
        assert time.monotonic() - before_s < 5


def shown_commands() -> Iterator[str]:
    """Every command line that docs/cli.md and the help pages show."""
    in_shell = False
    for line in (Path(__file__).parents[2] / "docs/cli.md").read_text().splitlines():
        in_shell = line == "```sh" if line.startswith("```") else in_shell
        if in_shell and line.startswith("biruda "):
            yield line
    for path, command in ALL.items():
        page = command.get_help(click.Context(command, info_name=" ".join(("biruda", *path))))
        for line in page.partition("Examples:")[2].splitlines():
            if line.startswith("  biruda "):
                yield line.strip().split("  ")[0]


@pytest.mark.parametrize("line", sorted({*shown_commands()}))
def test_what_is_shown_can_be_typed(line: str) -> None:
    words = shlex.split(re.split(r" [>|] ", line)[0])[1:]
    if words[0] == "--guess-env":
        return  # its own parser: test_guess_env
    context = biruda.make_context("biruda", words)
    name, command, rest = biruda.resolve_command(context, [*context._protected_args, *context.args])
    while isinstance(command, click.Group):
        context = command.make_context(name, rest, parent=context)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None
    command.make_context(name, rest, parent=context)
