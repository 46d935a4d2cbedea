"""One connection to a coordinator: frames in and out of a stream that never blocks, within what it may send."""

import socket
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from biruda.errors import PeerError
from biruda.frames import (
    DATA_BYTES,
    DataFrame,
    DataHeader,
    Frame,
    FrameParser,
    FrameType,
    MessageFrame,
    Session,
    pack,
)
from biruda.messages import FromWorker, encode
from biruda.worker.room import untouched

KEPT_FRAMES = 1024
"""Unacknowledged frames beyond which data waits: of a job that prints byte by byte, most of memory would be headers."""


_PIECES = 64


class Stream(Protocol):
    """A connection that is no socket; the names and the ways to fail are those of one."""

    def fileno(self) -> int:
        """Ready when recv_into() has something."""

    def out_fileno(self) -> int:
        """Ready when sendmsg() takes something."""

    def recv_into(self, buffer: memoryview) -> int:
        """How many bytes came; 0 at the end. Raises BlockingIOError."""

    def sendmsg(self, pieces: list[memoryview]) -> int:
        """How many bytes of the pieces were taken. Raises BlockingIOError, OSError."""

    def close(self) -> None:
        """May be called again."""


class Link:
    """A connection and the fresh session on it. It is lost for good when `lost` is true or receive() raised."""

    def __init__(self, connection: socket.socket | Stream, window_bytes: int) -> None:
        if isinstance(connection, socket.socket):
            _prepare(connection)
        self.lost = False
        self.is_blocked = False  # the socket takes no more: flush() again when it does
        self.log_acknowledged = 0  # the peer has the log up to here
        self._connection = connection
        self._session = Session(window_bytes)
        self._parser = FrameParser()
        self._buffer = memoryview(untouched(DATA_BYTES))
        self._unsent: deque[memoryview] = deque()
        self._numbered = 0
        self._log_ends: deque[tuple[int, int]] = deque()  # number of a frame, the log offset after it
        self._asked_for_ack = False

    def fileno(self) -> int:
        return self._connection.fileno()

    def out_fileno(self) -> int:
        """What to wait for when it is blocked."""
        connection = self._connection
        return connection.fileno() if isinstance(connection, socket.socket) else connection.out_fileno()

    @property
    def may_send_data(self) -> bool:
        """True when a piece of data would leave at once, or at least into the socket."""
        if self.is_blocked or self.lost or self._session.credit_bytes <= 0:
            return False
        if self._session.kept_frames < KEPT_FRAMES:
            return True
        if not self._asked_for_ack:
            self._asked_for_ack = True
            self._queue(pack(FrameType.PING))
        return False

    def receive(self) -> Iterator[MessageFrame | DataFrame]:
        """What came, each once; ask for the next when its effect is done. Raises PeerError; sets `lost` at the end."""
        while size := self._received():
            for frame in self._parser.feed(self._buffer[:size]):
                item = self._take(frame)
                if item is not None:
                    yield item
                    if self._session.handled(item) or isinstance(item, DataFrame):
                        self._queue(self._session.ack())
            if isinstance(self._connection, socket.socket):
                return  # poll says whether there is more; of a stream that was read ahead it cannot know

    def _received(self) -> int:
        """How many bytes are in the buffer now; 0 for none, at the end with `lost`."""
        try:
            size = self._connection.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            size = 0
        self.lost = self.lost or size == 0
        return size

    def _take(self, frame: Frame) -> MessageFrame | DataFrame | None:
        match frame.type:
            case FrameType.MESSAGE | FrameType.DATA:
                return self._session.accept(frame)
            case FrameType.ACK:
                self._session.acknowledged(frame)
                self._release(int.from_bytes(frame.body, "big"))
            case FrameType.PING:
                self._queue(self._session.ack())
            case FrameType.HELLO | FrameType.WELCOME | FrameType.REFUSE:
                raise PeerError(f"a {frame.type.name} frame, which has no place between coordinator and worker")
        return None

    def _release(self, number: int) -> None:
        self._asked_for_ack = False
        while self._log_ends and self._log_ends[0][0] <= number:
            self.log_acknowledged = max(self.log_acknowledged, self._log_ends.popleft()[1])

    def forget_log(self) -> None:
        """Acknowledgements of what was sent so far are of a log that is no more."""
        self._log_ends.clear()
        self.log_acknowledged = 0

    def tell(self, message: FromWorker) -> None:
        """Queue a message for the next data() or flush(). Raises ValueError when it does not fit a frame."""
        frame = self._session.message(encode(message))
        self._numbered += 1
        self._queue(frame)

    def data(self, header: DataHeader, payload: bytes | memoryview) -> None:
        """Send a piece of data now; may_send_data must have been true."""
        frame = self._session.data(header, payload)
        self._numbered += 1
        if header.channel == 0:
            self._log_ends.append((self._numbered, header.offset + len(payload)))
        self._queue(frame)
        self.flush()

    def _queue(self, frame: bytes) -> None:
        if not self.lost:
            self._unsent.append(memoryview(frame))

    def flush(self) -> None:
        """Write what is queued, as far as the socket takes it now."""
        self.is_blocked = False
        if self._unsent and self._session.ack_due:  # with what is sent anyway: alone it would only wake the peer
            self._queue(self._session.ack())
        while self._unsent and not self.is_blocked and not self.lost:
            pieces = list(islice(self._unsent, _PIECES))
            sent = self._write(pieces)
            self.is_blocked = sent < sum(map(len, pieces))
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.popleft())
            if sent:
                self._unsent[0] = self._unsent[0][sent:]

    def _write(self, pieces: list[memoryview]) -> int:
        try:
            return self._connection.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.lost = True
            return 0

    def close(self) -> None:
        """End the connection; may be called again."""
        self.lost = True
        self._unsent.clear()
        self._connection.close()


def _prepare(connection: socket.socket) -> None:
    connection.setblocking(False)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    except OSError:  # not every stream has one
        pass
