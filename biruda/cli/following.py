"""Following jobs side by side: their logs, an end by Ctrl-C, a line for each result, and what to exit with."""

import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from biruda.cli.client import Client, as_json
from biruda.cli.follower import PATIENCE_S, Follower, Patience
from biruda.cli.jobview import FARM_FAILED, WAS_CANCELLED, Job, log_words, verdict
from biruda.cli.screen import LABEL_COLOURS, Screen, fit, out, tell, width
from biruda.cli.sinks import Output, Plain, Prefixed, Sink, Voice, standard_output
from biruda.cli.spoolpath import Spool
from biruda.cli.text import escape
from biruda.errors import BirudaError

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_SIGNAL_LATEST_S = 1.0  # a signal that comes just before the interpreter sleeps is noticed when it wakes


def follow_all(
    client: Client,
    begin: Callable[[], Sequence[tuple[int, str]]],
    *,
    first_attempt: int = 1,
    patience_s: float = PATIENCE_S,
    json_wanted: bool = False,
) -> int:
    """Begin jobs, follow them to their end; the status to exit with. With JSON wanted, the logs go to stderr.

    `begin` gives the numbers and labels of the jobs. An interrupt waits from there until they can be cancelled.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        jobs = begin()
        output = Output(2) if json_wanted else standard_output()
        voice = Voice(output)
        patience = Patience(voice, patience_s)
        followers = []
        for (number, label), sink in zip(jobs, _sinks(output, jobs), strict=True):
            voice.say(f"biruda: job {number}{f' on {label}' if label else ''}")
            name = f"job {number}: " if len(jobs) > 1 else ""
            followers.append(Follower(client, number, sink, voice, patience, attempt=first_attempt, name=name))
        together = _Together(client, followers, voice)
        together.start()
        status = together.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    if json_wanted:
        print(as_json([together.jobs[number].raw for number, _ in jobs if number in together.jobs]))
    return status


def _sinks(output: Output, jobs: Sequence[tuple[int, str]]) -> list[Sink]:
    if len(jobs) == 1:
        return [Plain(output.write)]
    screen, labels = out(), [label or f"job {number}" for number, label in jobs]
    wide = max(map(width, labels))
    sinks: list[Sink] = []
    for index, label in enumerate(labels):
        text = screen.paint(f"[{fit(label, wide)}]", LABEL_COLOURS[index % len(LABEL_COLOURS)])
        sinks.append(Prefixed(f"{text} ".encode(errors="backslashreplace"), output.write))
    return sinks


class _Together:
    """Followers, each in a thread, and the person who may press Ctrl-C."""

    def __init__(self, client: Client, followers: Sequence[Follower], voice: Voice) -> None:
        self.jobs: dict[int, Job] = {}
        self._client = client
        self._followers = followers
        self._voice = voice
        self._results: dict[int, Job | BaseException] = {}
        self._ended: SimpleQueue[int] = SimpleQueue()  # wakes us when there is another result
        self._statuses: dict[int, int] = {}
        self._spool = Spool(client)

    def start(self) -> None:
        """Let each run; as daemons, because a second Ctrl-C must not wait for them."""
        for follower in self._followers:
            threading.Thread(target=self._run, args=(follower,), name=f"job {follower.number}", daemon=True).start()

    def wait(self) -> int:
        """Until all have ended, or a second Ctrl-C; the worst status, which is the first that is not 0."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: end the jobs, then ourselves
        interrupted = False
        try:
            while len(self._statuses) < len(self._followers):
                try:
                    self._take_all()
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    self._cancel()
        except KeyboardInterrupt:
            self._leave()
            return WAS_CANCELLED
        finally:
            signal.signal(signal.SIGTERM, before)
        if interrupted:
            return WAS_CANCELLED
        return next((self._statuses[f.number] for f in self._followers if self._statuses[f.number]), 0)

    def _take_all(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        while len(self._statuses) < len(self._followers):
            with suppress(Empty):
                self._ended.get(timeout=_SIGNAL_LATEST_S)
            for number in self._unfinished():  # not what get() gave: an interrupt could have lost that
                if number in self._results:
                    self._take(number, self._results[number])

    def _run(self, follower: Follower) -> None:
        try:
            self._results[follower.number] = follower.follow()
        except BaseException as error:  # the main thread decides; nothing may be lost in this one
            self._results[follower.number] = error
        self._ended.put(follower.number)

    def _take(self, number: int, result: Job | BaseException) -> None:
        if isinstance(result, Job):
            self.jobs[number] = result
            self._statuses[number] = result.status
            self._voice.say(summary(self._voice.screen, result, self._spool.path_of(result)))
        elif isinstance(result, BirudaError):
            self._statuses[number] = FARM_FAILED
            tell(f"job {number}: {result}", result.hint or f"biruda show {number}")
        else:
            self._voice.silence()
            raise result

    def _unfinished(self) -> list[int]:
        return [follower.number for follower in self._followers if follower.number not in self._statuses]

    def _cancel(self) -> None:
        numbers = self._unfinished()
        self._voice.say(f"biruda: cancelling {_named(numbers)}; press Ctrl-C again to leave at once")
        for number in numbers:
            try:
                self._client.post(f"jobs/{number}/cancel", {"reason": "interrupted at the command line"})
            except BirudaError as error:
                self._voice.say(f"biruda: job {number} cannot be cancelled: {error}")

    def _leave(self) -> None:
        numbers = self._unfinished()
        self._voice.say(f"biruda: left before the end of {_named(numbers)}: see biruda show {numbers[0]}")
        self._voice.silence()


def summary(screen: Screen, job: Job, spool_path: str = "") -> str:
    """`● 12 passed on alder amd64 debian12 in 41.2s · log complete, 1.9 MiB, sha256 5f3a… · spool/….log`."""
    passed = job.outcome == "passed"
    parts = [f"{screen.sign(job.sign)} {job.number} {verdict(job, place=passed)}"]
    if job.place and not passed:
        parts.append(job.place)
    if job.log:
        parts.append(log_words(job.log))
    if spool_path:
        parts.append(escape(spool_path))
    return " · ".join(parts)


def _named(numbers: Sequence[int]) -> str:
    return f"job{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
