"""Many jobs ended or repeated at once; each that cannot be is named with its reason, and holds up no other."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from biruda.errors import UserError
from biruda.master import events as ev
from biruda.master.hosts import now
from biruda.master.service import Master
from biruda.model import Outcome

Done = dict[str, Any]
"""{"jobs": [number, ...], "refused": [{"job", "detail"}]}"""

Check = Callable[[int], None]
"""Raises UserError for a job that who asks may not touch."""


async def cancel(master: Master, jobs: Iterable[int], check: Check, reason: str) -> Done:
    """Ask for the end of jobs; on return all that were asked for are recorded."""

    def event(job: int) -> ev.Event:
        if job not in master.farm.jobs:
            outcome = master.view(job)["outcome"]
            raise UserError(f"job {job} has already ended" + (f": {outcome}" if outcome else ""))
        return ev.CancelRequested(job=job, outcome=Outcome.CANCELLED, reason=reason, at=now())

    return await _tell(master, jobs, check, event)


async def retry(master: Master, jobs: Iterable[int], check: Check) -> Done:
    """Run finished jobs again, each as its next attempt."""
    return await _tell(master, jobs, check, master.retry_event)


async def _tell(master: Master, jobs: Iterable[int], check: Check, event: Callable[[int], ev.Event]) -> Done:
    done: Done = {"jobs": [], "refused": []}
    told: list[asyncio.Future[None]] = []
    for job in jobs:
        try:
            check(job)
            told.append(master.tell(event(job)))
        except UserError as error:
            done["refused"].append({"job": job, "detail": str(error)})
        else:
            done["jobs"].append(job)
    for future in told:
        await future
    return done
