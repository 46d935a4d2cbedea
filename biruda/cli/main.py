"""The border of the command line: which module has a command, and what becomes of an error."""

import os
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from types import ModuleType
from typing import Any

import click

from biruda import VERSION
from biruda.cli.command import Settings, global_options
from biruda.cli.screen import tell
from biruda.errors import BirudaError

COMMANDS = {
    "up": ("daemon", "Start this host's daemon: master and coordinator."),
    "down": ("daemon", "Stop this host's daemon; running jobs go on."),
    "status": ("daemon", "Show this host's daemon."),
    "master": ("daemon", "Serve as master in the foreground."),
    "coordinator": ("daemon", "Serve as coordinator in the foreground."),
    "run": ("run", "Pack a directory, run a command elsewhere, show its log."),
    "start": ("named", "Start a named worker."),
    "stop": ("named", "End what runs of a named worker, or a job."),
    "jobs": ("jobs", "List jobs, newest first."),
    "show": ("show", "Show all that is known of a job."),
    "log": ("output", "Print a job's log, byte for byte."),
    "get": ("output", "Fetch a job's artifacts."),
    "cancel": ("jobs", "End jobs."),
    "retry": ("jobs", "Run a finished job once more."),
    "why": ("jobs", "Say why a job waits."),
    "farm": ("farm", "Show coordinators, environments and workers."),
    "env": ("env", "Show, test, build and remove environments."),
    "token": ("joining", "Make a token with which another host joins."),
    "join": ("joining", "Make this host one of another master's farm."),
    "deploy": ("deploy", "Bring in another host by ssh, or take biruda off it."),
    "hosts": ("joining", "Show the hosts that have joined, and their certificates."),
    "revoke": ("joining", "Let a host in no more."),
    "completion": ("completion", "Print a shell's completion script."),
}
"""Command -> (module below biruda.cli, what it does)."""

EXAMPLES = """
biruda up                                    start a farm on this host
biruda run -- make check                     run something, see its log
biruda run --on platform=debian12 -- make    the same, in such an environment
biruda jobs                                  what ran and what runs
biruda --url http://farm.example:7878 jobs   ask another host's master
biruda --guess-env                           which arch and platform this is
"""

INTERRUPTED, PIPE_CLOSED = 130, 141


class Biruda(click.Group):
    """The commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = getattr(_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=list(COMMANDS), ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("\nExamples:\n" + "".join(f"  {line}\n" for line in EXAMPLES.strip().splitlines()))
        formatter.write("\nbiruda COMMAND --help shows a page for each command.\n")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> Any:
        from biruda.cli.completion import commands_of

        return [*commands_of(COMMANDS, incomplete), *click.Command.shell_complete(self, ctx, incomplete)]


def _module(name: str) -> ModuleType:
    """Each is imported by its name: the frozen executable holds no others."""
    match name:
        case "daemon":
            from biruda.cli import daemon

            return daemon
        case "run":
            from biruda.cli import run

            return run
        case "named":
            from biruda.cli import named

            return named
        case "jobs":
            from biruda.cli import jobs

            return jobs
        case "show":
            from biruda.cli import show

            return show
        case "output":
            from biruda.cli import output

            return output
        case "farm":
            from biruda.cli import farm

            return farm
        case "env":
            from biruda.cli import env

            return env
        case "joining":
            from biruda.cli import joining

            return joining
        case "deploy":
            from biruda.cli import deploy

            return deploy
        case "completion":
            from biruda.cli import completion

            return completion
        case _:
            raise AssertionError(name)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"biruda {VERSION}")
        context.exit()


biruda = Biruda(
    "biruda",
    help="A build farm in one file: run this here, and on every system you care about.",
    params=[
        *global_options(hidden=False),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Print the version.",
        ),
        click.Option(
            ["--guess-env"],
            is_flag=True,
            expose_value=False,
            help="Say which arch and platform this is, and by which evidence; must come first. "
            "Takes --root DIR (of that tree, not of here) and --json.",
        ),
    ],
    no_args_is_help=True,
)


def main(arguments: Sequence[str]) -> int:
    """Run one command; the status to exit with. A person's error is a sentence on stderr, a bug passes by."""
    _prepare_streams()
    settings = Settings()
    status = 0
    try:
        status = _invoke(arguments, settings)
    except* BirudaError as group:
        for error in _leaves(group):
            assert isinstance(error, BirudaError)
            if settings.debug:
                import traceback

                traceback.print_exception(error)
            tell(str(error), error.hint)
            status = max(status, error.exit_status)
    return status


def _invoke(arguments: Sequence[str], settings: Settings) -> int:
    try:
        if "_BIRUDA_COMPLETE" in os.environ:
            from biruda.cli.completion import complete

            return complete(biruda)
        with biruda.make_context("biruda", list(arguments), obj=settings) as context:
            status = biruda.invoke(context)
            sys.stdout.flush()
            return status or 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        _tell_usage(error)
        return 2
    except click.ClickException as error:
        tell(error.format_message())
        return 1
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough; sockets raise ConnectionLost instead
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED


def _tell_usage(error: click.UsageError) -> None:
    from biruda.cli.text import escape

    path = error.ctx.command_path if error.ctx else "biruda"
    message = escape(error.format_message()).rstrip(".")
    message = message[:1].lower() + message[1:]
    where = path.removeprefix("biruda").strip()
    tell(f"{where}: {message}" if where else message, f"{path} --help")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _prepare_streams() -> None:
    """Names may hold what the terminal's encoding does not: better an escape than an error."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - closed by whoever started us
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as above
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
