"""What arguments and options accept, how each is completed, and what is said of a wrong one."""

from typing import TYPE_CHECKING, Any

import click

from biruda.cli.text import nearest, parse_duration, parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SELECTOR_KEYS = ("arch", "platform", "host", "env", "kind")
STATES = ("waiting", "running", "finished", "unfinished")
OUTCOMES = ("passed", "failed", "timeout", "cancelled", "preempted", "infra", "environment")


class Duration(click.ParamType[float]):
    """Seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(value)
        except ValueError:
            self.fail(f"{value!r} is no duration; write 90s, 10m or 1h30m", param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} is no time at all", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """Bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            amount = parse_size(value)
        except ValueError:
            self.fail(f"{value!r} is no size; write 512M or 2GiB", param, ctx)
        if amount <= 0:
            self.fail(f"{value!r} is no room at all", param, ctx)
        return amount


class JobNumber(click.ParamType[int]):
    """The number of a job."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = value.removeprefix("#")
        if not (text.isascii() and text.isdigit()) or not 0 < int(text[:19]) < 2**63:
            self.fail(f"{value!r} is no job number; biruda jobs lists them", param, ctx)
        return int(text)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem[str]]":
        from biruda.cli.completion import jobs

        return jobs(ctx, incomplete)


class WorkerName(click.ParamType[str]):
    """The name of a worker."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem[str]]":
        from biruda.cli.completion import workers

        return workers(ctx, incomplete)


class EnvironmentName(WorkerName):
    """The name of an environment."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem[str]]":
        from biruda.cli.completion import environments

        return environments(ctx, incomplete)


class Selector(click.ParamType[dict[str, str]]):
    """Requirements, by key."""

    name = "expr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        if any(sign in value for sign in ("==", "&&", "||", "<", ">", "!=", "=?=")):
            self.fail("full ClassAd expressions come with matching; use key=value pairs", param, ctx)
        wanted: dict[str, str] = {}
        for pair in value.split(","):
            key, equals, wish = (part.strip() for part in pair.partition("="))
            if not equals or not wish:
                self.fail(f"{pair!r} is no key=value pair; write arch=amd64,platform=debian12", param, ctx)
            if key not in SELECTOR_KEYS:
                near = nearest(key, SELECTOR_KEYS)
                self.fail(
                    f"there is no key {key!r}"
                    + (f"; did you mean {near!r}?" if near else f"; there are {', '.join(SELECTOR_KEYS)}"),
                    param,
                    ctx,
                )
            if key in wanted:
                self.fail(f"{key} is there twice", param, ctx)
            wanted[key] = wish
        return wanted

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem[str]]":
        from biruda.cli.completion import selectors

        return selectors(ctx, incomplete)


class Variable(click.ParamType[tuple[str, str]]):
    """One environment variable."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, rest = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is no KEY=VALUE", param, ctx)
        return key, rest


DURATION, SIZE, JOB, SELECTOR, VARIABLE = Duration(), Size(), JobNumber(), Selector(), Variable()
WORKER, ENVIRONMENT = WorkerName(), EnvironmentName()
