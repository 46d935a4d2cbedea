"""`biruda show`: all that is known of a job, on one page."""

import time

import click

from biruda.cli.answers import Fields
from biruda.cli.client import as_json
from biruda.cli.command import command, json_option, settings
from biruda.cli.jobview import Job, Step, job_of, log_words, verdict
from biruda.cli.parameters import JOB
from biruda.cli.screen import SIGNS, Cell, Screen, out
from biruda.cli.spoolpath import Spool
from biruda.cli.text import ago, duration, escape, size

_SHOWN_ARTIFACTS = 20


@command(
    "show",
    """
    biruda show 12
    biruda show 12 --json
    """,
)
@click.argument("number", metavar="JOB", type=JOB)
@json_option
def show(number: int, json_wanted: bool) -> None:
    """Show all that is known of a job: how it goes, its steps, its log, its artifacts, where it ran."""
    client = settings().client()
    answer = client.get(f"jobs/{number}")
    if json_wanted:
        print(as_json(answer.raw))
    else:
        show_page(out(), answer, Spool(client), time.time())


def show_page(screen: Screen, answer: Fields, spool: Spool, now_s: float) -> None:
    """Print the page of a job."""
    job = job_of(answer)
    screen.wrapped("", headline(screen, job))
    if job.reason and job.failing():
        screen.line(f"  {escape(job.reason)}")
    if job.steps:
        screen.line()
        _steps(screen, job)
    screen.line()
    for name, text in _facts(job, answer, spool, now_s):
        screen.line(f"{screen.paint(f'{name:<12}', 245)}{text}")
    _artifacts(screen, job)
    if job.earlier:
        screen.line()
        screen.line(screen.paint("earlier attempts", 245))
        for attempt in job.earlier:
            screen.wrapped(f"  {attempt.attempt} {screen.sign(attempt.sign)} ", verdict(attempt))


def headline(screen: Screen, job: Job) -> str:
    """`✖ 410 curl · amd64 debian12 · alder · failed in step 3 check: exit 2 after 1m 12s`."""
    parts = [f"{screen.sign(job.sign)} {job.number} {escape(job.name)}".rstrip()]
    system = " ".join(part for part in (job.arch, job.platform) if part)
    parts += [escape(part) for part in (system, job.host) if part]
    blame = {"failed": "the sources' fault, not the farm's", "infra": "the farm's fault, not the sources'"}
    parts += [verdict(job, place=False), *([blame[job.outcome]] if job.outcome in blame else [])]
    return " · ".join(parts)


def _steps(screen: Screen, job: Job) -> None:
    screen.table(
        ("STEP", "RESULT", "TOOK", "CPU", "PEAK MEM", "COMMAND"),
        [
            [
                f"{number} {step.name}",
                _result(screen, step),
                duration(step.wall_s),
                duration(step.cpu_s),
                size(step.peak_rss_bytes) if step.peak_rss_bytes else "",
                " ".join(_shell_word(word) for word in step.argv),
            ]
            for number, step in enumerate(job.steps, 1)
        ],
        flexible=(5, 0, 1),
    )


def _result(screen: Screen, step: Step) -> Cell:
    sign = SIGNS["passed" if step.passed else "failed"]
    return Cell(f"{screen.plain(sign.shape)} {'passed' if step.passed else step.ending}", sign.colour)


def _facts(job: Job, answer: Fields, spool: Spool, now_s: float) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if job.log:
        lines.append(("log", f"{log_words(job.log)[4:]} · biruda log {job.number}"))
    if job.spool:
        lines.append(("spool", escape(spool.path_of(job))))
    if job.environment:
        facts = answer.part("facts")
        details = [job.kind, job.arch, job.platform, facts.text("libc") if facts else ""]
        details.append("emulated" if facts and facts.truth("emulated") else "")
        lines.append(("environment", escape(f"{job.environment}: {', '.join(part for part in details if part)}")))
    elif job.wanted:
        lines.append(("wants", escape(",".join(f"{key}={value}" for key, value in job.wanted.items()))))
    if job.worker:
        lines.append(("worker", escape(job.worker)))
    if answer.text("source"):
        lines.append(("source", escape(answer.text("source"))))
    if job.submitted_s is not None:
        user = f" by {escape(answer.text('user'))}" if answer.text("user") else ""
        waited = f", waited {duration(job.started_s - job.submitted_s)}" if job.started_s is not None else ""
        lines.append(("submitted", f"{ago(now_s - job.submitted_s)}, {_clock(job.submitted_s)}{user}{waited}"))
    if job.attempt > 1:
        lines.append(("attempt", f"{job.attempt}"))
    return lines


def _artifacts(screen: Screen, job: Job) -> None:
    if not job.artifacts:
        return
    screen.line()
    screen.table(
        ("ARTIFACT", "SIZE", "SHA256"),
        [[item.path, size(item.bytes), item.sha256[:16]] for item in job.artifacts[:_SHOWN_ARTIFACTS]],
        flexible=(0,),
    )
    more = len(job.artifacts) - _SHOWN_ARTIFACTS
    screen.line(f"{f'and {more} more; ' if more > 0 else ''}fetch them: biruda get {job.number}")


def _clock(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def _shell_word(word: str) -> str:
    from shlex import quote

    return quote(word)
