"""`biruda run`: pack a directory, run a command elsewhere, show its log."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from biruda.cli.client import Client, Refused, as_json
from biruda.cli.command import command, settings
from biruda.cli.follower import PATIENCE_S
from biruda.cli.following import follow_all
from biruda.cli.http import ConnectionLost
from biruda.cli.jobview import FARM_FAILED
from biruda.cli.parameters import DURATION, SELECTOR, SIZE, VARIABLE
from biruda.cli.recipes import Request, job_requests, labels_of, steps_of, variables_of
from biruda.cli.screen import tell
from biruda.cli.text import escape

EXAMPLES = """
biruda run -- make check
biruda run --on platform=debian12 --on platform=alpine3.20 -- make -j4 check
biruda run --on 'arch=i386,platform=debian*' --step ./configure --step make
biruda run --artifact '*.deb' --limit 30m --memory 2GiB -- debuild -b
biruda run --no-source --on env=bookworm -- cat /etc/os-release
biruda run --detach -- make world        prints the job's number

Exit status: the job's own (the failing step's, 128+N for signal N), 124 on a
time limit, 125 when biruda failed to run it, 130 when it was cancelled; of
several jobs the first in the order of --on that is not 0. When nothing was
submitted: 1 refused, 2 usage, 3 no master reachable.
"""


@command("run", EXAMPLES, context_settings={"allow_interspersed_args": False})
@click.option(
    "--on",
    "selectors",
    type=SELECTOR,
    multiple=True,
    metavar="EXPR",
    help="Where: arch=…,platform=…,host=…,env=…,kind=…; globs are possible. Several run side by side.",
)
@click.option(
    "--source", type=click.Path(path_type=Path), metavar="DIR", help="What to pack.  [default: the current directory]"
)
@click.option("--no-source", is_flag=True, help="Send nothing; the work directory is empty.")
@click.option("--env", "variables", type=VARIABLE, multiple=True, metavar="KEY=VALUE", help="Set in all steps.")
@click.option("--name", default="", help="What the job is called.  [default: the first step's name]")
@click.option(
    "--artifact", "artifacts", multiple=True, metavar="GLOB", help="Collect these files; ** crosses directories."
)
@click.option("--step", "lines", multiple=True, metavar="LINE", help="A step for /bin/sh -e, instead of CMD.")
@click.option("--limit", type=DURATION, metavar="DURATION", help="End it after that time: 90s, 10m, 1h30m.")
@click.option("--silence", type=DURATION, metavar="DURATION", help="End it when it prints nothing for so long.")
@click.option("--memory", type=SIZE, metavar="SIZE", help="How much memory it may use: 512M, 2GiB.")
@click.option("--cpus", type=click.FloatRange(min=0, min_open=True), metavar="N", help="How many CPUs it may use.")
@click.option("--pids", type=click.IntRange(min=1), metavar="N", help="How many processes it may have.")
@click.option("--disk", type=SIZE, metavar="SIZE", help="How much it may write.")
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    metavar="N",
    help="How often to run it again when the farm failed.  [default: as the master is configured]",
)
@click.option("--priority", type=int, default=0, show_default=True, metavar="N", help="Higher comes first.")
@click.option("--queue", is_flag=True, help="Wait for an environment that nobody knows yet.")
@click.option("--detach", is_flag=True, help="Print the job's number and do not wait.")
@click.option(
    "--patience",
    type=DURATION,
    default=PATIENCE_S,
    metavar="DURATION",
    help="How long to ask again when no master answers.  [default: 10m]",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print the jobs as JSON at the end; the log goes to stderr.")
@click.argument("argv", metavar="-- CMD...", nargs=-1, type=click.UNPROCESSED)
def run(
    selectors: tuple[dict[str, str], ...],
    source: Path | None,
    no_source: bool,
    variables: tuple[tuple[str, str], ...],
    artifacts: tuple[str, ...],
    lines: tuple[str, ...],
    argv: tuple[str, ...],
    name: str,
    retries: int | None,
    priority: int,
    queue: bool,
    detach: bool,
    patience: float,
    json_wanted: bool,
    **limits: Any,
) -> int:
    """Pack a directory, run a command in an environment of the farm, and show its log as it comes."""
    steps = steps_of(argv, lines)
    if source is not None and no_source:
        raise click.UsageError("--source and --no-source exclude each other")
    recipe = {
        "steps": steps,
        "env": variables_of(variables),
        "artifacts": list(artifacts),
        "limits": _limits(limits),
    }
    client = settings().client()
    digest = None if no_source else _upload(client, source)
    requests = job_requests(
        recipe,
        selectors,
        name=name or steps[0]["name"],
        source=digest,
        priority=priority,
        retries=retries,
        queue=queue,
    )
    try:
        if detach:
            _print_numbers(client, submit(client, requests, selectors), json_wanted)
            return 0
        labels = labels_of(selectors) or [""]
        return follow_all(
            client,
            lambda: list(zip(submit(client, requests, selectors), labels, strict=True)),
            patience_s=patience,
            json_wanted=json_wanted,
        )
    except ConnectionLost as error:  # the submit may have come through
        tell(str(error), "see with biruda jobs whether the job was accepted")
        return FARM_FAILED


def submit(client: Client, requests: Sequence[Request], selectors: Sequence[Mapping[str, str]]) -> list[int]:
    """The numbers of the jobs, which are on the master's disk. Refused says which of them and why."""
    try:
        return client.post("jobs", {"jobs": list(requests)}).numbers("jobs")
    except Refused as error:
        found = re.match(r"jobs\[(\d+)\]: ", str(error))
        if found is None:
            raise
        index = int(found[1])
        where = ""
        if len(selectors) > 1 and index < len(selectors):
            where = f"--on {','.join(f'{key}={value}' for key, value in selectors[index].items())}: "
        text = escape(where) + str(error)[found.end() :]
        raise Refused(text, hint=error.hint, status=error.status, problem=error.problem) from error


def _upload(client: Client, source: Path | None) -> str:
    from biruda.cli.upload import default_directory, upload

    directory = source if source is not None else default_directory()
    client.reach()  # before the work of packing
    return upload(client, directory)


def _limits(given: Mapping[str, Any]) -> dict[str, Any]:
    keys = {
        "limit": "total_s",
        "silence": "silence_s",
        "memory": "memory_bytes",
        "cpus": "cpus",
        "pids": "pids",
        "disk": "disk_bytes",
    }
    return {keys[option]: value for option, value in given.items() if value is not None}


def _print_numbers(client: Client, numbers: Sequence[int], json_wanted: bool) -> None:
    if json_wanted:
        print(as_json([client.get(f"jobs/{number}").raw for number in numbers]))
    else:
        for number in numbers:
            print(number)
