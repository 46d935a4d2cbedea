"""What a coordinator does at its start and when it is told to: adopt, look at environments, probe, reload, remove."""

import asyncio
import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from biruda.config import docker_socket, find_config, load
from biruda.coordinator import envbuild
from biruda.coordinator.attempts import Attempt
from biruda.coordinator.environments import EnvironmentState
from biruda.coordinator.ledger import Entry, Given
from biruda.coordinator.outbox import log_info
from biruda.coordinator.pool import facts_inside
from biruda.coordinator.spawners.protocol import Warming, log_file
from biruda.errors import EnvironmentFault, UserError
from biruda.model import Outcome

if TYPE_CHECKING:
    from biruda.coordinator.service import Coordinator

log = logging.getLogger("biruda.coordinator")


async def adopt(host: "Coordinator") -> None:
    """Find again what an earlier process left: ended attempts in the outbox, workers that still run."""
    for ended in host.ledger.results.values():
        attempt = Attempt(job=ended.job, attempt=ended.attempt, environment="", lease_s=0, result=ended.result)
        attempt.log_path = host.outbox.log(ended.job, ended.attempt)
        attempt.log_bytes = ended.result.log.bytes  # as promised: that the file has less is seen where it ends
        attempt.sent_bytes = None
        attempt.started_s = ended.result.started_s
        host.attempts[attempt.key] = attempt
    async with asyncio.TaskGroup() as tasks:  # one that does not answer does not hold up the others
        for entry in list(host.ledger.entries.values()):
            tasks.create_task(_adopt_worker(host, entry), name=f"adopt {entry.place.worker}")
    host.outbox.sweep(host.attempts.keys())


async def _adopt_worker(host: "Coordinator", entry: Entry) -> None:
    open_ones = [given for given in entry.given if (given.job, given.attempt) not in host.attempts]
    if not open_ones or entry.place.kind not in host.spawners:
        await _forget(host, entry)  # a spare, or one whose attempts have ended
        return
    attempts = [_adopted(host, entry, given) for given in open_ones]
    lease_s = max(given.lease_s for given in open_ones)
    worker = await host.pool.adopt(entry.place, [attempt.key for attempt in attempts], lease_s)
    if worker is not None:
        host.runner.slots.hold(attempts[0].key)
        for attempt in attempts:
            log.info("job=%d attempt=%d goes on: its worker was found again", attempt.job, attempt.attempt)
        return
    await _forget_process(host, entry)
    for attempt in attempts:
        if attempt.result is None:
            await _end_lost(host, attempt)
    await _forget(host, entry)


def _adopted(host: "Coordinator", entry: Entry, given: Given) -> Attempt:
    attempt = Attempt(
        job=given.job,
        attempt=given.attempt,
        environment=entry.place.environment,
        lease_s=given.lease_s,
        worker=entry.place.worker,
        started_s=given.started_s,
        source=given.source,
        sent_bytes=None,
    )
    attempt.log_path = log_file(entry.place, given.job, given.attempt)
    attempt.log_bytes = attempt.log_size()
    host.attempts[attempt.key] = attempt
    return attempt


async def _end_lost(host: "Coordinator", attempt: Attempt) -> None:
    attempt.log_path = host.outbox.take_log(attempt.job, attempt.attempt, attempt.log_path)
    info = await asyncio.to_thread(log_info, attempt.log_path, complete=False)
    reason = "its worker was gone when the coordinator came back"
    attempt.log_bytes, attempt.worker = info.bytes, ""
    attempt.result = attempt.broken(Outcome.INFRA, reason, info, time.time())
    host.ledger.ended(attempt.ended())


async def _forget_process(host: "Coordinator", entry: Entry) -> None:
    try:
        await host.spawners[entry.place.kind].kill(entry.place)
    except EnvironmentFault as error:
        log.error("worker=%s: %s", entry.place.worker, error)


