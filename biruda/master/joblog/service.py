"""The logs of one master, ready to be read: open ones with their indexes, which are built beside the loop."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from biruda.master import events as ev
from biruda.master.joblog.errors import error_offsets
from biruda.master.joblog.index import LineIndex, load
from biruda.master.joblog.lines import Line, read_lines
from biruda.master.joblog.times import Times, read_times
from biruda.master.logs import LogReader, open_log
from biruda.master.spool import Spool

if TYPE_CHECKING:
    from biruda.master.service import Master

log = logging.getLogger("biruda.master")

SLICE_BYTES = 8 << 20
"""Looked at by a thread in one go, before who waits for the first lines is told."""

KEPT_BYTES = 1 << 20
"""A log of so many bytes keeps its index in a file."""

AHEAD_BYTES = 16 << 20
"""A log of so many bytes gets its index when its attempt has ended, and not only when somebody looks at it."""

MAX_INDEXES = 64
PATIENCE_S = 0.15
"""How long an answer waits for an index that is being built; then it tells how far it is."""

ERROR_ENDS_BYTES = 2 << 20
"""Of a longer step so many bytes at its beginning and at its end are looked at for errors."""

MAX_ERRORS = 200


class Indexing:
    """The index of one log, and the task that builds it if there is one."""

    def __init__(self, index: LineIndex) -> None:
        self.index = index
        self.task: asyncio.Task[None] | None = None
        self.progress = asyncio.Event()  # replaced at each step, so that many may wait

    def tell(self) -> None:
        self.progress.set()
        self.progress = asyncio.Event()


class Logs:
    """Indexes of the logs that were looked at of late, and those of large ones as they end."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._indexes: OrderedDict[tuple[int, int], Indexing] = OrderedDict()
        self._tasks: asyncio.TaskGroup | None = None
        self.searches = asyncio.Semaphore(2)
        self._errors: OrderedDict[tuple[int, int, int, int], tuple[list[int], bool]] = OrderedDict()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Logs may be opened; on exit all that was begun has ended."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._master.on_recorded = self._recorded
            try:
                yield
            finally:
                self._master.on_recorded = None
                self._tasks = None
                for item in self._indexes.values():
                    if item.task is not None:
                        item.task.cancel()

    @asynccontextmanager
    async def open(self, job: int, attempt: int | None = None) -> AsyncIterator["OpenLog"]:
        """The log of an attempt, of the newest if None. Raises UserError when there is none."""
        reader = await open_log(self._master, job, attempt, wait=False)
        try:
            yield OpenLog(self, self._master.spool, job, reader)
        finally:
            reader.close()

    def _recorded(self, save: ev.SaveAttempt) -> None:
        if save.result.log.bytes >= AHEAD_BYTES and self._tasks is not None:
            self._tasks.create_task(
                self._index_ahead(save.job, save.placement.attempt), name=f"index of job {save.job}"
            )

    async def _index_ahead(self, job: int, attempt: int) -> None:
        try:
            async with self.open(job, attempt) as opened:
                await opened.indexed(lambda _: False, however_long=True)
        except Exception as error:  # the border of one log: it is indexed when somebody looks at it
            log.warning("job=%s its log could not be indexed: %s", job, error)

    async def indexing(self, job: int, reader: LogReader) -> Indexing:
        """The index of a log, as far as it is built."""
        key, size = (job, reader.attempt), reader.size
        item = self._indexes.get(key)
        if item is not None and item.index.bytes <= size:  # a log that came damaged comes again from its beginning
            self._indexes.move_to_end(key)
            return item
        kept = None
        if not reader.is_growing and size >= KEPT_BYTES:
            kept = await asyncio.to_thread(load, self._master.spool.index(job, reader.attempt), reader.fd)
        item = self._indexes.setdefault(key, Indexing(kept or LineIndex()))
        if item.index.bytes > size:
            item = self._indexes[key] = Indexing(LineIndex())
        while len(self._indexes) > MAX_INDEXES:
            _, old = self._indexes.popitem(last=False)
            if old.task is not None:
                old.task.cancel()
        return item

    async def error_offsets(self, job: int, reader: LogReader, start: int, end: int) -> tuple[list[int], bool]:
        """As OpenLog's. What was found in a log that does not change any more is kept for the next who asks."""
        key = (job, reader.attempt, start, end)
        if key in self._errors:
            self._errors.move_to_end(key)
            return self._errors[key]
        complete = end - start <= 2 * ERROR_ENDS_BYTES
        ends = [(start, end)] if complete else [(start, start + ERROR_ENDS_BYTES), (end - ERROR_ENDS_BYTES, end)]
        found: list[int] = []
        for first, last in ends:
            found = found or await asyncio.to_thread(error_offsets, reader.fd, first, last, MAX_ERRORS)
        if not reader.is_growing:
            self._errors[key] = found, complete
            while len(self._errors) > MAX_INDEXES:
                self._errors.popitem(last=False)
        return found, complete

    def build(self, item: Indexing, opened: "OpenLog") -> None:
        """Go on building an index in the background, unless that is being done."""
        if item.task is None and self._tasks is not None:
            reader = opened.reader.another()
            item.task = self._tasks.create_task(
                self._build(item, opened.job, reader), name=f"index of job {opened.job}"
            )

    async def _build(self, item: Indexing, job: int, reader: LogReader) -> None:
        index = item.index
        try:
            while index.bytes < reader.size:
                before = index.bytes
                await asyncio.to_thread(index.extend, reader.fd, reader.size, SLICE_BYTES)
                item.tell()
                if index.bytes == before:  # it was cut off under our hands
                    break
            if not reader.is_growing and index.bytes == reader.size >= KEPT_BYTES:
                await asyncio.to_thread(_keep, index, reader.fd, self._master.spool.index(job, reader.attempt))
        except OSError as error:
            log.warning("job=%s its log cannot be read: %s", job, error)
        finally:
            reader.close()
            item.task = None
            item.tell()


