"""Reading logs, and other files of the spool: a range of a finished one, or one that grows, followed to its end."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from biruda.errors import NotFound, UserError
from biruda.master.state import Placed

if TYPE_CHECKING:
    from biruda.master.intake import Intake
    from biruda.master.service import Master

PIECE_BYTES = 256 * 1024


class FileReader:
    """A file of the spool, open; close() it. intake: from where a log still grows."""

    def __init__(self, fd: int, intake: "Intake | None" = None) -> None:
        self._fd = fd
        self._intake = intake

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def is_growing(self) -> bool:
        return self._intake is not None and not self._intake.closed

    def close(self) -> None:
        os.close(self._fd)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def head(self, size: int) -> bytes:
        """The first bytes, at most so many."""
        return os.pread(self._fd, size, 0)

    async def pieces(self, offset: int, limit: int | None, *, follow: bool) -> AsyncIterator[bytes]:
        """The bytes from offset, at most limit; with follow until the attempt has ended and all of them were given."""
        while limit is None or limit > 0:
            changed = self._intake.changed if self._intake is not None else None
            ended = self._intake is None or self._intake.closed
            want = PIECE_BYTES if limit is None else min(PIECE_BYTES, limit)
            data = os.pread(self._fd, want, offset)
            if data:
                yield data
                offset += len(data)
                limit = None if limit is None else limit - len(data)
            elif not follow or ended or changed is None:
                return
            else:
                await changed.wait()


class LogReader(FileReader):
    """One attempt's log."""

    def __init__(self, fd: int, attempt: int, intake: "Intake | None" = None) -> None:
        super().__init__(fd, intake)
        self.attempt = attempt

    def another(self) -> "LogReader":
        """The same log, open once more."""
        return LogReader(os.dup(self._fd), self.attempt, self._intake)


async def open_log(master: "Master", job: int, attempt: int | None, *, wait: bool) -> LogReader:
    """The log of an attempt, of the newest if None; with wait, of the first that a waiting job will have.

    Raises UserError when there is none.
    """
    while True:
        live = master.farm.jobs.get(job)
        if live is not None and isinstance(live.state, Placed) and attempt in (None, live.last_attempt):
            intake = master.intake(job, live.last_attempt)
            if not intake.closed:
                return LogReader(os.dup(intake.log.open()), live.last_attempt, intake)
            await master.changed()  # it is being recorded
            continue
        if job in master.farm.leaving:
            await master.changed()  # it has ended and is being recorded
            continue
        view = master.view(job)
        number = attempt or (live.last_attempt if live is not None else view["attempt"])
        if number and not (live is not None and wait and attempt is None):
            record = master.store.attempt(job, number)
            if record is not None:
                return await _recorded_log(master, job, record)
        if not wait or live is None:
            what = f"attempt {attempt}" if attempt else "attempt with a log"
            raise NotFound(f"job {job} has no {what}", hint=f"biruda show {job} lists its attempts")
        await master.changed()


async def _recorded_log(master: "Master", job: int, record: dict[str, object]) -> LogReader:
    attempt = record["attempt"]
    assert isinstance(attempt, int)
    return LogReader(await _open(master.spool.log(str(record["spool"])), f"the log of job {job}"), attempt)


async def open_file(path: Path, what: str) -> FileReader:
    """A file of the spool. Raises UserError when it cannot be read."""
    return FileReader(await _open(path, what))


async def _open(path: Path, what: str) -> int:
    try:
        return await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {path}: {error.strerror}") from error
