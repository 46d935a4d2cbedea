"""One host of the farm: takes assignments, runs them in its environments, and owes the master every byte of them."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import assert_never

from biruda import VERSION
from biruda.config import Config
from biruda.coordinator import commands
from biruda.coordinator.attempts import Attempt
from biruda.coordinator.environments import EnvironmentState, FactsCache, host_facts, slots_of, worker_reports
from biruda.coordinator.kinds import Kinds
from biruda.coordinator.ledger import Ledger
from biruda.coordinator.outbox import Outbox
from biruda.coordinator.pool import Pool
from biruda.coordinator.pump import Pump
from biruda.coordinator.runner import Runner
from biruda.coordinator.samples import Sampler
from biruda.coordinator.sources import Sources
from biruda.coordinator.spawners.protocol import Spawner
from biruda.coordinator.workers import Worker
from biruda.errors import BirudaError, EnvironmentFault, first_of
from biruda.frames import DataFrame, MessageFrame
from biruda.link import Link, Transport, dial, new_session_id
from biruda.messages import (
    Assign,
    AttemptRecorded,
    Cancel,
    ChunksEnd,
    CommandDone,
    EnvironmentCommand,
    FromWorker,
    HostReport,
    Samples,
    SamplesWanted,
    SourceOffered,
    StreamsWanted,
    ToMaster,
    decode_to_coordinator,
    encode,
)
from biruda.model import Kind, Sample

log = logging.getLogger("biruda.coordinator")

REDIAL_S = 1.0
REDIAL_MOST_S = 15.0
REAP_S = 60.0

LOOK_S = 10.0
"""So long the start waits for environments to be looked at; what takes longer comes in when it is done."""

LOOK_AGAIN_S = 15.0
COMES_BACK = frozenset({Kind.SSH, Kind.DOCKER, Kind.QEMU})
"""Kinds whose environments are looked at again where they cannot be used."""

Dial = Callable[[], Awaitable[Transport]]


class _Stopped(Exception):
    """Ends the root group: whatever still runs in it is cancelled."""


class Coordinator:
    """The running coordinator."""

    def __init__(self, home: Path, config: Config, host: str, spawners: Mapping[Kind, Spawner], instance: str) -> None:
        self.home = home
        self.config = config
        self.host = host
        self.instance = instance
        self.spawners = spawners
        self.facts = host_facts()
        self.slots = slots_of(config.coordinator.slots)
        self.attempts: dict[tuple[int, int], Attempt] = {}
        self.environments: dict[str, EnvironmentState] = {}
        directory = home / "coordinator"
        (directory / "workers").mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(directory / "ledger")
        self.outbox = Outbox(directory / "outbox")
        self.cache = FactsCache(directory / "facts")
        self.link = Link(new_session_id(), "link to the master", before_sending=self.ledger.flush)
        self.sources = Sources(directory / "sources", self.link, config.coordinator.source_cache_bytes)
        self.pump = Pump(self.link, self.outbox, self.attempts.values)
        self.sampler = Sampler(lambda: sum(1 for item in self.attempts.values() if item.result is None))
        self.ready = asyncio.Event()  # every environment was looked at once, or for LOOK_S
        self.kinds = Kinds(spawners)
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self, dial_master: Dial) -> AsyncIterator["Coordinator"]:
        """The coordinator at work; on exit its attempts go on without it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._begin(tasks, dial_master)
                try:
                    yield self
                finally:
                    self.pool.close()
                    await self.link.close()
                raise _Stopped
        except* _Stopped:
            pass
        finally:
            for attempt in self.attempts.values():
                attempt.close()
            self.ledger.close()

    def _begin(self, tasks: asyncio.TaskGroup, dial_master: Dial) -> None:
        self._tasks = tasks
        self.pool = Pool(
            self.home / "coordinator" / "workers",
            self.ledger,
            self.spawners,
            self.slots,
            tasks,
            self._from_worker,
            self._data_from_worker,
            self._worker_ended,
            self.environment_failed,
        )
        self.runner = Runner(self, tasks)
        tasks.create_task(self.pump.run(), name="pump")
        tasks.create_task(self.sampler.run(), name="sampler")
        tasks.create_task(self._start(tasks, dial_master), name="start")

    async def _start(self, tasks: asyncio.TaskGroup, dial_master: Dial) -> None:
        await commands.adopt(self)
        tasks.create_task(self._look_at_all(), name="environments")
        tasks.create_task(self._look_again_for_ever(), name="environments that failed")
        tasks.create_task(self._reap_for_ever(), name="reaper")
        await self.ready.wait()
        await self._stay_connected(dial_master)

    # Environments.

    async def _look_at_all(self) -> None:
        self.configure(self.config)
        async with asyncio.TaskGroup() as tasks:
            looks = [
                tasks.create_task(self._look_at(state), name=f"look at {state.config.name}")
                for state in self.environments.values()
            ]
            if looks:  # one that is far away or slow does not hold up the others
                await asyncio.wait(looks, timeout=LOOK_S)
            self.ready.set()
            self.report()
        await self.kinds.test_all(self.report)

    async def _look_at(self, state: EnvironmentState) -> None:
        await commands.look_at(self, state)
        self.report()

    async def _look_again_for_ever(self) -> None:
        """What is no part of this host comes back without a word to us."""
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            for state in list(self.environments.values()):
                if state.config.kind in COMES_BACK and state.has_failed:
                    await self._look_at(state)
                    if state.usable:
                        await self.pool.clean_again()

    def configure(self, config: Config) -> list[EnvironmentState]:
        """Take a configuration's environments over; gives those that are new or changed."""
        self.config = config
        fresh: list[EnvironmentState] = []
        kept: dict[str, EnvironmentState] = {}
        for item in config.environments:
            known = self.environments.get(item.name)
            if known is not None and known.config == item:
                kept[item.name] = known
                continue
            spawner = self.spawners[item.kind]
            kept[item.name] = state = EnvironmentState(item, spawner, self.facts)
            fresh.append(state)
        for state in self.environments.values():
            state.dropped = kept.get(state.config.name) is not state
        self.environments = kept
        return fresh

    def environment_failed(self, name: str, fault: EnvironmentFault) -> None:
        """It cannot be used any more, for this reason; the master is told before anything else is."""
        state = self.environments.get(name)
        if state is not None:
            state.fail(fault)
            log.error("environment=%s cannot be used: %s", name, state.problem)
            self.report()

    async def _reap_for_ever(self) -> None:
        while True:
            try:
                await self.reap()
            except OSError as error:  # no more files may be open, the disk fails: the next time may be better
                log.error("reaper: %s", error)
            await asyncio.sleep(REAP_S)

    async def reap(self) -> None:
        """Remove what carries this instance's mark and belongs to no worker that the ledger knows."""
        async with self.kinds.testing:
            for spawner in self.spawners.values():
                try:
                    for sentence in await spawner.reap(frozenset(self.ledger.entries)):
                        log.warning("%s", sentence)
                except (OSError, EnvironmentFault) as error:
                    log.error("reaper of %s: %s", spawner.kind, error)
            await self.pool.clean_again()
        workers = self.home / "coordinator" / "workers"
        for name in await asyncio.to_thread(os.listdir, workers):
            if name not in self.ledger.entries:
                await asyncio.to_thread(commands.remove_tree, workers / name)

    # The master.

    def tell_master(self, message: ToMaster) -> None:
        """Now, or in the session's next connection."""
        self.link.post(encode(message))

    def report(self) -> None:
        """Tell the master what this host is now."""
        if self.ready.is_set():
            self.tell_master(self._host_report())

    def _host_report(self) -> HostReport:
        return HostReport(
            host=self.host,
            arch=self.facts.arch,
            platform=self.facts.platform,
            slots=self.slots,
            pid=os.getpid(),
            version=VERSION,
            environments=tuple(state.report() for state in self.environments.values()),
            workers=worker_reports(self.config.workers, self.environments),
            kinds=self.kinds.reports(),
            attempts=tuple(attempt.report() for attempt in self.attempts.values()),
        )

    async def _stay_connected(self, dial_master: Dial) -> None:
        pause_s = REDIAL_S / 8
        told = ""
        while True:
            try:
                await self._one_connection(dial_master)
                pause_s, told = REDIAL_S / 8, ""
            except* (OSError, TimeoutError, BirudaError) as group:
                problem = str(first_of(group))
                if problem != told:
                    log.warning("no link to the master: %s; trying again", problem)
                    told = problem
            await asyncio.sleep(pause_s)
            pause_s = min(REDIAL_MOST_S, pause_s * 2)

    async def _one_connection(self, dial_master: Dial) -> None:
        transport = await dial_master()
        who = {"host": self.host, "instance": self.instance, "version": VERSION}
        try:
            received, fresh = await dial(transport, self.link, who)
        except BaseException:
            await transport.close()
            raise
        log.info("linked to the master at %s%s", transport.peer, "" if fresh else ", the session goes on")
        if fresh:
            self._begin_session()
        await self.link.run(transport, received, self._from_master)
        log.warning("the link to the master at %s ended", transport.peer)

    def _begin_session(self) -> None:
        """The master knows nothing of this session: say everything; it says what it has."""
        self.sources.interrupt()
        for attempt in self.attempts.values():
            attempt.sent_bytes = None
            attempt.owed.clear()
        self.tell_master(self._host_report())
        for attempt in self.attempts.values():
            if attempt.result is not None:
                self.tell_master(attempt.ended())

    async def _from_master(self, item: MessageFrame | DataFrame) -> None:
        if isinstance(item, DataFrame):
            self.sources.take(item.header, item.payload)
            return
        message = decode_to_coordinator(item.payload)
        match message:
            case Assign(assignments=assignments):
                for assignment in assignments:
                    self.runner.assign(assignment)
            case Cancel():
                self.runner.cancel(message)
            case StreamsWanted():
                self._owe(message)
            case AttemptRecorded():
                await self.runner.forget(message.job, message.attempt)
            case SourceOffered():
                self.sources.offered(message)
            case ChunksEnd():
                self.sources.ended(message)
            case SamplesWanted():
                self._sample(message.wanted)
            case EnvironmentCommand():
                self.start_task(self._obey(message), f"{message.action} {message.environment}")
            case _:
                assert_never(message)

    def start_task(self, work: Coroutine[None, None, None], name: str) -> None:
        """Do it in the background, for as long as this coordinator runs."""
        assert self._tasks is not None
        self._tasks.create_task(work, name=name)

    def _owe(self, message: StreamsWanted) -> None:
        attempt = self.attempts.get((message.job, message.attempt))
        if attempt is None:
            return
        for channel, offset in message.streams:
            if channel == 0:
                attempt.sent_bytes = min(offset, attempt.log_bytes)
            else:
                attempt.owed.append((channel, offset))
        self.pump.wake()

    def _sample(self, wanted: bool) -> None:
        if not wanted:
            self.sampler.listener = None
            return
        self.tell_master(Samples(samples=tuple(self.sampler.ring)))

        def hand_on(sample: Sample) -> None:
            self.tell_master(Samples(samples=(sample,)))

        self.sampler.listener = hand_on

    async def _obey(self, message: EnvironmentCommand) -> None:
        problem = ""
        try:
            await commands.obey(self, message.action, message.environment)
        except BirudaError as error:
            problem = f"{error}; {error.hint}" if error.hint else str(error)
        self.report()
        self.tell_master(CommandDone(request=message.request, problem=problem))

    # Workers.

    async def _from_worker(self, worker: Worker, message: FromWorker, payload: bytes) -> None:
        await self.runner.from_worker(worker, message, payload)

    async def _data_from_worker(self, worker: Worker, item: DataFrame) -> None:
        await self.runner.data_from_worker(worker, item)

    def _worker_ended(self, worker: Worker) -> None:
        self.runner.worker_ended(worker)
