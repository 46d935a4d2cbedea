"""`biruda jobs`, `cancel`, `retry`, `why`: the life of a job."""

import time
from typing import Any

import click

from biruda.cli.answers import Fields
from biruda.cli.client import Client, as_json
from biruda.cli.command import command, json_option, settings
from biruda.cli.jobview import Job, job_of, verdict
from biruda.cli.parameters import JOB, OUTCOMES, STATES, WORKER
from biruda.cli.screen import SIGNS, Cell, out, tell
from biruda.cli.text import ago, count, duration, escape
from biruda.errors import BirudaError, NoMaster

_PAGE = 500


@command(
    "jobs",
    """
    biruda jobs                             the newest 20
    biruda jobs --state unfinished          what waits and runs
    biruda jobs --outcome failed --limit 0  all that failed
    biruda jobs --json                      a list of the objects of show --json
    """,
)
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--outcome", type=click.Choice(OUTCOMES), help="Only those that ended so.")
@click.option("--worker", type=WORKER, metavar="NAME", help="Only starts of this named worker.")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="How many; 0: all.")
@json_option
def jobs(state: str | None, outcome: str | None, worker: str | None, limit: int, json_wanted: bool) -> None:
    """List jobs, newest first."""
    found = _listed(settings().client(), limit, {"state": state, "outcome": outcome, "worker": worker})
    if json_wanted:
        print(as_json([fields.raw for fields in found]))
        return
    if not found:
        tell("no such jobs" if state or outcome or worker else "no jobs yet", "biruda run -- CMD")
        return
    now_s = time.time()
    out().table(
        ("JOB", "STATE", "NAME", "ARCH", "PLATFORM", "HOST", "WHEN", "TOOK", "NOTE"),
        [_row(job_of(fields), now_s) for fields in found],
        flexible=(8, 2),
    )


def _listed(client: Client, limit: int, query: dict[str, Any]) -> list[Fields]:
    found: list[Fields] = []
    before: int | None = None
    while not limit or len(found) < limit:
        page = client.get("jobs", **query, before=before, limit=min(limit - len(found), _PAGE) if limit else _PAGE)
        items = page.parts("jobs")
        found += items
        before = page.maybe_number("next")
        if before is None or not items:
            break
    return found


def _row(job: Job, now_s: float) -> list[str | Cell]:
    sign = SIGNS.get(job.sign)
    at_s = job.started_s or job.submitted_s
    took_s = job.took_s(now_s)
    return [
        str(job.number),
        Cell(f"{out().plain(sign.shape)} {job.sign}", sign.colour) if sign else job.sign,
        job.name,
        job.arch or job.wanted.get("arch", ""),
        job.platform or job.wanted.get("platform", ""),
        job.host or job.wanted.get("host", ""),
        ago(now_s - at_s) if at_s is not None else "",
        duration(took_s) if took_s is not None else "",
        _note(job),
    ]


def _note(job: Job) -> str:
    failing = job.failing() if job.outcome in ("failed", "timeout") else None
    if failing:
        number, step = failing
        return f"{step.ending}, step {number} {step.name}"
    return "being cancelled" if job.cancelling and not job.finished else job.reason


@command(
    "cancel",
    """
    biruda cancel 12
    biruda cancel 12 13 14 --reason 'wrong branch'
    """,
)
@click.argument("numbers", metavar="JOB...", type=JOB, nargs=-1, required=True)
@click.option("--reason", default="", help="One sentence that the job keeps.")
def cancel(numbers: tuple[int, ...], reason: str) -> int:
    """End jobs: what runs is asked to end, and killed after a grace time; what waits never starts."""
    client, status = settings().client(), 0
    for number in dict.fromkeys(numbers):
        try:
            job = job_of(client.post(f"jobs/{number}/cancel", {"reason": reason}))
        except NoMaster:
            raise
        except BirudaError as error:  # the others can be cancelled all the same
            tell(str(error), error.hint)
            status = error.exit_status
        else:
            print(f"job {number}: {verdict(job) if job.finished else 'is being cancelled'}")
    return status


@command(
    "retry",
    """
    biruda retry 12
    biruda retry 12 --wait      and show its log
    """,
)
@click.argument("number", metavar="JOB", type=JOB)
@click.option("--wait", is_flag=True, help="Show the log and exit with the job's status, as run does.")
def retry(number: int, wait: bool) -> int:
    """Run a finished job once more: the same source, the same steps, as its next attempt."""
    client = settings().client()
    before = job_of(client.get(f"jobs/{number}"))
    if wait:
        from biruda.cli.following import follow_all

        def again() -> list[tuple[int, str]]:
            client.post(f"jobs/{number}/retry")
            return [(number, "")]

        return follow_all(client, again, first_attempt=before.attempt + 1)
    client.post(f"jobs/{number}/retry")
    print(f"job {number}: waits for attempt {before.attempt + 1}")
    return 0


@command(
    "why",
    """
    biruda why 12
    """,
)
@click.argument("number", metavar="JOB", type=JOB)
@json_option
def why(number: int, json_wanted: bool) -> None:
    """Say why a job waits: for each environment of the farm, whether it fits and what stands in the way."""
    answer = settings().client().get(f"jobs/{number}/why")
    if json_wanted:
        print(as_json(answer.raw))
        return
    print(f"job {number}: {escape(answer.text('sentence'))}")
    rows = answer.parts("environments")
    if rows and answer.text("state") == "waiting":
        screen = out()
        screen.line()
        screen.table(
            ("ENVIRONMENT", "HOST", "ARCH", "PLATFORM", "FITS", "REASON"),
            [
                [
                    *(row.text(key) for key in ("environment", "host", "arch", "platform")),
                    Cell("yes", SIGNS["passed"].colour) if row.truth("fits") else Cell("no", SIGNS["cancelled"].colour),
                    row.text("reason"),
                ]
                for row in rows
            ],
            flexible=(5, 0, 1),
        )
        screen.line(count(sum(row.truth("fits") for row in rows), "environment fits", "environments fit"))
