"""Following one job to its end: its log, whatever becomes of attempts, connections and masters."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from biruda.cli.client import Client, Refused
from biruda.cli.http import Exchange
from biruda.cli.jobview import Job, job_of
from biruda.cli.sinks import Sink, Voice
from biruda.cli.text import duration, escape
from biruda.errors import NoMaster

T = TypeVar("T")

PATIENCE_S = 600.0
_NOT_YET = (404, 409, 425)
_SILENCE_S = 3600.0
_WHY_AFTER_S, _WHY_AT_MOST_S = 1.0, 5.0
_AGAIN_AFTER_S, _AGAIN_AT_MOST_S = 0.05, 1.0


class Patience:
    """For how long a master that went away is asked again. Shared by all followers: it is said once."""

    def __init__(self, voice: Voice, limit_s: float) -> None:
        self._voice = voice
        self._limit_s = limit_s
        self._lost_at_s: float | None = None  # on the monotonic clock
        self._lock = threading.Lock()

    def pause(self, error: NoMaster) -> None:
        """Wait a moment before the next try; raises the error when the time is over."""
        with self._lock:
            now_s = time.monotonic()
            if self._lost_at_s is None:
                self._lost_at_s = now_s
                if self._limit_s:
                    self._voice.say(f"biruda: {error}; trying again for {duration(self._limit_s)}")
            gone_s = now_s - self._lost_at_s
        if gone_s >= self._limit_s:
            raise error
        time.sleep(min(max(gone_s / 4, _AGAIN_AFTER_S), _AGAIN_AT_MOST_S))  # nothing tells when a master is back

    def answered(self) -> None:
        """The master is there."""
        if self._lost_at_s is None:
            return
        with self._lock:
            lost_at_s, self._lost_at_s = self._lost_at_s, None
        if lost_at_s is not None:
            gone_s = time.monotonic() - lost_at_s
            self._voice.say(f"biruda: the master answers again after {duration(gone_s)}; the log goes on where it was")


class Follower:
    """One job, from attempt to attempt to its end."""

    def __init__(
        self,
        client: Client,
        number: int,
        sink: Sink,
        voice: Voice,
        patience: Patience,
        *,
        attempt: int | None = None,
        offset: int = 0,
        name: str = "",
        one_attempt: bool = False,
    ) -> None:
        self.number = number
        self._client = client
        self._sink = sink
        self._voice = voice
        self._patience = patience
        self._attempt = attempt  # None: whichever the master gives first
        self._offset = offset  # of the next byte to print
        self._name = name  # what our sentences begin with when there are several of us
        self._one_attempt = one_attempt
        self._waits = True  # as far as we know
        self._said = ""

    def follow(self) -> Job:
        """Print the log of every attempt from here on; the finished job. Raises BirudaError when that cannot be."""
        while True:
            self._patiently(self._copy_log)
            job = self._look(wait_s=1)  # the end of a log comes a moment before the end of its job
            current = self._attempt or 0
            if job.finished and job.attempt <= current:
                return self._finish(job)
            if job.state == "waiting" or job.attempt > current:
                self._sink.end()
                if self._one_attempt:
                    return job
                self._turn_to_next(job)

    def _finish(self, job: Job) -> Job:
        self._patiently(lambda: self._copy_rest(job))
        self._sink.end()
        return job

    def _copy_log(self) -> None:
        """The attempt's log from our offset to its end; nothing when the job ends without this attempt."""
        while True:
            query = {"offset": self._offset, "follow": 1, "attempt": self._attempt}
            with self._client.open(f"jobs/{self.number}/log", query) as exchange:
                self._wait_for(exchange)
                if exchange.answer() not in _NOT_YET:
                    self._client.check(exchange, f"GET jobs/{self.number}/log")
                    self._patience.answered()
                    self._copy(exchange)
                    return
            job = self._look(wait_s=1)
            if job.finished or (self._attempt is not None and job.attempt > self._attempt):
                return
            self._explain()

    def _copy(self, exchange: Exchange) -> None:
        named = exchange.headers.get("biruda-attempt", "")
        if named.isascii() and named.isdigit():
            self._attempt = int(named)
        elif self._attempt is None:
            self._attempt = self._look(wait_s=0).attempt or 1
        exchange.set_timeout(None)  # a job may be silent for as long as it wants
        while True:
            self._wait_for(exchange)
            data = exchange.read_some()
            if not data:
                return
            self._waits = False
            self._sink.write(data)
            self._offset += len(data)

    def _copy_rest(self, job: Job) -> None:
        """What a log stream that ended early left out."""
        if job.log is None or self._offset >= job.log.bytes or job.attempt != self._attempt:
            return
        query = {"offset": self._offset, "attempt": self._attempt}
        with self._client.open(f"jobs/{self.number}/log", query) as exchange:
            exchange.answer()
            self._client.check(exchange, f"GET jobs/{self.number}/log")
            while data := exchange.read_some():
                self._sink.write(data)
                self._offset += len(data)

    def _wait_for(self, exchange: Exchange) -> None:
        """Return when there is something to read; while the job waits for its turn, say why."""
        quiet_s = _WHY_AFTER_S
        while not exchange.readable(quiet_s if self._waits else _SILENCE_S):
            self._explain()
            quiet_s = min(quiet_s * 1.5, _WHY_AT_MOST_S)

    def _explain(self) -> None:
        if not self._waits:
            return
        try:
            answer = self._client.get(f"jobs/{self.number}/why")
        except Refused:
            return  # that it cannot be explained is no reason to stop
        self._waits = answer.text("state", "waiting") == "waiting"
        sentence = answer.text("sentence")
        if self._waits and sentence and sentence != self._said:
            self._said = sentence
            self._voice.say(f"biruda: job {self.number} waits: {escape(sentence)}")

    def _turn_to_next(self, job: Job) -> None:
        ended = self._attempt or 0
        following = ended + 1 if ended else max(job.attempt, 1)
        if ended:
            last = next((earlier for earlier in job.earlier if earlier.attempt == ended), None)
            reason = escape((last.reason or last.outcome) if last else job.reason) or "it was lost"
            self._voice.say(
                f"biruda: {self._name}attempt {ended} ended: {reason}; running again as attempt {following}"
            )
        self._attempt, self._offset, self._waits, self._said = following, 0, not job.finished, ""

    def _look(self, *, wait_s: int) -> Job:
        return self._patiently(lambda: job_of(self._client.get(f"jobs/{self.number}", wait_s=wait_s)))

    def _patiently(self, act: Callable[[], T]) -> T:
        """The result of act, which is called again for as long as no master answers and there is patience."""
        while True:
            try:
                result = act()
            except NoMaster as error:
                self._patience.pause(error)
            else:
                self._patience.answered()
                return result
