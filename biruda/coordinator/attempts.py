"""One attempt on this host, from its assignment until the master has recorded it, and what it still owes the master."""

import os
from collections import deque
from dataclasses import dataclass, field

from biruda.errors import PeerError
from biruda.messages import Assignment, AttemptEnded, AttemptReport
from biruda.model import AttemptResult, Limits, LogInfo, Outcome, StepResult


@dataclass(slots=True, eq=False)
class Attempt:
    """What the coordinator knows of one attempt. Its log is in the file log_path, whoever writes it."""

    job: int
    attempt: int
    environment: str
    lease_s: float
    assignment: Assignment | None = None  # None when it was adopted: the worker has it
    worker: str = ""  # its worker's id, "" when it has none (yet, or any more)
    log_path: str = ""  # "" before it has a worker
    log_fd: int = -1  # opened when it is first read
    log_bytes: int = 0  # in the file
    write_fd: int = -1  # open where the coordinator writes the log
    stored_bytes: int = 0  # that it has written
    sent_bytes: int | None = 0  # given to the master; None: it has to say first what it has
    elapsed_ms: int = 0
    steps: list[StepResult] = field(default_factory=list)
    started_s: float = 0.0
    source: str | None = None  # the digest of its source pack
    limits: Limits = field(default_factory=Limits)
    cancelled: tuple[Outcome, str] | None = None
    result: AttemptResult | None = None  # once it has ended and is in the outbox
    collecting: dict[int, int] = field(default_factory=dict)  # artifact channel -> descriptor being filled
    collected: AttemptResult | None = None  # the worker's result while artifacts still come
    owed: deque[tuple[int, int]] = field(default_factory=deque)  # (artifact channel, offset) the master asked for

    @property
    def key(self) -> tuple[int, int]:
        return self.job, self.attempt

    @property
    def log_owed_bytes(self) -> int:
        """Log bytes that can be sent now."""
        return self.log_bytes - self.sent_bytes if self.sent_bytes is not None else 0

    def report(self) -> AttemptReport:
        started = self.started_s > 0
        return AttemptReport(
            job=self.job, attempt=self.attempt, started=started, ended=self.result is not None, source=self.source
        )

    def ended(self) -> AttemptEnded:
        assert self.result is not None
        return AttemptEnded(job=self.job, attempt=self.attempt, result=self.result)

    def log_size(self) -> int:
        """Bytes in the log's file now."""
        try:
            return os.stat(self.log_path).st_size if self.log_path else 0
        except FileNotFoundError:
            return 0

    def store_log(self, offset: int, payload: memoryview) -> None:
        """Write bytes of a worker that cannot do so itself; what is there already is not written again.

        Raises OSError when there is no room, PeerError when bytes before them are missing.
        """
        if self.write_fd < 0:
            self.write_fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.stored_bytes = os.fstat(self.write_fd).st_size
        if offset > self.stored_bytes:
            raise PeerError(f"log bytes from {offset} came, but only {self.stored_bytes} before them")
        fresh = payload[self.stored_bytes - offset :]
        while fresh:
            written = os.pwrite(self.write_fd, fresh, self.stored_bytes)
            self.stored_bytes += written
            fresh = fresh[written:]

    def end_storing(self) -> None:
        """Nothing more comes for store_log()."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def read_log(self, count: int, offset: int) -> bytes:
        """Bytes of the log; b"" where there are none (yet)."""
        if self.log_fd < 0:
            try:
                self.log_fd = os.open(self.log_path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return b""
        return os.pread(self.log_fd, count, offset)

    def close_log(self) -> None:
        if self.log_fd >= 0:
            os.close(self.log_fd)
            self.log_fd = -1

    def close(self) -> None:
        self.close_log()
        self.end_storing()
        for fd in self.collecting.values():
            os.close(fd)
        self.collecting.clear()

    def broken(self, outcome: Outcome, reason: str, log: LogInfo, finished_s: float) -> AttemptResult:
        """The result of an attempt whose worker cannot give one."""
        return AttemptResult(
            outcome=outcome,
            exit_status=None,
            steps=tuple(self.steps),
            log=log,
            reason=reason,
            started_s=self.started_s or finished_s,
            finished_s=finished_s,
        )


EMPTY_LOG = LogInfo(bytes=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", complete=True)
"""The log of an attempt that never printed anything."""
