"""The last hour as lanes: what ran beside what on each host. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from biruda.master.runs import Run

MOST_HOSTS: Final = 12
MOST_BARS: Final = 400
MOST_LANES: Final = 48
"""Of all hosts together; each has two at least. The slots beyond are not shown."""

SHORT_S: Final = 10.0
"""Runs shorter than this, one after the other and with the same end, are one bar: each would be thinner than a line."""

GAP_S: Final = 10.0


def lanes(runs: Iterable[Run], hosts: list[str]) -> list[dict[str, Any]]:
    """Lanes of these hosts, a run in the first that is free when it begins. A run that goes on has finished_s = inf."""
    by_host: dict[str, list[list[dict[str, Any]]]] = {host: [] for host in hosts[:MOST_HOSTS]}
    for run in sorted(runs, key=lambda run: run.started_s):
        if run.host in by_host:
            _add(by_host[run.host], run)
    most = max(2, MOST_LANES // max(1, len(by_host)))
    made = [
        {"host": host, "lane": number, "bars": bars}
        for host, of_host in by_host.items()
        for number, bars in enumerate(of_host[:most], start=1)
    ]
    return _newest(made)


def _add(of_host: list[list[dict[str, Any]]], run: Run) -> None:
    lane = next((lane for lane in of_host if lane[-1]["end"] is not None and lane[-1]["end"] <= run.started_s), None)
    goes_on = run.finished_s == float("inf")
    if lane is None:
        lane = []
        of_host.append(lane)
    elif not goes_on and _is_more_of(lane[-1], run):
        lane[-1].update(end=round(run.finished_s, 1), job=run.job, runs=lane[-1]["runs"] + 1, name=run.name)
        return
    end = None if goes_on else round(run.finished_s, 1)
    bar = {"job": run.job, "attempt": run.attempt, "name": run.name, "outcome": run.outcome, "runs": 1}
    lane.append({**bar, "start": round(run.started_s, 1), "end": end})


def _is_more_of(bar: dict[str, Any], run: Run) -> bool:
    return bool(
        bar["outcome"] == run.outcome
        and run.finished_s - run.started_s < SHORT_S
        and bar["end"] - bar["start"] < SHORT_S * bar["runs"]
        and run.started_s - bar["end"] < GAP_S
    )


def _newest(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MOST_BARS, the newest."""
    ends = sorted((bar["end"] or float("inf") for lane in made for bar in lane["bars"]), reverse=True)
    if len(ends) > MOST_BARS:
        for lane in made:
            lane["bars"] = [bar for bar in lane["bars"] if (bar["end"] or float("inf")) >= ends[MOST_BARS - 1]]
    return made
