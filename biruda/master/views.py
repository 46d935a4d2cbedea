"""How jobs, hosts and environments look from outside: the JSON of the API and of the spool."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from biruda.convert import encode
from biruda.master import events as ev
from biruda.master.explaining import why
from biruda.master.farm import Farm
from biruda.master.state import Host, LiveJob, Placed
from biruda.model import AttemptNumber, AttemptResult, EnvironmentReport, JobId, JobSpec
from biruda.spoolname import SpoolName

View = dict[str, Any]


def instant(at_s: float | None) -> str | None:
    """RFC 3339 in UTC with microseconds; None for none, and for what a peer's clock gave that is no date."""
    try:
        at = None if at_s is None else datetime.fromtimestamp(at_s, UTC)
    except (ValueError, OverflowError, OSError):
        at = None
    return None if at is None else at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def spool_name(job: int, placement: ev.Placement) -> str:
    """The name of an attempt's files, without extension."""
    environment = placement.environment
    return str(
        SpoolName(environment.arch, environment.platform, placement.host, JobId(job), AttemptNumber(placement.attempt))
    )


def request_view(job: int, spec: JobSpec, submitted_s: float) -> View:
    """What is true of a job from its first moment; everything else is null."""
    return {
        "job": job,
        "attempt": None,
        "state": "waiting",
        "name": spec.name,
        "user": spec.user,
        "priority": spec.priority,
        "requirements": dict(spec.requirements),
        "worker": spec.worker,
        "source": spec.source,
        "submitted": instant(submitted_s),
        "started": None,
        "finished": None,
        "arch": None,
        "platform": None,
        "host": None,
        "kind": None,
        "environment": None,
        "outcome": None,
        "exit_status": None,
        "reason": "",
        "steps": [],
        "log": None,
        "artifacts": [],
        "spool": None,
        "facts": None,
        "attempts": [],
        "retries": spec.retries,
        "cancelling": False,
    }


def placed_view(job: int, spec: JobSpec, submitted_s: float, placement: ev.Placement) -> View:
    """A job whose attempt is out."""
    environment = placement.environment
    return {
        **request_view(job, spec, submitted_s),
        "attempt": placement.attempt,
        "state": "waiting" if placement.started_s is None else "running",
        "source": placement.source or spec.source,
        "started": instant(placement.started_s),
        "arch": environment.arch,
        "platform": environment.platform,
        "host": placement.host,
        "kind": environment.kind.value,
        "environment": environment.name,
        "steps": encode(placement.steps),
        "spool": spool_name(job, placement),
        "facts": _facts_view(environment),
    }


def _facts_view(environment: EnvironmentReport) -> View:
    return {
        "arch": environment.arch,
        "platform": environment.platform,
        "libc": environment.guessed.get("libc", "unknown"),
        "emulated": environment.emulated,
        "declared": dict(environment.declared),
        "guessed": dict(environment.guessed),
        "evidence": list(environment.evidence),
        "warnings": list(environment.warnings),
    }


def attempt_record(save: ev.SaveAttempt, earlier: Sequence[Mapping[str, Any]]) -> View:
    """An attempt that has ended: the JSON in the spool, and what `show` gives of its job from then on."""
    result: AttemptResult = save.result
    return {
        **placed_view(save.job, save.spec, save.submitted_s, save.placement),
        "state": "finished",
        "started": instant(save.placement.started_s or result.started_s),
        "finished": instant(result.finished_s),
        "outcome": result.outcome.value,
        "exit_status": result.exit_status,
        "reason": result.reason,
        "steps": encode(result.steps),
        "log": encode(result.log),
        "artifacts": encode(result.artifacts),
        "attempts": [attempt_summary(record) for record in earlier],
    }


def attempt_summary(record: Mapping[str, Any]) -> View:
    """An earlier attempt in a line."""
    keys = ("attempt", "host", "environment", "outcome", "exit_status", "reason", "started", "finished", "spool")
    return {key: record[key] for key in keys}


def live_view(job: LiveJob, earlier: Sequence[Mapping[str, Any]]) -> View:
    """A job that has not ended."""
    if isinstance(job.state, Placed):
        view = placed_view(job.job, job.spec, job.submitted_s, job.state.placement)
        view["cancelling"] = bool(job.state.cancelling)
    else:
        view = request_view(job.job, job.spec, job.submitted_s)
    view["attempts"] = [attempt_summary(record) for record in earlier]
    return view


def coordinator_view(host: Host) -> View:
    report = host.report
    return {
        "host": report.host,
        "connected": host.connected,
        "arch": report.arch,
        "platform": report.platform,
        "slots": report.slots,
        "running": sorted(host.running),
        "pid": report.pid,
        "version": report.version,
        "last_contact": instant(host.heard_wall_s),
        "environments": [item.name for item in report.environments],
        "workers": [item.name for item in report.workers],
        "kinds": [encode(item) for item in report.kinds],
    }


def environment_view(host: Host, environment: EnvironmentReport) -> View:
    view: View = encode(environment)
    return {
        **view,
        "host": host.report.host,
        "connected": host.connected,
        "slots": host.report.slots if environment.slots is None else environment.slots,
        "running": sorted(job for job, name in host.running.items() if name == environment.name),
    }


def worker_views(farm: Farm) -> list[View]:
    """Every named worker, with the jobs that are starts of it."""
    views: list[View] = []
    for host, worker in farm.workers():
        environment = host.environment(worker.environment)
        running = [
            number
            for number, name in host.running.items()
            if name == worker.environment and farm.jobs[number].spec.worker == worker.name
        ]
        views.append(
            {
                "name": worker.name,
                "arch": worker.arch,
                "platform": worker.platform,
                "host": host.report.host,
                "environment": worker.environment,
                "kind": environment.kind.value if environment else None,
                "usable": bool(environment and environment.usable and host.connected),
                "running": sorted(running),
            }
        )
    return views


def why_view(farm: Farm, job: LiveJob) -> View:
    sentence, rows = why(farm, job)
    return {
        "job": job.job,
        "state": "running" if isinstance(job.state, Placed) and job.state.placement.started_s else "waiting",
        "sentence": sentence,
        "environments": [
            {
                "host": host.report.host,
                "environment": offer.name,
                "kind": offer.kind.value,
                "arch": offer.arch,
                "platform": offer.platform,
                "fits": fits,
                "reason": reason,
            }
            for host, offer, fits, reason in rows
        ],
    }
