"""What all commands have in common: where the master is, the global options, help pages that end with examples."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from biruda.cli.address import Address, address_of
from biruda.cli.client import Client
from biruda.cli.text import escape
from biruda.errors import UsageError, UserError

F = TypeVar("F", bound=Callable[..., Any])


class Settings:
    """The global options; they may stand before or after the command's name."""

    def __init__(self) -> None:
        self.home_option: str | None = None
        self.url_option: str | None = None
        self.token_file: str | None = None
        self.debug = False

    @property
    def home(self) -> Path:
        """The directory of this user's daemon."""
        from biruda.config import home_directory

        return home_directory(self.home_option, os.environ, os.getuid())

    @property
    def url(self) -> str:
        """The URL that was asked for; "" means the socket of this host's daemon. --home wins over $BIRUDA_URL."""
        return self.url_option or ("" if self.home_option else os.environ.get("BIRUDA_URL", ""))

    @property
    def address(self) -> Address:
        """Where the master is asked."""
        if self.url:
            return address_of(self.url)
        path = str(self.home / "master.sock")
        return Address(path, socket_path=path)

    def client(self, *, timeout_s: float = 60.0) -> Client:
        """A client of the master that the options and the environment name."""
        hint = "start it there with: biruda up, and see that [master] listen names this address"
        if not self.url:
            hint = f"start one with: biruda{f' --home {self.home_option}' if self.home_option else ''} up"
            if (self.home / "credentials" / "joined.json").exists():
                hint = "this host has joined another master's farm: ask there, or give its API with --url"
        return Client(self.address, token=self._token(), start_hint=escape(hint), timeout_s=timeout_s)

    def only_here(self, command: str) -> None:
        """Refuse a remote master: the command is about processes and files of this host."""
        if self.url and not self.address.socket_path:
            raise UsageError(
                f"{command} works on this host only, and --url or $BIRUDA_URL says {escape(self.url)}",
                hint=f"name a home of this host: biruda --home DIR {command}",
            )

    def _token(self) -> str:
        where, token = "$BIRUDA_TOKEN", os.environ.get("BIRUDA_TOKEN", "")
        if self.token_file:
            where = f"--token-file {escape(self.token_file)}"
            try:
                with open(self.token_file, encoding="utf-8") as file:
                    token = file.read(4096)
            except (OSError, UnicodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is no text"
                raise UserError(f"cannot read {where}: {reason}") from None
        token = token.strip()
        if (self.token_file and not token) or not token.isascii() or not token.isprintable() or " " in token:
            raise UserError(f"{where} holds no token", hint="it is one line, as in HOME/token of the master")
        return token


def settings() -> Settings:
    """The global options of the command that runs."""
    found = click.get_current_context().find_object(Settings)
    assert found is not None
    return found


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    kept = context.ensure_object(Settings)
    if value is not None and value is not False:
        assert parameter.name is not None
        setattr(kept, {"home": "home_option", "url": "url_option"}.get(parameter.name, parameter.name), value)


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """The options that every command takes."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _keep, "hidden": hidden, "is_eager": True}
    return [
        click.Option(["--home"], metavar="DIR", help="Where this host's daemon keeps everything.", **shared),
        click.Option(["--url"], metavar="URL", help="Ask the master at this URL. [env: BIRUDA_URL]", **shared),
        click.Option(
            ["--token-file"], metavar="FILE", help="A file with the token for --url. [env: BIRUDA_TOKEN]", **shared
        ),
        click.Option(["--debug"], is_flag=True, default=None, help="Show tracebacks of errors.", **shared),
    ]


class Command(click.Command):
    """A command with examples, which takes the global options too."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params += global_options(hidden=True)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand, and where the global options are listed."""
        write_examples(formatter, self.examples)


class Group(click.Group):
    """A command with commands below it."""

    def __init__(self, *args: Any, examples: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params += global_options(hidden=True)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand."""
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: str) -> None:
    """The last part of a help page."""
    formatter.write("\nExamples:\n")
    for line in examples.strip().splitlines():
        formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")
    formatter.write("\nThe options of biruda itself (biruda --help) may stand here too.\n")


def command(name: str, examples: str, **attributes: Any) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command."""
    return click.command(name, cls=Command, examples=examples, **attributes)


def json_option(function: F) -> F:
    """`--json`, for whatever lists or shows."""
    return click.option("--json", "json_wanted", is_flag=True, help="Print JSON, as the API gives it.")(function)
