"""What of an attempt goes over one connection: its log from a cursor on, then the artifacts that were asked for."""

import os

from biruda.frames import DATA_BYTES, DataHeader
from biruda.messages import Notice
from biruda.model import Artifact
from biruda.worker.artifacts import open_inside
from biruda.worker.link import Link
from biruda.worker.log import Log

LOG_CHANNEL = 0


class Streams:
    """The cursors of one attempt on one link. Until the log is asked for (want), none of it is sent.

    is_seen: the peer reads the log's room itself, so that it need not ask for what it has.
    """

    def __init__(self, link: Link, job: int, attempt: int, log: Log, work: str, *, is_seen: bool = True) -> None:
        self._link = link
        self._job = job
        self._attempt = attempt
        self._log = log
        self._work = work
        self._artifacts: tuple[Artifact, ...] = ()
        self._cursor: int | None = None
        self._is_due = not is_seen  # the log has to be asked for before the result may be told
        self._wanted: dict[int, int] = {}  # channel -> offset, in the order asked
        self._open: tuple[int, int] | None = None  # channel, descriptor of the artifact under way

    @property
    def log_is_sent(self) -> bool:
        """True when the peer was sent the log up to now, or has it without asking."""
        return self._cursor >= self._log.end if self._cursor is not None else not self._is_due

    def ended(self, artifacts: tuple[Artifact, ...]) -> None:
        """The attempt has ended with these, which may now be asked for."""
        self._artifacts = artifacts

    def want(self, channel: int, offset: int) -> None:
        """The peer has a channel's bytes before offset. The log is then sent from there, or from where it still is."""
        if channel == LOG_CHANNEL:
            room = self._log.room
            room.release(offset)
            self._is_due = False
            self._cursor = min(max(offset, room.start), room.end)
        elif channel <= len(self._artifacts):
            self._wanted[channel] = min(offset, self._artifacts[channel - 1].bytes)
            self._close_artifact(channel)

    def offer(self, offset: int, piece: memoryview) -> None:
        """Bytes that the log has just got: sent at once when they are the next and may go."""
        end = offset + len(piece)
        if self._cursor == offset and end <= self._log.room.end and self._link.may_send_data:
            self._link.data(self._header(LOG_CHANNEL, offset, self._log.elapsed_ms), piece)
            self._cursor = end

    def pump(self) -> None:
        """Send what may go now. Raises OSError when the room cannot be read back."""
        room = self._log.room
        while self._cursor is not None and self._cursor < room.end and self._link.may_send_data:
            try:
                piece = room.read(self._cursor, DATA_BYTES)
            except OSError:
                self._cursor = None  # or the result would wait for it for ever
                raise
            self._link.data(self._header(LOG_CHANNEL, self._cursor, self._log.times.at(self._cursor)), piece)
            self._cursor += len(piece)
        while self._wanted and self._link.may_send_data:
            self._send_artifact(next(iter(self._wanted)))

    def _send_artifact(self, channel: int) -> None:
        artifact = self._artifacts[channel - 1]
        offset = self._wanted[channel]
        piece, problem = self._piece(channel, artifact, offset)
        if problem:
            self._link.tell(Notice(job=self._job, text=f"artifact {artifact.path} of job {self._job}: {problem}"))
        self._link.data(self._header(channel, offset), piece)
        if piece:
            self._wanted[channel] = offset + len(piece)
            return
        del self._wanted[channel]
        self._close_artifact(channel)

    def _piece(self, channel: int, artifact: Artifact, offset: int) -> tuple[bytes, str]:
        """The next bytes; none are the end mark, with why the end came too early."""
        size = min(DATA_BYTES, artifact.bytes - offset)
        if size <= 0:
            return b"", ""
        try:
            if self._open is None or self._open[0] != channel:
                self._close_artifact()
                self._open = (channel, open_inside(self._work, artifact.path))
            piece = os.pread(self._open[1], size, offset)
        except OSError as error:
            return b"", f"can no longer be read: {os.strerror(error.errno or 0)}"
        return piece, "" if piece else f"has shrunk from {artifact.bytes} to {offset} bytes since it was collected"

    def _close_artifact(self, channel: int | None = None) -> None:
        if self._open is not None and channel in (None, self._open[0]):
            os.close(self._open[1])
            self._open = None

    def _header(self, channel: int, offset: int, elapsed_ms: int = 0) -> DataHeader:
        return DataHeader(self._job, self._attempt, channel, offset, elapsed_ms)

    def close(self) -> None:
        """Give back the open artifact."""
        self._wanted.clear()
        self._close_artifact()
