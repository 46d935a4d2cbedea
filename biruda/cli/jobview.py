"""A job as the API shows it, and the words for how it goes. Named tuples: dataclasses take 4 ms more to make."""

import time
from datetime import datetime
from typing import Any, NamedTuple

from biruda.cli.answers import Fields
from biruda.cli.text import count, duration, escape
from biruda.errors import PeerError

TIMED_OUT, FARM_FAILED, WAS_CANCELLED = 124, 125, 130


class Step(NamedTuple):
    """One command that has ended."""

    name: str
    argv: list[str]
    exit_status: int | None
    signal: int | None
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    note: str

    @property
    def passed(self) -> bool:
        return self.exit_status == 0 and self.signal is None

    @property
    def ending(self) -> str:
        """`exit 2`, `signal SIGSEGV`, `time limit of 5 s`."""
        if self.note:
            return escape(self.note)
        if self.signal is not None:
            return f"killed by {signal_name(self.signal)}"
        return f"exit {self.exit_status}" if self.exit_status is not None else "did not end"


class Log(NamedTuple):
    """What was printed."""

    bytes: int
    sha256: str
    complete: bool


class Artifact(NamedTuple):
    """One collected file."""

    path: str
    bytes: int
    sha256: str
    report: bool


class Job(NamedTuple):
    """One job, or one earlier attempt of it. `raw` is all that the master said."""

    raw: dict[str, Any]
    number: int
    attempt: int  # 0 before the first
    state: str  # waiting, running, finished
    name: str
    worker: str
    arch: str
    platform: str
    host: str
    kind: str
    environment: str
    wanted: dict[str, str]
    outcome: str
    exit_status: int | None
    reason: str
    submitted_s: float | None
    started_s: float | None
    finished_s: float | None
    steps: list[Step]
    log: Log | None
    artifacts: list[Artifact]
    spool: str
    cancelling: bool
    earlier: "list[Job]"

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def sign(self) -> str:
        """The word that has a shape: its outcome, or that it runs or waits."""
        return self.outcome if self.finished and self.outcome else self.state

    @property
    def place(self) -> str:
        """`alder amd64 debian12`, of what is known."""
        return escape(" ".join(part for part in (self.host, self.arch, self.platform) if part))

    @property
    def status(self) -> int:
        """What `run` exits with for it: the job's own, 124, 125 or 130."""
        match self.outcome:
            case "passed":
                return 0
            case "failed":
                return self.exit_status or 1
            case "timeout":
                return TIMED_OUT
            case "cancelled":
                return WAS_CANCELLED
            case _:
                return FARM_FAILED

    def took_s(self, now_s: float | None = None) -> float | None:
        """Seconds from its start to its end, or until now."""
        if self.started_s is None:
            return None
        end = self.finished_s if self.finished_s is not None else (time.time() if now_s is None else now_s)
        return max(0.0, end - self.started_s)

    def failing(self) -> tuple[int, Step] | None:
        """Number, from 1, and value of the first step that did not pass."""
        return next(((number, step) for number, step in enumerate(self.steps, 1) if not step.passed), None)


def job_of(fields: Fields, number: int | None = None) -> Job:
    """The job in an answer; an earlier attempt of one may leave its number out. PeerError where it makes none."""
    number = number if number is not None else fields.maybe_number("job")
    if number is None:
        raise PeerError(f"the master's answer makes no sense: {fields.where}.job is missing")
    wanted = fields.part("requirements")
    spool = fields.raw.get("spool")
    return Job(
        raw=fields.raw,
        number=number,
        attempt=fields.number("attempt"),
        state=fields.text("state") or ("finished" if fields.text("outcome") else ""),  # of an attempt, outcome says it
        name=fields.text("name"),
        worker=fields.text("worker"),
        arch=fields.text("arch"),
        platform=fields.text("platform"),
        host=fields.text("host"),
        kind=fields.text("kind"),
        environment=fields.text("environment"),
        wanted={key: wanted.text(key) for key in wanted.raw if wanted.raw[key]} if wanted else {},
        outcome=fields.text("outcome"),
        exit_status=fields.maybe_number("exit_status"),
        reason=fields.text("reason"),
        submitted_s=_instant(fields, "submitted"),
        started_s=_instant(fields, "started"),
        finished_s=_instant(fields, "finished"),
        steps=[_step(part) for part in fields.parts("steps")],
        log=_log(fields.part("log")),
        artifacts=[artifact_of(part) for part in fields.parts("artifacts")],
        spool=spool if isinstance(spool, str) else "",
        cancelling=bool(fields.raw.get("cancelling")),
        earlier=[job_of(part, number) for part in fields.parts("attempts")],
    )


def artifact_of(part: Fields) -> Artifact:
    """An artifact in an answer."""
    return Artifact(part.text("path"), part.number("bytes"), part.text("sha256"), part.truth("report"))


def _step(part: Fields) -> Step:
    return Step(
        name=part.text("name"),
        argv=part.texts("argv"),
        exit_status=part.maybe_number("exit_status"),
        signal=part.maybe_number("signal"),
        wall_s=part.real("wall_s"),
        cpu_s=part.real("cpu_s"),
        peak_rss_bytes=part.number("peak_rss_bytes"),
        note=part.text("note"),
    )


def _log(part: Fields | None) -> Log | None:
    return Log(part.number("bytes"), part.text("sha256"), part.truth("complete")) if part else None


def _instant(fields: Fields, key: str) -> float | None:
    text = fields.text(key)
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise PeerError(
            f"the master's answer makes no sense: {fields.where}.{key} is no time: {escape(text)}"
        ) from None


def signal_name(number: int) -> str:
    """`SIGSEGV`, or `signal 99` where it has no name."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def verdict(job: Job, *, place: bool = True) -> str:
    """How a job goes or ended, in words: `failed in step 3 check: exit 2 after 1m 12s`."""
    where = f" on {job.place}" if place and job.place else ""
    took_s = job.took_s()
    after = f" after {duration(took_s)}" if took_s is not None else ""
    reason = f": {escape(job.reason)}" if job.reason else ""
    if not job.finished:
        attempt = f", attempt {job.attempt}" if job.attempt > 1 else ""
        ending = ", being cancelled" if job.cancelling else ""
        if job.state == "running":
            return f"running{where}{' for ' + duration(took_s) if took_s is not None else ''}{attempt}{ending}"
        return f"{escape(job.state) or 'in a state without a name'}{ending}"
    if job.outcome == "passed":
        return f"passed{where}" + (f" in {duration(took_s)}" if took_s is not None else "")
    failing = job.failing()
    if failing and job.outcome in ("failed", "timeout"):
        number, step = failing
        word = "failed" if job.outcome == "failed" else "timeout"
        return f"{word}{where} in step {number} {escape(step.name)}: {step.ending}{after}"
    return f"{escape(job.outcome)}{where}{after}{reason}"


def log_words(log: Log) -> str:
    """`log complete, 1.9 MiB, sha256 5f3a0c12…`."""
    from biruda.cli.text import size

    return f"log {'complete' if log.complete else 'incomplete'}, {size(log.bytes)}" + (
        f", sha256 {escape(log.sha256[:8])}…" if log.sha256 else ""
    )


def attempts_words(job: Job) -> str:
    """`after 2 attempts`, "" when the first did it."""
    return f"after {count(job.attempt, 'attempt')}" if job.attempt > 1 else ""
