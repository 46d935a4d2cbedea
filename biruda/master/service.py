"""The shell around the farm: takes events in, commits what follows from them, and only then lets others see it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import orjson

from biruda.errors import NotFound, UserError
from biruda.master import events as ev
from biruda.master import views
from biruda.master.farm import Farm
from biruda.master.hosts import Hosts, now
from biruda.master.intake import Intake
from biruda.master.runs import run_of
from biruda.master.sources import Sources
from biruda.master.spool import SMALL_LOG_BYTES, Spool
from biruda.master.store import Published, Store, Unwritable, emitted
from biruda.model import JobSpec, Outcome

log = logging.getLogger("biruda.master")

T = TypeVar("T")

RETRY_S = 1.0
SYNC_S = 20.0
"""How long small logs wait in the store, many together, until their files are known to be on disk."""

SYNC_BYTES = 16 << 20
"""Or so many bytes of them."""

PACE_S = 0.002
"""A batch of events is not begun sooner after the last one."""

BUSY_PACE_S = 0.008
BUSY_EVENTS = 4
"""After a batch of so many events the next one may wait longer: a commit costs the same whatever is in it."""

INLINE_SAVES = 100
"""Up to so many are put into their transaction in the loop; more in the writer thread."""

SUBSCRIBER_EVENTS = 1000
"""A reader of the event stream that falls so far behind is cut off; it resumes by event id."""


class Master:
    """The running master: farm, store, spool, hosts and those who watch."""

    def __init__(self, store: Store, spool: Spool, *, lease_s: float, sources: Sources, infra_retries: int = 2) -> None:
        self.store = store
        self.spool = spool
        self.infra_retries = infra_retries  # of a job that does not say
        self.farm = Farm(lease_s=lease_s, next_job=store.next_job())
        self.intakes: dict[tuple[int, int], Intake] = {}
        self.sources = sources
        self.hosts = Hosts(self, sources)
        self.subscribers: set[asyncio.Queue[dict[str, Any]]] = set()
        self.problem = ""  # why nothing can be recorded at the moment
        self.on_recorded: Callable[[ev.SaveAttempt], None] | None = None  # told of each attempt that was
        self.next_event = store.last_event + 1
        self._inbox: list[tuple[ev.Event, asyncio.Future[None] | None]] = []
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._unsynced_bytes = 0  # of small logs that wait in the store
        self._synced = 0  # of the store's batches of them: no longer from here back
        self._tidied = 0  # and the store knows it
        self._sync_due = asyncio.Event()
        self._writing = asyncio.Lock()
        self._next_batch_s = 0.0  # of the loop's clock
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self.farm.restore(store.live_jobs(), store.hosts(), now())
        spool.sweep(self._is_out)
        for record, small_log in store.unsynced():
            spool.restore(record, small_log)
            self._unsynced_bytes += len(small_log)

    def _is_out(self, job: int, attempt: int) -> bool:
        live = self.farm.jobs.get(job)
        return live is not None and live.last_attempt == attempt

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Master"]:
        """The master at work; all it started has ended on exit."""
        async with AsyncExitStack() as stack:
            stack.callback(self._writer.shutdown)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            worker = tasks.create_task(self._work(), name="farm")
            stack.callback(worker.cancel)
            syncer = tasks.create_task(self._sync_spool(), name="spool sync")
            stack.callback(syncer.cancel)
            await stack.enter_async_context(self.hosts.running())
            yield self

    # Events in, actions out.

    def tell(self, event: ev.Event) -> asyncio.Future[None]:
        """Hand an event to the farm; the future is done when all that follows is on disk and sent."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inbox.append((event, future))
        self._wake.set()
        return future

    def post(self, event: ev.Event) -> None:
        """Hand an event to the farm; nobody waits for what follows."""
        self._inbox.append((event, None))
        self._wake.set()

    async def submit(self, specs: tuple[JobSpec, ...]) -> list[int]:
        """The numbers of new jobs, which are on disk."""
        event = ev.JobsSubmitted(specs=specs, at=now())
        ahead = sum(len(item.specs) for item, _ in self._inbox if isinstance(item, ev.JobsSubmitted))
        first = self.farm.next_job + ahead
        await self.tell(event)
        return list(range(first, first + len(specs)))

    async def _work(self) -> None:
        while True:
            await self._wait_for_events()
            await self._keep_pace()
            batch, self._inbox = self._inbox, []
            if len(batch) >= BUSY_EVENTS:
                self._next_batch_s += BUSY_PACE_S - PACE_S
            await self._carry_out(self.farm.handle(*[event for event, _ in batch]))
            for _, future in batch:
                if future is not None and not future.done():
                    future.set_result(None)
            if self._synced > self._tidied:
                await self._forget_synced()
            if self._unsynced_bytes > SYNC_BYTES:
                self._sync_due.set()

    async def _keep_pace(self) -> None:
        """One commit after the other costs more than one for all that comes meanwhile; the first one does not wait."""
        loop = asyncio.get_running_loop()
        pause_s = self._next_batch_s - loop.time()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        self._next_batch_s = loop.time() + PACE_S

    async def _wait_for_events(self) -> None:
        while not self._inbox and self._synced == self._tidied:
            self._wake.clear()
            deadline = self.farm.next_deadline_s()
            if deadline is None:
                await self._wake.wait()
                continue
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic()) + 0.01):
                    await self._wake.wait()
            except TimeoutError:
                self._inbox.append((ev.Tick(at=now()), None))

    async def _carry_out(self, actions: list[ev.Action]) -> None:
        saves = [action for action in actions if not isinstance(action, ev.Send | ev.Drop)]
        first_event = self.next_event
        if saves:
            await self._commit([self._closed(save) for save in saves])
        for action in actions:
            if isinstance(action, ev.Send):
                self.hosts.send(action.host, action.message)
            elif isinstance(action, ev.Drop):
                self._drop(action)
            elif isinstance(action, ev.SaveAttempt) and self.on_recorded is not None:
                self.on_recorded(action)
        self.farm.leaving.clear()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self.subscribers:
            for event in emitted(saves, first_event):
                self._publish_event(event)

    def _closed(self, save: ev.Save) -> ev.Save:
        """Before an attempt's files get their names, nothing writes to them any more."""
        if isinstance(save, ev.SaveAttempt):
            intake = self.intakes.pop((save.job, save.placement.attempt), None)
            if intake is not None:
                intake.close()
        return save

    async def _commit(self, saves: list[ev.Save]) -> None:
        """On disk on return, however long that takes: nobody is told of what could be lost.

        Only what waits for the disk is done in the writer thread: to and fro between two threads of one interpreter
        costs more than what is done there.
        """
        loop = asyncio.get_running_loop()
        quick = len(saves) <= INLINE_SAVES and all(
            not isinstance(save, ev.SaveAttempt)
            or (save.result.log.complete and save.result.log.bytes <= SMALL_LOG_BYTES and not save.result.artifacts)
            for save in saves
        )
        while True:
            try:
                async with self._writing:
                    if quick:
                        self._write(saves, self.next_event)
                    else:
                        await loop.run_in_executor(self._writer, partial(self._write, saves, self.next_event))
                    await loop.run_in_executor(self._writer, self.store.commit)
                break
            except (OSError, Unwritable) as error:
                text = f"{self.store.path.parent}: nothing can be recorded: {error}; the farm waits until there is room"
                if not self.problem:
                    log.error("%s", text)
                self.problem = text
            await asyncio.sleep(RETRY_S)
        if self.problem:
            log.info("recording goes on")
            self.problem = ""
        self.next_event += sum(isinstance(save, ev.Emit) for save in saves)

    async def in_store(self, work: Callable[[], T]) -> T:
        """What work() gives, which has the store's writing connection to itself, in the writer thread."""
        async with self._writing:
            return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def _write(self, saves: list[ev.Save], first_event: int) -> None:
        """Spool files first, then the transaction that makes them count."""
        rows: list[ev.Save | Published] = []
        records: dict[int, list[dict[str, Any]]] = {}
        has_large = False
        recorded_s = time.time()
        for save in saves:
            if not isinstance(save, ev.SaveAttempt):
                rows.append(save)
                continue
            earlier = [*self.store.earlier_attempts(save.job, save.placement.attempt), *records.get(save.job, [])]
            record = views.attempt_record(save, earlier)
            if not record["log"]["complete"]:
                info = self.spool.log_info(save.job, save.placement.attempt, record["spool"])
                record["log"] = {"bytes": info.bytes, "sha256": info.sha256, "complete": False}
            small_log = self.spool.publish(record)
            if small_log is None:
                has_large = True
            else:
                self._unsynced_bytes += len(small_log)
            records.setdefault(save.job, []).append(record)
            run = run_of(save, earlier, recorded_s)
            rows.append(Published(save.job, save.placement.attempt, orjson.dumps(record), small_log, run))
        if has_large:
            self.spool.sync_names()
        self.store.prepare(rows, first_event)

    async def _sync_spool(self) -> None:
        """Make sure of the spool's files, many at once; until then the store has their content."""
        while True:
            try:
                async with asyncio.timeout(SYNC_S):
                    await self._sync_due.wait()
            except TimeoutError:
                pass
            self._sync_due.clear()
            written, self._unsynced_bytes = self.store.last_unsynced, 0
            if written == self._synced:
                continue
            try:
                await asyncio.to_thread(self.spool.sync)
            except OSError as error:
                log.error("the spool cannot be synced: %s", error)
                continue
            self._synced = written
            self._wake.set()

    async def _forget_synced(self) -> None:
        synced = self._synced
        try:
            await self.in_store(partial(self.store.synced, synced))
        except Unwritable as error:  # the disk is full: next time
            log.error("the store cannot be tidied up: %s", error)
            self._synced = self._tidied
            return
        self._tidied = synced

    def _drop(self, action: ev.Drop) -> None:
        intake = self.intakes.pop((action.job, action.attempt), None)
        if intake is not None:
            intake.close()
        self.spool.drop(action.job, action.attempt)

    # Those who watch.

    async def changed(self) -> None:
        """Wait until something was recorded."""
        await self._changed.wait()

    def _publish_event(self, event: dict[str, Any]) -> None:
        for queue in list(self.subscribers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self.subscribers.discard(queue)

    def notice(self, text: str, job: int = 0) -> None:
        """One sentence for the log and for those who watch; not kept."""
        log.warning("%s", text)
        event = {"id": None, "at": views.instant(time.time()), "kind": "notice", "job": job or None, "text": text}
        self._publish_event(event)

    # What the API asks for.

    def intake(self, job: int, attempt: int) -> Intake:
        """The incoming streams of an attempt that is out."""
        intake = self.intakes.get((job, attempt))
        if intake is None:
            intake = self.intakes[job, attempt] = Intake(self.spool, job, attempt, self.notice)
        return intake

    def view(self, job: int) -> views.View:
        """A job as the API shows it. Raises UserError for one that does not exist."""
        live = self.farm.jobs.get(job) or self.farm.leaving.get(job)
        if live is not None:
            return views.live_view(live, self.store.attempts_before(job, live.last_attempt + 1))
        view = self.store.finished_view(job)
        if view is None:
            raise NotFound(f"there is no job {job}", hint="biruda jobs lists them")
        return view

    async def wait_finished(self, job: int, wait_s: float) -> views.View:
        """A job's view when it has finished, or after wait_s."""
        try:
            async with asyncio.timeout(wait_s):
                while job in self.farm.jobs or job in self.farm.leaving or not await self._is_recorded(job):
                    await self.changed()
        except TimeoutError:
            pass
        return self.view(job)

    async def _is_recorded(self, job: int) -> bool:
        """A job that left the farm may still be on its way to the disk."""
        view = self.store.finished_view(job)
        if view is None and self.store.job_spec(job) is None:
            raise NotFound(f"there is no job {job}", hint="biruda jobs lists them")
        return view is not None

    async def cancel(self, job: int, reason: str) -> None:
        """Ask for a job's end. Raises UserError when it has ended or does not exist."""
        if job not in self.farm.jobs:
            view = self.view(job)
            raise UserError(f"job {job} has already ended: {view['outcome'] or 'its result is being recorded'}")
        await self.tell(ev.CancelRequested(job=job, outcome=Outcome.CANCELLED, reason=reason, at=now()))

    async def retry(self, job: int) -> None:
        """Run a finished job again as its next attempt. Raises UserError when it has not ended or does not exist."""
        await self.tell(self.retry_event(job))

    def retry_event(self, job: int) -> ev.RetryRequested:
        """What lets a finished job run again. Raises UserError when it has not ended or does not exist."""
        known = self.store.job_spec(job)
        if known is None:
            raise NotFound(f"there is no job {job}", hint="biruda jobs lists them")
        if job in self.farm.jobs or job in self.farm.leaving:
            raise UserError(f"job {job} has not ended yet", hint=f"biruda cancel {job} ends it")
        spec, last_attempt, submitted_s = known
        return ev.RetryRequested(job=job, spec=spec, last_attempt=last_attempt, submitted_s=submitted_s, at=now())
