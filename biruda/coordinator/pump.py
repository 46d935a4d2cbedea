"""What attempts owe the master, sent as fast as its credit allows: log bytes in turn, artifacts when asked for."""

import asyncio
import os
from collections.abc import Callable, Iterable

from biruda.coordinator.attempts import Attempt
from biruda.coordinator.outbox import Outbox
from biruda.frames import DATA_BYTES, DataFrame, DataHeader
from biruda.link import Link


class Pump:
    """Relays from files to the link. Nothing is queued in memory: what is not sent stays in its file."""

    def __init__(self, link: Link, outbox: Outbox, attempts: Callable[[], Iterable[Attempt]]) -> None:
        self._link = link
        self._outbox = outbox
        self._attempts = attempts
        self._wake = asyncio.Event()

    def relay(self, attempt: Attempt, item: DataFrame) -> None:
        """Log bytes that just came and are in the attempt's file: send them on at once if they are next."""
        header, payload = item.header, item.payload
        attempt.log_bytes = max(attempt.log_bytes, header.offset + len(payload))
        attempt.elapsed_ms = header.elapsed_ms
        if attempt.sent_bytes == header.offset and self._link.credit_bytes > 0:
            self._link.post_data(header, payload)
            attempt.sent_bytes += len(payload)
        else:
            self._wake.set()

    def wake(self) -> None:
        """Something is owed that was not before, or may be sent now."""
        self._wake.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._send_round():
                if self._link.credit_bytes <= 0:
                    await self._link.credit()
                else:
                    await asyncio.sleep(0)

    def _send_round(self) -> bool:
        """One piece of everything that is owed; whether something still is."""
        more = False
        for attempt in list(self._attempts()):
            if attempt.log_owed_bytes > 0:
                more = self._send_log(attempt) or more
            if attempt.owed:
                more = self._send_artifact(attempt) or more
        return more

    def _send_log(self, attempt: Attempt) -> bool:
        assert attempt.sent_bytes is not None
        if self._link.credit_bytes <= 0:
            return True
        piece = attempt.read_log(min(DATA_BYTES, attempt.log_owed_bytes), attempt.sent_bytes)
        header = DataHeader(attempt.job, attempt.attempt, 0, attempt.sent_bytes, attempt.elapsed_ms)
        if not piece:
            if attempt.result is not None:  # the file is gone or was cut: without this mark the master would wait on
                self._link.post_data(header, b"")
                attempt.sent_bytes = attempt.log_bytes
            return False
        self._link.post_data(header, piece)
        attempt.sent_bytes += len(piece)
        return attempt.log_owed_bytes > 0

    def _send_artifact(self, attempt: Attempt) -> bool:
        if self._link.credit_bytes <= 0:
            return True
        channel, offset = attempt.owed[0]
        try:
            fd = os.open(self._outbox.artifact(attempt.job, attempt.attempt, channel), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._end_artifact(attempt)
            return bool(attempt.owed)
        try:
            piece = os.pread(fd, DATA_BYTES, offset)
        finally:
            os.close(fd)
        if piece:
            self._link.post_data(DataHeader(attempt.job, attempt.attempt, channel, offset), piece)
            attempt.owed[0] = (channel, offset + len(piece))
        else:
            self._end_artifact(attempt)
        return bool(attempt.owed)

    def _end_artifact(self, attempt: Attempt) -> None:
        """There is no more of it; a master that wants more shall not wait."""
        channel, offset = attempt.owed.popleft()
        self._link.post_data(DataHeader(attempt.job, attempt.attempt, channel, offset), b"")
