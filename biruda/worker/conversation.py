"""What is said on one connection, from hello to its end. Nothing of it carries over to the next one."""

import math
import os
import socket
import time

from biruda.frames import WINDOW_BYTES
from biruda.messages import PROTOCOL, AttemptEnded, StepEnded, StepStarted, WorkerHello
from biruda.model import Facts
from biruda.worker.attempt import Attempt
from biruda.worker.link import Link, Stream
from biruda.worker.opening import Opening
from biruda.worker.streams import LOG_CHANNEL, Streams

SOON_S = 0.02
"""So long a step's begin and end wait for company: most of what a short attempt says is in its result again."""

RESULTS_S = 0.004
"""So long a result waits for the next one's where another attempt follows at once."""


class Conversation:
    """One connection, who is on it, and how much of the attempt it has carried."""

    def __init__(self, connection: socket.socket | Stream, opening: Opening) -> None:
        self._has_file = bool(opening.room_path) or opening.room_fd >= 0
        has_room = self._has_file or opening.memory_room_bytes >= 2 * WINDOW_BYTES
        self.link = Link(connection, WINDOW_BYTES if has_room else WINDOW_BYTES // 2)
        self.attached = False  # a coordinator has said who it is
        self._opening = opening
        self._streams: Streams | None = None
        self.told_end = False  # the attempt's result needs nothing more from here
        self._waiting: list[StepStarted | StepEnded] = []
        self._results: list[AttemptEnded] = []
        self._steps_at_s = math.inf  # when what waits is to be told, on the monotonic clock
        self._results_at_s = math.inf

    def greet(
        self,
        attempt: Attempt | None,
        facts: Facts | None,
        *,
        others: tuple[tuple[int, int], ...] = (),
        arch: str = "",
        boot_id: str = "",
    ) -> None:
        """Say who is here and what it holds."""
        job, number = attempt.key if attempt is not None else (0, 0)
        self.link.tell(
            WorkerHello(
                protocol=PROTOCOL,
                worker=self._opening.worker,
                nonce=self._opening.nonce,
                pid=os.getpid(),
                facts=facts,
                job=job,
                attempt=number,
                log_start=attempt.log.room.start if attempt is not None else 0,
                log_end=attempt.log.room.end if attempt is not None else 0,
                steps=tuple(result for _, result in sorted(attempt.results.items())) if attempt is not None else (),
                ended=attempt is not None and attempt.ended is not None,
                awaits_source=attempt is not None and attempt.awaits_source,
                arch=arch,
                boot_id=boot_id,
                others=others,
            )
        )

    @property
    def tells_at_s(self) -> float:
        """When tell_waiting() has something to tell."""
        return min(self._steps_at_s, self._results_at_s)

    def tell_soon(self, message: StepStarted | StepEnded) -> None:
        """Tell it within SOON_S, or never if the attempt's result, which has it too, comes before."""
        if not self._waiting:
            self._steps_at_s = time.monotonic() + SOON_S
        self._waiting.append(message)

    def tell_waiting(self, now_s: float) -> None:
        """Tell what has waited long enough."""
        if now_s >= self._results_at_s:
            self._tell_results()
        if now_s >= self._steps_at_s:
            for message in self._waiting:
                self.link.tell(message)
            self._drop_waiting()

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._steps_at_s = math.inf

    def _tell_result(self, message: AttemptEnded, *, at_once: bool) -> None:
        if not self._results:
            self._results_at_s = time.monotonic() + RESULTS_S
        self._results.append(message)
        if at_once:
            self._tell_results()

    def _tell_results(self) -> None:
        for message in self._results:
            self.link.tell(message)
        self._results.clear()
        self._results_at_s = math.inf

    def begin(self, attempt: Attempt) -> None:
        """Carry an attempt that was assigned here: its log is wanted from the first byte."""
        self.link.forget_log()
        self.told_end = False
        self._streams = self._streams_of(attempt)
        self._streams.want(LOG_CHANNEL, 0)

    def resume(self, attempt: Attempt) -> None:
        """Carry an attempt that was assigned on an earlier connection; its streams wait until they are asked for."""
        self._streams = self._streams_of(attempt)
        if attempt.ended is not None:
            self._streams.ended(attempt.ended.artifacts)
            return
        job, number = attempt.key
        for index, result in sorted(attempt.results.items()):
            self.link.tell(StepEnded(job=job, attempt=number, index=index, result=result))
        if attempt.running is not None:
            running = attempt.running
            self.link.tell(StepStarted(job=job, attempt=number, index=running.index, at_s=running.began_at_s))

    def _streams_of(self, attempt: Attempt) -> Streams:
        job, number = attempt.key
        return Streams(self.link, job, number, attempt.log, self._opening.work, is_seen=self._has_file)

    def want(self, streams: tuple[tuple[int, int], ...]) -> None:
        """The peer asks for channels from offsets."""
        for channel, offset in streams:
            if self._streams is not None and channel >= 0 and offset >= 0:
                self._streams.want(channel, offset)

    def offer(self, offset: int, piece: memoryview) -> None:
        """Bytes just read from the job: may leave before anything else is done with them."""
        if self._streams is not None:
            self._streams.offer(offset, piece)

    def send(self, attempt: Attempt, *, at_once: bool = True) -> None:
        """What may go now of the log, the result and the artifacts. Raises OSError: the room cannot be read back.

        at_once: the result may not wait for the next one's.
        """
        if self._streams is None:
            return
        attempt.log.room.release(self.link.log_acknowledged)
        self._streams.pump()
        # After the log, so that who has this message has the log too.
        if attempt.ended is not None and not self.told_end and self._streams.log_is_sent:
            self.told_end = True
            self._drop_waiting()
            self._streams.ended(attempt.ended.artifacts)
            job, number = attempt.key
            self._tell_result(AttemptEnded(job=job, attempt=number, result=attempt.ended), at_once=at_once)

    def forget(self) -> None:
        """The attempt is over and gone."""
        if self._streams is not None:
            self._streams.close()
            self._streams = None

    def close(self) -> None:
        """End the connection; may be called again."""
        self.forget()
        self.link.close()
