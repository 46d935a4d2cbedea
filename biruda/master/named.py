"""Starting and stopping named workers: which (arch, platform, host) is meant, and what is refused."""

import difflib
from dataclasses import dataclass

from biruda.errors import NotFound
from biruda.master.farm import Farm
from biruda.master.matching import WORKER
from biruda.master.requests import Ambiguous, WorkerSelection
from biruda.master.state import Host
from biruda.model import JobSpec, WorkerReport


@dataclass(frozen=True, slots=True)
class Offer:
    host: Host
    worker: WorkerReport


def select(farm: Farm, name: str, wanted: WorkerSelection) -> list[Offer]:
    """The workers of a name that fit. Raises NotFound for none."""
    named = [Offer(host, worker) for host, worker in farm.workers() if worker.name == name]
    if not named:
        names = sorted({worker.name for _, worker in farm.workers()})
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names) or 'none: add a [[worker]]'}"
        raise NotFound(f"there is no worker {name!r}", hint=hint)
    fitting = [
        offer
        for offer in named
        if wanted.arch in (None, offer.worker.arch)
        and wanted.platform in (None, offer.worker.platform)
        and wanted.host in (None, offer.host.report.host)
    ]
    if not fitting:
        raise NotFound(f"no worker {name!r} fits", hint="there are " + "; ".join(_in_words(offer) for offer in named))
    return fitting


def start_specs(farm: Farm, name: str, wanted: WorkerSelection, user: str, infra_retries: int) -> list[JobSpec]:
    """The jobs that a start makes: one for each worker with `all`, else one. Raises Ambiguous over several systems.

    Without a host, any that has the worker may run it: the farm takes the least loaded.
    """
    fitting = select(farm, name, wanted)
    if wanted.all:
        return [_spec(offer, user, infra_retries, host=offer.host.report.host) for offer in fitting]
    systems = {(offer.worker.arch, offer.worker.platform) for offer in fitting}
    if len(systems) > 1:
        raise Ambiguous(
            f"{name!r} names workers on {len(systems)} systems",
            hint="say which with --arch or --platform, or --all",
            candidates=[_candidate(offer) for offer in fitting],
        )
    return [_spec(fitting[0], user, infra_retries, host=wanted.host)]


def running_jobs(farm: Farm, name: str, wanted: WorkerSelection) -> list[int]:
    """The jobs that are starts of the workers meant, waiting ones too. Raises as select and start_specs do."""
    fitting = select(farm, name, wanted)
    systems = {(offer.worker.arch, offer.worker.platform) for offer in fitting}
    jobs = [
        job.job
        for job in farm.jobs.values()
        if job.spec.worker == name
        and job.spec.requirements.get("arch") in {arch for arch, _ in systems}
        and job.spec.requirements.get("platform") in {platform for _, platform in systems}
    ]
    if wanted.host is not None:
        running = farm.hosts[wanted.host].running
        jobs = [
            number
            for number in jobs
            if number in running or farm.jobs[number].spec.requirements.get("host") == wanted.host
        ]
    found = {
        (farm.jobs[number].spec.requirements["arch"], farm.jobs[number].spec.requirements["platform"])
        for number in jobs
    }
    if len(found) > 1 and not wanted.all:
        raise Ambiguous(
            f"{name!r} runs on {len(found)} systems",
            hint="say which with --arch or --platform, or --all",
            candidates=[_candidate(offer) for offer in fitting if (offer.worker.arch, offer.worker.platform) in found],
        )
    return jobs


def _spec(offer: Offer, user: str, infra_retries: int, *, host: str | None) -> JobSpec:
    worker = offer.worker
    requirements = {"arch": worker.arch, "platform": worker.platform, WORKER: worker.name}
    if host is not None:
        requirements["host"] = host
    return JobSpec(
        recipe=worker.recipe,
        name=worker.name,
        requirements=requirements,
        worker=worker.name,
        user=user,
        retries=infra_retries,
    )


def _candidate(offer: Offer) -> dict[str, str]:
    worker = offer.worker
    return {
        "name": worker.name,
        "arch": worker.arch,
        "platform": worker.platform,
        "host": offer.host.report.host,
        "environment": worker.environment,
    }


def _in_words(offer: Offer) -> str:
    return f"{offer.worker.name} on {offer.host.report.host} ({offer.worker.arch} {offer.worker.platform})"
