"""What is done to a farm. A schedule is drawn from a seed; each fault ends by itself, within its round."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.soak.field import HOSTS, Field, Worker


@dataclass(frozen=True)
class Fault:
    """One entry of a schedule. target: a role, or the host whose worker, zygote, link or disk it is."""

    at_s: float
    kind: str
    target: str
    span_s: float  # how long it lasts, or until what was killed comes back
    draw: float  # 0..1: which of several, or how much

    def __str__(self) -> str:
        return f"{self.at_s:.2f} s: {self.kind} {self.target} for {self.span_s:.2f} s"


@dataclass
class Harm:
    """What was really done, for the checker to take into account."""

    done: Counter[str] = field(default_factory=Counter)  # in this round
    in_vain: Counter[str] = field(default_factory=Counter)  # there was nothing of the kind at the time
    earlier: Counter[str] = field(default_factory=Counter)  # done in the farm's rounds before


WEIGHTS = {
    "kill master": 4,
    "kill coordinator": 4,
    "end master": 1,
    "end coordinator": 1,
    "kill both": 1,
    "stop master": 2,
    "stop coordinator": 2,
    "kill zygote": 2,
    "stop zygote": 1,
    "kill worker": 4,
    "stop worker": 2,
    "kill container": 2,
    "stop container": 1,
    "kill machine": 2,
    "stop machine": 1,
    "cut link": 4,
    "delay link": 2,
    "reorder link": 3,
    "fill master's disk": 2,
    "fill coordinator's disk": 2,
    "step master's clock": 2,
    "step coordinator's clock": 2,
    "kill dockerd": 1,
}

KINDS_OF = {"container": "docker", "machine": "qemu"}


def schedule(chance: random.Random, span_s: float, *, most: int, kinds: Sequence[str]) -> list[Fault]:
    """The faults of a round, of these kinds, by time."""
    faults = []
    for _ in range(chance.randint(min(1, most), most)):
        kind = chance.choices(kinds, [WEIGHTS[each] for each in kinds])[0]
        target = "m" if "master" in kind else chance.choice(HOSTS)
        target = {"container": "a", "dockerd": "a", "machine": "b"}.get(kind.split()[-1], target)
        span_s_ = chance.choice((0.05, 0.5, 1.0, 2.0)) * chance.uniform(0.5, 1.5)
        faults.append(Fault(round(chance.uniform(0.3, span_s), 3), kind, target, round(span_s_, 3), chance.random()))
    return sorted(faults, key=lambda fault: fault.at_s)


async def carry_out(field_: Field, faults: Sequence[Fault], begin_s: float, harm: Harm) -> None:
    """All of them, each in its time; all is as before on return, but who was killed may be on its way back."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        for fault in faults:
            await asyncio.sleep(max(0.0, begin_s + fault.at_s - loop.time()))
            tasks.create_task(_one(field_, fault, harm))


async def _one(field_: Field, fault: Fault, harm: Harm) -> None:
    done = await ACTS[fault.kind](field_, fault)
    (harm.done if done else harm.in_vain)[fault.kind] += 1


async def _end_role(field_: Field, fault: Fault) -> bool:
    number = signal.SIGTERM if fault.kind.startswith("end") else signal.SIGKILL
    names = ("m", fault.target) if fault.kind == "kill both" else (fault.target,)
    for name in names:
        field_.roles[name].end(number, fault.span_s)
    return True


async def _stop_role(field_: Field, fault: Fault) -> bool:
    return await _stop(field_.roles[fault.target].pid, fault.span_s)


async def _stop(pid: int, span_s: float) -> bool:
    if not pid:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(span_s)
        os.kill(pid, signal.SIGCONT)
        return True
    return False


async def _zygote(field_: Field, fault: Fault) -> bool:
    found = field_.zygotes(fault.target)
    if not found:
        return False
    if fault.kind.startswith("stop"):
        return await _stop(found[0], fault.span_s)
    with suppress(ProcessLookupError):
        os.kill(found[0], signal.SIGKILL)
        return True
    return False


async def _worker(field_: Field, fault: Fault) -> bool:
    kind = KINDS_OF.get(fault.kind.split()[1])
    found = [worker for worker in field_.workers(fault.target) if kind in (None, worker.kind)]
    found = [worker for worker in found if worker.job] or found  # those with an attempt first
    if not found:
        return False
    victim: Worker = found[int(fault.draw * len(found))]
    if fault.kind.startswith("stop"):
        return await _stop(victim.pid, fault.span_s)
    with suppress(ProcessLookupError):
        os.kill(victim.pid, signal.SIGKILL)
        return True
    return False


async def _link(field_: Field, fault: Fault) -> bool:
    manner = {
        "cut link": {"cut": True},
        "delay link": {"delay_s": 0.02 + 0.2 * fault.draw},
        "reorder link": {"jitter_s": 0.1 * fault.draw, "loss": 0.05 * fault.draw, "twice": 0.1},
    }
    field_.treat(fault.target, **manner[fault.kind])
    await asyncio.sleep(fault.span_s)
    field_.treat(fault.target)
    return True


async def _fill(field_: Field, fault: Fault) -> bool:
    path = field_.homes[fault.target] / f"filler-{fault.at_s}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    try:
        ends_s = asyncio.get_running_loop().time() + fault.span_s
        while asyncio.get_running_loop().time() < ends_s:  # what the farm removes meanwhile is taken, too
            for size in (1 << 20, 4096):
                with suppress(OSError):
                    while os.write(fd, bytes(size)) == size:
                        pass
            await asyncio.sleep(0.02)
    finally:
        os.close(fd)
        path.unlink()
    return True


async def _step_clock(field_: Field, fault: Fault) -> bool:
    if not field_.faked_clock:
        return False
    field_.set_clock(fault.target, round((fault.draw - 0.5) * 2 * 3600))
    await asyncio.sleep(fault.span_s)
    field_.set_clock(fault.target, 0)
    return True


async def _dockerd(field_: Field, fault: Fault) -> bool:
    dockerd = field_.places.dockerd
    if dockerd is None:
        return False
    await asyncio.to_thread(dockerd.stop, signal.SIGKILL)
    await asyncio.sleep(fault.span_s)
    await asyncio.to_thread(dockerd.start)
    return True


ACTS: dict[str, Callable[[Field, Fault], Awaitable[bool]]] = {
    "kill master": _end_role,
    "kill coordinator": _end_role,
    "end master": _end_role,
    "end coordinator": _end_role,
    "kill both": _end_role,
    "stop master": _stop_role,
    "stop coordinator": _stop_role,
    "kill zygote": _zygote,
    "stop zygote": _zygote,
    "kill worker": _worker,
    "stop worker": _worker,
    "kill container": _worker,
    "stop container": _worker,
    "kill machine": _worker,
    "stop machine": _worker,
    "cut link": _link,
    "delay link": _link,
    "reorder link": _link,
    "fill master's disk": _fill,
    "fill coordinator's disk": _fill,
    "step master's clock": _step_clock,
    "step coordinator's clock": _step_clock,
    "kill dockerd": _dockerd,
}