async def _forget(host: "Coordinator", entry: Entry) -> None:
    try:
        await host.pool.forget(entry.place)
    except EnvironmentFault as error:
        log.error("worker=%s of an earlier run cannot be cleaned away: %s", entry.place.worker, error)


async def look_at(host: "Coordinator", state: EnvironmentState, *, anew: bool = False) -> None:
    """Find out what an environment is and whether a worker can be had in it; never raises for that.

    anew: the kind is tested again too.
    """
    before = state.problem
    try:
        capability = await host.kinds.capability(state.config.kind, anew=anew)
        if not capability.usable:
            raise EnvironmentFault(f"{state.config.kind} does not work on this host: {capability.reason}")
        state.static = await state.spawner.prepare(state.config)
        facts = await asyncio.to_thread(host.cache.find, state.config, state.static)
        if facts is None:
            facts, worker = await facts_inside(host.pool, state)
            await asyncio.to_thread(host.cache.keep, state.config, facts, state.static)
            state.idle.append(worker.id)
        if state.static.emulated:  # from inside a machine that is emulated as a whole, nothing tells
            facts = replace(facts, emulated=True)
        state.facts, state.problem = facts, ""
        if isinstance(state.spawner, Warming):
            host.start_task(_warm(host, state, state.spawner), f"warming {state.config.name}")
        else:
            host.pool.refill(state)
    except EnvironmentFault as error:
        state.facts = None
        state.fail(error)
        if state.problem != before:
            log.warning("environment=%s cannot be used: %s", state.config.name, state.problem)


async def _warm(host: "Coordinator", state: EnvironmentState, spawner: Warming) -> None:
    """Make its spawns faster, and its spares then. What was learned stands beside what it is."""
    notes = await spawner.warm(state.config)
    if host.environments.get(state.config.name) is state and state.usable and state.static is not None:
        state.static = replace(state.static, evidence=(*state.static.evidence, *notes))
        host.report()
        host.pool.refill(state)


async def obey(host: "Coordinator", action: str, name: str) -> None:
    """Carry an EnvironmentCommand out. Raises BirudaError with what went wrong."""
    if action == "reload":
        await _reload(host)
        return
    state = host.environments.get(name)
    if state is None:
        raise UserError(f"{host.host} has no environment {name!r}")
    if action == "probe":
        host.cache.drop(name)
        await _end_idle(host, state)
        await look_at(host, state, anew=True)
    elif action == "remove":
        await _remove(host, state)
    else:
        raise UserError(f"{host.host} does not know how to {action!r}", hint="run the same version on both")


async def _reload(host: "Coordinator") -> None:
    path = host.config.path or find_config(host.home, None)
    before = dict(host.environments)
    fresh = host.configure(load(path, home=host.home))
    for name, state in before.items():
        if host.environments.get(name) is not state:
            await _end_idle(host, state)
    for state in fresh:
        await look_at(host, state)


async def _remove(host: "Coordinator", state: EnvironmentState) -> None:
    name = state.config.name
    if any(item.environment == name and item.result is None for item in host.attempts.values()):
        raise UserError(
            f"jobs run in {name} on {host.host}", hint=f"cancel them, or wait; biruda env show {name} lists them"
        )
    await _end_idle(host, state)
    image = await asyncio.to_thread(envbuild.remove, host.home, name)
    host.cache.drop(name)
    await _reload(host)
    if image:  # now that no spare is made of it any more
        docker = docker_socket(host.config.coordinator.docker_socket, os.environ)
        await asyncio.to_thread(envbuild.remove_image, docker, image)


async def _end_idle(host: "Coordinator", state: EnvironmentState) -> None:
    idle, state.idle = state.idle, []
    for worker_id in idle:
        worker = host.pool.workers.get(worker_id)
        if worker is not None:
            await host.pool.end(worker)


def remove_tree(path: Path) -> None:
    """Remove a leftover directory. Blocking."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)
