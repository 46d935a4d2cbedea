"""Why a job waits: which requirement each environment fails, or who holds the slots."""

from biruda.master.farm import Farm
from biruda.master.matching import in_words, misfits
from biruda.master.state import Host, LiveJob, Placed, Waiting
from biruda.model import EnvironmentReport


def why(farm: Farm, job: LiveJob) -> tuple[str, list[tuple[Host, EnvironmentReport, bool, str]]]:
    """Why a job waits: a sentence, and for each environment whether it fits and what stands in the way."""
    rows = [(host, offer, *_verdict(farm, job, host, offer)) for host, offer in farm.offers()]
    wanted = in_words(job.spec.requirements)
    fitting = [row for row in rows if row[2]]
    if isinstance(job.state, Placed):
        placement = job.state.placement
        place = f"{placement.host} in {placement.environment.name}"
        if placement.started_s is None:
            return f"attempt {placement.attempt} was sent to {place}: it begins when a slot there is free", rows
        return f"it does not wait: attempt {placement.attempt} is on {place}", rows
    if not rows:
        return "no coordinator has connected yet: start one with biruda up or biruda coordinator", rows
    if not fitting:
        return f"no environment fits {wanted}", rows
    if any(reason == "" for *_, reason in fitting):
        return "it is next", rows
    return f"every environment that fits {wanted} is taken or away: " + "; ".join(
        dict.fromkeys(reason for *_, reason in fitting)
    ), rows


def _verdict(farm: Farm, job: LiveJob, host: Host, offer: EnvironmentReport) -> tuple[bool, str]:
    name = host.report.host
    clauses = misfits(job.spec.requirements, name, offer, host.report.workers)
    if clauses:
        return False, "; ".join(clauses)
    if not offer.usable:
        return True, f"{offer.name} on {name} cannot be used: {offer.problem}"
    if not host.connected:
        return True, f"{name} has no contact"
    if not host.report.slots:
        return True, f"{name} has no slots"
    holders = f"job{'s' if len(host.running) > 1 else ''} " + ", ".join(map(str, sorted(host.running)))
    if not host.free_slots:
        return True, f"{_all_slots(host.report.slots, name)} held by {holders}"
    if offer.slots is not None and host.running_in(offer.name) >= offer.slots:
        return True, f"{_all_slots(offer.slots, f'{offer.name} on {name}')} held"
    ahead = sum(
        1
        for other in farm.jobs.values()
        if isinstance(other.state, Waiting)
        and (-other.spec.priority, other.job) < (-job.spec.priority, job.job)
        and other.spec.requirements == job.spec.requirements
    )
    return True, f"{ahead} {'job is' if ahead == 1 else 'jobs are'} before it" if ahead else ""


def _all_slots(slots: int, place: str) -> str:
    return f"the only slot of {place} is" if slots == 1 else f"all {slots} slots of {place} are"
