"""What comes in of one attempt: its log and artifacts, byte for byte, until all of it is here."""

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from biruda.frames import DataHeader
from biruda.master.joblog.times import TimesWriter
from biruda.master.spool import Spool
from biruda.model import Artifact, AttemptResult, LogInfo

LOG_CHANNEL = 0
INLINE_BYTES = 64 * 1024
"""Up to so many bytes are written in the loop; more go to a thread."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

RETRY_S = 1.0
"""How long to wait for room on a full disk before the next try."""


_NOTHING = hashlib.sha256().hexdigest()


def is_bare(result: AttemptResult) -> bool:
    """Whether nothing comes of an attempt but its result: it printed nothing and left no artifact."""
    log = result.log
    return log.bytes == 0 and log.complete and log.sha256 == _NOTHING and not result.artifacts


@dataclass(slots=True)
class Stream:
    """One append-only file that is being received."""

    path: str
    fd: int = -1  # opened when it is first needed
    size: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def open(self) -> int:
        """The descriptor of the file, made where there is none."""
        if self.fd < 0:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self.fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def append(self, data: bytes | memoryview) -> None:
        """Write and hash; OSError when the disk is full, then as if nothing had come."""
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                written += os.pwrite(self.open(), view[written:], self.size + written)
        except OSError:
            if self.fd >= 0:
                os.ftruncate(self.fd, self.size)
            raise
        self.digest.update(view)
        self.size += len(view)

    def clear(self) -> None:
        os.ftruncate(self.open(), 0)
        self.size = 0
        self.digest = hashlib.sha256()


def open_stream(path: str) -> Stream:
    """A stream that goes on where an earlier process left its file."""
    stream = Stream(path)
    if not os.path.exists(path):
        return stream
    stream.open()
    while piece := os.pread(stream.fd, 1 << 20, stream.size):
        stream.digest.update(piece)
        stream.size += len(piece)
    return stream


class Intake:
    """The incoming streams of one attempt."""

    def __init__(self, spool: Spool, job: int, attempt: int, notice: Callable[[str, int], None]) -> None:
        self.job = job
        self.attempt = attempt
        self.changed = asyncio.Event()  # replaced at each change, so that many may wait
        self.result: AttemptResult | None = None
        self._notice = notice
        self._directory = spool.partial_artifacts(job, attempt)
        self.log = open_stream(os.fspath(spool.partial_log(job, attempt)))
        self._times = TimesWriter(os.fspath(spool.times(job, attempt)))
        self._artifacts: dict[int, Stream] = {}
        self._refused: set[int] = set()
        self._log_restarts = 0
        self._log_is_cut = False
        self._asked_at: dict[int, int] = {}  # channel -> size at which it was asked to go on
        self._paths: set[str] = set()
        self.closed = False

    async def take(self, header: DataHeader, payload: memoryview) -> tuple[int, int] | None:
        """Add a piece. What came before is dropped; at a gap gives the (channel, offset) to ask for, once."""
        if self.closed:
            return None
        stream = self.log if header.channel == LOG_CHANNEL else self._artifact_stream(header.channel)
        if stream is None:
            return None
        if not payload:
            self._note_end(header, stream)
            return None
        end = header.offset + len(payload)
        if header.offset > stream.size:
            if self._asked_at.get(header.channel) == stream.size:
                return None
            self._asked_at[header.channel] = stream.size
            return header.channel, stream.size
        if end > stream.size:
            if stream is self.log:
                self._times.note(stream.size, header.elapsed_ms)
            await self._append(stream, payload[stream.size - header.offset :])
        self._tell()
        return None

    def _note_end(self, header: DataHeader, stream: Stream) -> None:
        """The coordinator has no more of a stream. Where more was promised, what is here has to do."""
        if self.result is None or header.offset != stream.size:
            return
        if header.channel == LOG_CHANNEL:
            self._log_is_cut = stream.size < self.result.log.bytes
        else:
            artifact = self.result.artifacts[header.channel - 1]
            if stream.size < artifact.bytes:
                self._refused.add(header.channel)
                what = f"artifact {artifact.path[:200]!r} of job {self.job}"
                self._notice(f"{what} is left out: its host has {stream.size} of {artifact.bytes} bytes", self.job)
        self._tell()

    async def _append(self, stream: Stream, data: memoryview) -> None:
        told = False
        while not self.closed:
            try:
                if len(data) <= INLINE_BYTES:
                    stream.append(data)
                else:
                    await _to_the_end(stream.append, data)
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                if not told:
                    text = f"{stream.path}: {error.strerror}: the log of job {self.job} waits until there is room"
                    self._notice(text, self.job)
                    told = True
            await asyncio.sleep(RETRY_S)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def _artifact_stream(self, channel: int) -> Stream | None:
        if self.result is None or channel > len(self.result.artifacts):
            return None
        stream = self._artifacts.get(channel)
        if stream is None and channel not in self._refused:
            path = self.result.artifacts[channel - 1].path
            try:
                if not safe_path(path):
                    raise ValueError("the path leads out of its directory")
                full = os.fspath(self._directory / path)
                if full in self._paths:
                    raise ValueError("another one has its name")
                os.makedirs(os.path.dirname(full), exist_ok=True)
                stream = open_stream(full)
                stream.open()
                self._artifacts[channel] = stream
                self._paths.add(full)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in NO_ROOM:
                    raise
                self._refused.add(channel)
                self._notice(f"artifact {path[:200]!r} of job {self.job} is left out: {error}", self.job)
        return stream

    def expect(self, result: AttemptResult) -> None:
        """The attempt has ended with this result."""
        if self.result is None:
            self.result = result
            self._tell()

    def missing(self) -> list[tuple[int, int]]:
        """(channel, offset) of the artifacts that are not whole; one of equal content stands for all."""
        assert self.result is not None
        wanted: list[tuple[int, int]] = []
        seen: set[str] = set()
        for channel, artifact in enumerate(self.result.artifacts, start=1):
            if artifact.sha256 in seen:
                continue
            seen.add(artifact.sha256)
            stream = self._artifact_stream(channel)
            if stream is not None and channel not in self._refused and stream.size < artifact.bytes:
                wanted.append((channel, stream.size))
        return wanted

    @property
    def log_is_here(self) -> bool:
        return self.result is not None and (self._log_is_cut or self.log.size >= self.result.log.bytes)

    def log_differs(self) -> bool:
        """Whether a log that is here is not what was printed; then it is cleared to be asked for once more."""
        assert self.result is not None
        told = self.result.log
        right = self.log.size == told.bytes and self.log.digest.hexdigest() == told.sha256
        if right or self._log_is_cut or self._log_restarts or not told.complete:
            return False
        if told.bytes <= 0:  # of nothing, nothing would come again
            return False
        self._log_restarts += 1
        self.log.clear()
        self._times.clear()
        self._asked_at.clear()
        return True

    def close(self) -> AttemptResult | None:
        """Close the files, once; the result with what really is here."""
        if self.closed:
            return self.result
        self.closed = True
        result = self.result
        if result is not None:
            sha256 = self.log.digest.hexdigest()
            complete = result.log.complete and (self.log.size, sha256) == (result.log.bytes, result.log.sha256)
            log = LogInfo(bytes=self.log.size, sha256=sha256, complete=complete)
            result = self.result = replace(result, log=log, artifacts=self._linked_artifacts(result.artifacts))
        for stream in (self.log, *self._artifacts.values()):
            stream.close()
        self._times.close()
        if self.log.size == 0:  # it may have been begun, and come to nothing
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.log.path)
        self._tell()
        return result

    def _linked_artifacts(self, artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
        """The artifacts that are whole and right; those of equal content become links to the first."""
        first: dict[str, str] = {}
        kept: list[Artifact] = []
        for channel, artifact in enumerate(artifacts, start=1):
            path = os.fspath(self._directory / artifact.path)
            if artifact.sha256 in first:
                if self._link(first[artifact.sha256], path, artifact.path):
                    kept.append(artifact)
                continue
            stream = self._artifacts.get(channel)
            if stream is not None and stream.digest.hexdigest() == artifact.sha256:
                first[artifact.sha256] = path
                kept.append(artifact)
            elif channel not in self._refused:
                size = stream.size if stream is not None else 0
                why = "came damaged" if size >= artifact.bytes else f"came with {size} of {artifact.bytes} bytes"
                self._notice(f"artifact {artifact.path[:200]!r} of job {self.job} {why} and is left out", self.job)
        return tuple(kept)

    def _link(self, source: str, path: str, shown: str) -> bool:
        try:
            if not safe_path(shown):
                raise ValueError("the path leads out of its directory")
            if path in self._paths:
                raise ValueError("another one has its name")
            self._paths.add(path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of an earlier process that did not live to record it
            os.link(source, path)
        except (OSError, ValueError) as error:
            self._notice(f"artifact {shown[:200]!r} of job {self.job} is left out: {error}", self.job)
            return False
        return True


async def _to_the_end(append: Callable[[memoryview], None], data: memoryview) -> None:
    """Append in a thread. It has ended on return and on cancellation too: the same bytes may come again at once."""
    future = asyncio.get_running_loop().run_in_executor(None, append, data)
    try:
        await asyncio.shield(future)
    finally:
        if not future.done():
            await asyncio.wait([future])


def safe_path(path: str) -> bool:
    """Whether a path that a worker names stays below the directory it is put in."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith("/")
        and ".." not in parts
        and "\0" not in path
        and len(path.encode("utf-8", "surrogatepass")) < 1024
        and all(len(part.encode("utf-8", "surrogatepass")) <= 255 for part in parts)
    )