def _keep(index: LineIndex, fd: int, path: Path) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        index.save(path, fd)
    except OSError as error:
        log.warning("%s: the index of a log is not kept: %s", path, error)


class OpenLog:
    """A log that is open: its lines, their times, and where it tells of errors."""

    def __init__(self, logs: Logs, spool: Spool, job: int, reader: LogReader) -> None:
        self._logs = logs
        self._spool = spool
        self.job = job
        self.reader = reader

    @property
    def attempt(self) -> int:
        return self.reader.attempt

    @property
    def size(self) -> int:
        return self.reader.size

    @property
    def index_path(self) -> Path:
        """Where its index is kept, if it is."""
        return self._spool.index(self.job, self.attempt)

    @property
    def is_growing(self) -> bool:
        return self.reader.is_growing

    async def indexed(self, is_enough: Callable[[LineIndex], bool], *, however_long: bool = False) -> LineIndex:
        """The index when it is enough, or all there is, or as far as it came in PATIENCE_S."""
        size = self.size
        item = await self._logs.indexing(self.job, self.reader)
        index = item.index
        if index.bytes < size:
            try:
                async with asyncio.timeout(None if however_long else PATIENCE_S):
                    while index.bytes < size and not is_enough(index):
                        self._logs.build(item, self)
                        if item.task is None:
                            break
                        await item.progress.wait()
            except TimeoutError:
                pass
        return index

    async def lines(self, index: LineIndex, first: int, count: int) -> list[Line]:
        """Up to count lines from the first, counted from 0."""
        return await asyncio.to_thread(read_lines, self.reader.fd, index, first, count)

    async def line_at(self, index: LineIndex, offset: int) -> int:
        """The line, counted from 0, that the byte at offset is in."""
        return await asyncio.to_thread(index.line_at, self.reader.fd, offset)

    async def times(self) -> Times:
        """When its lines came, as far as that was kept."""
        return await asyncio.to_thread(read_times, self._spool.times(self.job, self.attempt))

    async def error_offsets(self, start: int, end: int) -> tuple[list[int], bool]:
        """Offsets of lines from start to end that look like errors, and whether all between was looked at."""
        return await self._logs.error_offsets(self.job, self.reader, start, end)
