"""`biruda start` and `stop`: workers by their name."""

import click

from biruda.cli.answers import Fields
from biruda.cli.client import Client, Refused, quote
from biruda.cli.command import F, command, settings
from biruda.cli.jobview import job_of, verdict
from biruda.cli.parameters import WORKER
from biruda.cli.screen import err, tell
from biruda.cli.text import count, escape


def _which_worker(function: F) -> F:
    for option in (
        click.option("--all", "every", is_flag=True, help="Every worker of that name."),
        click.option("--host", metavar="H", help="The one on this host."),
        click.option("--platform", metavar="P", help="The one of this platform, such as debian12."),
        click.option("--arch", metavar="A", help="The one of this architecture, such as amd64."),
    ):
        function = option(function)
    return function


@command(
    "start",
    """
    biruda start hello
    biruda start hello --arch i386 --platform debian12 --wait
    biruda start hello --all
    """,
)
@click.argument("name", type=WORKER)
@_which_worker
@click.option("--wait", is_flag=True, help="Show the log and exit with the job's status, as run does.")
def start(name: str, arch: str | None, platform: str | None, host: str | None, every: bool, wait: bool) -> int:
    """Start a named worker. When several hosts offer the same one, the least loaded is taken."""
    client, which = settings().client(), (arch, platform, host, every)
    if wait:
        from biruda.cli.following import follow_all

        return follow_all(
            client, lambda: [(number, _system(client, number)) for number in _ask(client, name, "start", *which)]
        )
    for number in _ask(client, name, "start", *which):
        print(f"job {number}: {escape(name)} starts; biruda log {number} -f shows it")
    return 0


@command(
    "stop",
    """
    biruda stop hello
    biruda stop hello --arch i386 --platform debian12
    biruda stop 12              the job of that number
    """,
)
@click.argument("name", metavar="NAME|JOB", type=WORKER)
@_which_worker
def stop(name: str, arch: str | None, platform: str | None, host: str | None, every: bool) -> int:
    """End what runs of a named worker, or one job."""
    client = settings().client()
    if name.isascii() and name.isdigit():
        job = job_of(client.post(f"jobs/{int(name)}/cancel", {"reason": ""}))
        print(f"job {job.number}: {verdict(job) if job.finished else 'is being cancelled'}")
        return 0
    numbers = _ask(client, name, "stop", arch, platform, host, every)
    if not numbers:
        tell(f"nothing of {escape(name)} waits or runs")
        return 0
    for number in numbers:
        print(f"job {number}: is being cancelled")
    return 0


def _system(client: Client, number: int) -> str:
    """`amd64 debian12 alder`: what a start of a worker is told apart by."""
    wanted = job_of(client.get(f"jobs/{number}")).wanted
    return escape(" ".join(wanted[key] for key in ("arch", "platform", "host") if key in wanted))


def _ask(
    client: Client, name: str, verb: str, arch: str | None, platform: str | None, host: str | None, every: bool
) -> list[int]:
    which = {"arch": arch, "platform": platform, "host": host, "all": every}
    try:
        return client.post(f"workers/{quote(name)}/{verb}", which).numbers("jobs")
    except Refused as error:
        candidates = error.problem.parts("candidates") if error.problem else []
        if error.status != 409 or not candidates:
            raise
        raise _ambiguous(name, verb, candidates, error) from error


def _ambiguous(name: str, verb: str, candidates: list[Fields], error: Refused) -> Refused:
    systems = sorted({(item.text("arch"), item.text("platform")) for item in candidates})
    err().table(
        ("NAME", "ARCH", "PLATFORM", "HOST"),
        [[item.text(key) for key in ("name", "arch", "platform", "host")] for item in candidates],
        flexible=(0, 3),
    )
    arch, platform = map(escape, systems[0])
    return Refused(
        f"{escape(repr(name))} names workers on {count(len(systems), 'system')}: say which with --arch or --platform",
        hint=f"biruda {verb} {escape(name)} --arch {arch} --platform {platform}, or --all",
        status=error.status,
        problem=error.problem,
    )
