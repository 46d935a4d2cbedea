"""The whole farm at a glance, of a size that does not grow with it: what the home page shows, and changes of it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from biruda.master import timeline, views
from biruda.master.farm import Farm
from biruda.master.history import History
from biruda.master.matching import in_words, misfits
from biruda.master.runs import Run
from biruda.master.state import ClassKey, Host, LiveJob, Placed, Waiting
from biruda.model import EnvironmentReport

MOST_HOSTS: Final = 24
MOST_NOW: Final = 16
MOST_NEWEST: Final = 12
MOST_CLASSES: Final = 8
MOST_TROUBLES: Final = 8

Section = Any


class Overview:
    """Makes the sections. What fits a kind of request is found out once for as long as no host changes."""

    def __init__(self, farm: Farm, history: History) -> None:
        self._farm = farm
        self._history = history
        self._fitting: dict[ClassKey, list[tuple[Host, EnvironmentReport]]] = {}
        self._known: tuple[int, ...] = ()

    def sections(self, problem: str, now_s: float) -> dict[str, Section]:
        """All of it. problem: why nothing can be recorded at the moment, or ""."""
        farm = self._farm
        self._forget_fits()
        running = sorted(self._running(), key=lambda item: -(item[1].placement.started_s or 0))
        begun = [item for item in running if item[1].placement.started_s is not None]
        classes = self._classes()
        waiting = len(farm.jobs) - len(begun)
        self._history.refresh(waiting)
        waits = [self._wait(key, jobs) for key, jobs in classes[:MOST_CLASSES]]
        troubles = [*self._troubles(problem), *(_hopeless(item) for item in waits if not item["fits"])]
        hosts = sorted(farm.hosts.values(), key=lambda host: (host.connected, -len(host.running), host.report.host))
        day = self._history.day
        return {
            "head": {
                "running": len(begun),
                "waiting": waiting,
                "day": {outcome: count for outcome, count in sorted(day.items()) if count},
                "hosts": len(farm.hosts),
                "connected": sum(host.connected for host in hosts),
                "slots": sum(host.report.slots for host in hosts if host.connected),
                "used": sum(min(len(host.running), host.report.slots) for host in hosts if host.connected),
                "troubles": len(troubles),
            },
            "troubles": troubles[:MOST_TROUBLES],
            "hosts": [_host(host) for host in sorted(hosts[:MOST_HOSTS], key=_place)],
            "now": [_now(job, placed) for job, placed in begun[:MOST_NOW]],
            "waits": waits,
            "newest": [_newest(run) for run in list(self._history.newest)[: -MOST_NEWEST - 1 : -1]],
            "matrix": self._matrix(classes, begun),
            "hour": self._history.hour(),
            "timeline": {"until": round(now_s), "lanes": self._lanes(hosts, begun)},
        }

    # What there is.

    def _running(self) -> Iterator[tuple[LiveJob, Placed]]:
        for host in self._farm.hosts.values():
            for number in host.running:
                job = self._farm.jobs[number]
                if isinstance(job.state, Placed):
                    yield job, job.state

    def _classes(self) -> list[tuple[ClassKey, list[LiveJob]]]:
        """The jobs that wait, by what they ask for; the largest class first."""
        classes: dict[ClassKey, list[LiveJob]] = {}
        for job in self._farm.jobs.values():
            if isinstance(job.state, Waiting):
                classes.setdefault(tuple(sorted(job.spec.requirements.items())), []).append(job)
        return sorted(classes.items(), key=lambda item: -len(item[1]))

    def _forget_fits(self) -> None:
        known = tuple(id(host.report) for host in self._farm.hosts.values())
        if known != self._known or len(self._fitting) > 1000:
            self._fitting.clear()
            self._known = known

    def _fits(self, key: ClassKey) -> list[tuple[Host, EnvironmentReport]]:
        found = self._fitting.get(key)
        if found is None:
            requirements = dict(key)
            found = self._fitting[key] = [
                (host, offer)
                for host, offer in self._farm.offers()
                if not misfits(requirements, host.report.host, offer, host.report.workers)
            ]
        return found

    def _wait(self, key: ClassKey, jobs: list[LiveJob]) -> dict[str, Any]:
        first = min(jobs, key=lambda job: (-job.spec.priority, job.job))
        fitting = self._fits(key)
        assert isinstance(first.state, Waiting)
        return {
            "jobs": len(jobs),
            "first": first.job,
            "name": first.spec.name,
            "wants": in_words(first.spec.requirements),
            "since": views.instant(first.state.since_s),
            "fits": bool(fitting),
            "sentence": _sentence(fitting),
        }

    # What is wrong.

    def _troubles(self, problem: str) -> list[dict[str, Any]]:
        troubles = [_trouble(problem, "make room on the master's disk")] if problem else []
        if not self._farm.hosts:
            troubles.append(_trouble("no coordinator has connected yet", "", "biruda up"))
        for host in self._farm.hosts.values():
            name = host.report.host
            if not host.connected:
                jobs = len(host.running)
                going = f"; {jobs} {'job goes' if jobs == 1 else 'jobs go'} on there" if jobs else ""
                text = f"{name} has no contact{going}"
                troubles.append(
                    {
                        **_trouble(text, "", f"biruda deploy {name}", f"/hosts/{name}"),
                        "since": views.instant(host.heard_wall_s),
                    }
                )
            for offer in host.report.environments:
                if host.connected and not offer.usable:
                    text = f"{offer.name} on {name} cannot be used: {offer.problem}"
                    troubles.append(
                        _trouble(text, "", f"biruda env probe {offer.name}", f"/environments#{name}/{offer.name}")
                    )
        return troubles

    # The matrix.

    def _matrix(
        self, classes: list[tuple[ClassKey, list[LiveJob]]], begun: list[tuple[LiveJob, Placed]]
    ) -> list[dict[str, Any]]:
        """A cell for each (arch, platform) that there is. idle: slots that are free there now."""
        cells: dict[tuple[str, str], dict[str, Any]] = {}
        for host in self._farm.hosts.values():
            free = host.free_slots
            usable = set()
            for offer in host.report.environments:
                cell = cells.setdefault((offer.arch, offer.platform), _cell(offer))
                cell["environments"] += 1
                cell["usable"] += offer.usable and host.connected
                if offer.usable and host.connected:
                    usable.add((offer.arch, offer.platform))
            for place in usable:
                cells[place]["idle"] += free
        for _, placed in begun:
            at = placed.placement.environment
            cells.setdefault((at.arch, at.platform), _cell(at))["running"] += 1
        for key, jobs in classes[: 6 * MOST_CLASSES]:
            for place in {(offer.arch, offer.platform) for _, offer in self._fits(key)}:
                cells[place]["waiting"] += len(jobs)
        return [cells[place] for place in sorted(cells)]

    def _lanes(self, hosts: list[Host], begun: list[tuple[LiveJob, Placed]]) -> list[dict[str, Any]]:
        going = [_going(job, placed) for job, placed in begun]
        seen = Counter(run.host for run in (*self._history.newest, *going))
        names = sorted((host.report.host for host in hosts), key=lambda name: (-seen[name], name))[
            : timeline.MOST_HOSTS
        ]
        return timeline.lanes([*self._history.newest, *going], sorted(name for name in names if seen[name]))


def _place(host: Host) -> tuple[bool, str]:
    """Trouble on top, then by name: rows do not change places because work does."""
    return host.connected, host.report.host


def _cell(offer: EnvironmentReport) -> dict[str, Any]:
    counts = {"environments": 0, "usable": 0, "idle": 0, "running": 0, "waiting": 0}
    return {"arch": offer.arch, "platform": offer.platform, **counts}


def _host(host: Host) -> dict[str, Any]:
    report = host.report
    return {
        "host": report.host,
        "connected": host.connected,
        "arch": report.arch,
        "platform": report.platform,
        "slots": report.slots,
        "running": len(host.running),
        "last_contact": None if host.connected else views.instant(host.heard_wall_s),
    }


def _now(job: LiveJob, placed: Placed) -> dict[str, Any]:
    placement = placed.placement
    return {
        "job": job.job,
        "attempt": placement.attempt,
        "name": job.spec.name,
        "arch": placement.environment.arch,
        "platform": placement.environment.platform,
        "host": placement.host,
        "environment": placement.environment.name,
        "started": views.instant(placement.started_s),
        "cancelling": bool(placed.cancelling),
    }


def _newest(run: Run) -> dict[str, Any]:
    return {
        "job": run.job,
        "attempt": run.attempt,
        "name": run.name,
        "outcome": run.outcome,
        "arch": run.arch,
        "platform": run.platform,
        "host": run.host,
        "run_s": round(run.finished_s - run.started_s, 3),
        "finished": views.instant(run.finished_s),
    }


def _going(job: LiveJob, placed: Placed) -> Run:
    placement = placed.placement
    at = placement.environment
    return Run(
        job=job.job,
        attempt=placement.attempt,
        name=job.spec.name,
        worker=job.spec.worker or "",
        host=placement.host,
        environment=at.name,
        arch=at.arch,
        platform=at.platform,
        outcome="running",
        queued_s=0.0,
        started_s=placement.started_s or 0.0,
        finished_s=float("inf"),
        recorded_s=float("inf"),
    )


def _trouble(text: str, hint: str, command: str = "", href: str = "") -> dict[str, Any]:
    return {"text": text, "hint": hint, "command": command, "href": href, "since": None}


def _hopeless(wait: dict[str, Any]) -> dict[str, Any]:
    jobs = wait["jobs"]
    text = f"{jobs} {'job waits' if jobs == 1 else 'jobs wait'} for what nobody has: {wait['wants']}"
    return _trouble(text, "build an environment that fits, or cancel", "biruda env build", f"/jobs/{wait['first']}")


def _sentence(fitting: list[tuple[Host, EnvironmentReport]]) -> str:
    """Why the next of a class waits, in one line whatever the number of hosts."""
    if not fitting:
        return "no environment fits"
    there = [(host, offer) for host, offer in fitting if host.connected]
    if not there:
        names = sorted({host.report.host for host, _ in fitting})
        return f"{_few(names)} {'has' if len(names) == 1 else 'have'} no contact"
    good = [(host, offer) for host, offer in there if offer.usable]
    if not good:
        return f"{there[0][1].name} on {there[0][0].report.host} cannot be used: {there[0][1].problem}"
    if any(
        host.free_slots and (offer.slots is None or host.running_in(offer.name) < offer.slots) for host, offer in good
    ):
        return "it is next"
    hosts = {host.report.host: host for host, _ in good}
    free = sorted(name for name, host in hosts.items() if host.free_slots)
    if free:  # there are free slots, and none for these environments
        names = sorted({offer.name for host, offer in good if host.report.host in free})
        slots = sum(offer.slots or 0 for host, offer in good if host.report.host in free)
        return f"{_all(slots)} of {_few(names, 'environments')} on {_few(free)} {'is' if slots == 1 else 'are'} taken"
    slots = sum(host.report.slots for host in hosts.values())
    if not slots:
        return f"{_few(sorted(hosts))} has no slots"
    return f"{_all(slots)} on {_few(sorted(hosts))} {'is' if slots == 1 else 'are'} taken"


def _all(slots: int) -> str:
    return "the only slot" if slots == 1 else f"all {slots:,} slots"


def _few(names: list[str], what: str = "hosts") -> str:
    return " and ".join(names) if len(names) <= 2 else f"{len(names)} {what}"
