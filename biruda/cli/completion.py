"""`biruda completion SHELL`, and what the shells then ask for: commands, options, and names that the farm knows."""

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from biruda.cli.answers import Fields
from biruda.cli.command import Settings, command
from biruda.errors import BirudaError

LIMIT_S = 0.3
_SAFE = re.compile(r"[A-Za-z0-9_.@+-]{1,100}")  # the scripts leave the rest to the shell's mercy: names may be hostile
_VARIABLE = "_BIRUDA_COMPLETE"

EXAMPLES = """
source <(biruda completion bash)            for this bash only
biruda completion bash > ~/.local/share/bash-completion/completions/biruda
biruda completion zsh > ~/.zfunc/_biruda    with ~/.zfunc in $fpath
biruda completion fish > ~/.config/fish/completions/biruda.fish
"""


@command("completion", EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell. With it, the tab key also knows jobs, workers and environments."""
    from biruda.cli.main import biruda

    completer = _completer(biruda, shell)
    click.echo(completer.source_template % completer.source_vars())


class _Bash(BashComplete):
    """bash takes `arch=amd64` for three words; here it is one again, and answers begin at bash's last word."""

    source_template = BashComplete.source_template.replace(
        "    return 0\n", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n\n    return 0\n"
    )
    _before = ""  # what stands before bash's last word in ours

    def get_completion_args(self) -> tuple[list[str], str]:
        words, last = super().get_completion_args()
        joined: list[str] = []
        glue = False
        for word in [*words, last]:
            if joined and (glue or word == "="):
                joined[-1] += word
            else:
                joined.append(word)
            glue = word == "="
        self._before = "".join(joined[-1].rpartition("=")[:2])
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem[str]) -> str:
        return super().format_completion(CompletionItem(item.value.removeprefix(self._before), type=item.type))


def complete(biruda: click.Group) -> int:
    """Answer a shell that asks what could come next."""
    shell, _, what = os.environ[_VARIABLE].partition("_")
    if what != "complete" or shell not in ("bash", "zsh", "fish"):
        return 1
    try:
        click.echo(_completer(biruda, shell).complete())
    except (BirudaError, KeyError, ValueError):
        return 1  # what is typed so far makes no sense
    return 0


def _completer(biruda: click.Group, shell: str) -> "ShellComplete":
    completers: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}
    return completers[shell](biruda, {}, "biruda", _VARIABLE)


def commands_of(commands: Mapping[str, tuple[str, str]], incomplete: str) -> list[CompletionItem[str]]:
    """The commands that begin so."""
    return [CompletionItem(name, help=what) for name, (_, what) in commands.items() if name.startswith(incomplete)]


def jobs(ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """The newest jobs."""
    found = _ask(ctx, "jobs", "jobs", limit=50)
    return [
        CompletionItem(str(job.number("job")), help=_plain(job.text("outcome") or job.text("state"), job.text("name")))
        for job in found
        if str(job.number("job")).startswith(incomplete)
    ]


def workers(ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """The named workers."""
    return _named(_ask(ctx, "workers", "workers"), incomplete)


def environments(ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """The environments of all hosts."""
    return _named(_ask(ctx, "environments", "environments"), incomplete)


def selectors(ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """Requirements, one key=value pair after the other."""
    done, comma, last = incomplete.rpartition(",")
    key, equals, begun = last.partition("=")
    if not equals:
        keys = (name for name in ("arch=", "platform=", "host=", "env=", "kind=") if name.startswith(last))
        return [CompletionItem(done + comma + name) for name in keys]
    found = {item.text("name" if key == "env" else key) for item in _ask(ctx, "environments", "environments")}
    values = sorted(value for value in found if value.startswith(begun) and _SAFE.fullmatch(value))
    return [CompletionItem(f"{done}{comma}{key}={value}") for value in values]


def _named(found: list[Fields], incomplete: str) -> list[CompletionItem[str]]:
    places: dict[str, list[str]] = {}
    for item in found:
        name = item.text("name")
        if name.startswith(incomplete) and _SAFE.fullmatch(name):
            places.setdefault(name, []).append(_plain(item.text("arch"), item.text("platform")))
    return [CompletionItem(name, help=" ".join(dict.fromkeys(where))) for name, where in places.items()]


def _ask(ctx: click.Context, path: str, key: str, **query: Any) -> list[Fields]:
    """A list of the API, empty when the master does not give one at once: the person at the keyboard waits."""
    settings = ctx.find_root().find_object(Settings) or Settings()
    try:
        with _limit():
            return settings.client(timeout_s=LIMIT_S).get(path, **query).parts(key)
    except (BirudaError, TimeoutError):
        return []


@contextmanager
def _limit() -> Iterator[None]:
    """TimeoutError after LIMIT_S in all, however the answer drips in."""

    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _plain(*words: str) -> str:
    return " ".join(_words(words)) or "_"


def _words(words: tuple[str, ...]) -> Iterator[str]:
    return (word for word in words if _SAFE.fullmatch(word))
