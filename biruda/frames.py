"""The one codec: frames over any byte stream, and the numbered session they make.

A frame is `u32 length | u8 type | body`, big-endian; length counts type and body. MESSAGE and DATA frames are numbered:
their body begins with a u64 that counts from 1 in each direction of a session. Numbered frames are kept until the peer
acknowledged them, so that a new connection carries on after the last one received. Sans-IO and standard library only:
the worker's poll loop and the asyncio links run the same code.
"""

import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from biruda.errors import PeerError

MAX_FRAME_BYTES = (1 << 20) + 4096
"""Longest frame either side accepts: 1 MiB of data and its headers."""

DATA_BYTES = 256 * 1024
"""How much one DATA frame usually carries."""

WINDOW_BYTES = 4 << 20
"""Unacknowledged data bytes that a sender may have in flight."""

_HEAD = struct.Struct(">IB")
_SEQ = struct.Struct(">Q")
_DATA = struct.Struct(">QIIQI")


class FrameType(IntEnum):
    HELLO = 1  # the dialling side's first frame
    WELCOME = 2  # its answer
    REFUSE = 3  # its other answer; the connection ends
    ACK = 4  # u64: every numbered frame up to this one was handled
    PING = 5  # answered by ACK
    MESSAGE = 6  # u64 number | JSON
    DATA = 7  # u64 number | u64 job | u32 attempt | u32 channel | u64 offset | u32 elapsed_ms | bytes


@dataclass(frozen=True, slots=True)
class DataHeader:
    """Where bytes belong: channel 0 is the attempt's log, 1 + n its n-th artifact; job 0 is no job but a transfer."""

    job: int
    attempt: int
    channel: int
    offset: int
    elapsed_ms: int = 0  # since the attempt began


@dataclass(frozen=True, slots=True)
class Frame:
    type: FrameType
    body: bytes


@dataclass(frozen=True, slots=True)
class MessageFrame:
    """A numbered control frame; payload is JSON."""

    seq: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class DataFrame:
    """A numbered data frame."""

    seq: int
    header: DataHeader
    payload: memoryview


def pack(kind: FrameType, body: bytes = b"") -> bytes:
    """One frame's bytes."""
    return _HEAD.pack(1 + len(body), kind) + body


class FrameParser:
    """Cuts a byte stream into frames; the stream may be split anywhere."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max = max_frame_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames completed by data. Raises PeerError at a frame that is empty, oversized or of no known type."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        position, end = 0, len(buffer)
        while end - position >= 5:
            length, kind = _HEAD.unpack_from(buffer, position)
            if not 1 <= length <= self._max:
                raise PeerError(f"the peer sent a frame of {length} bytes; 1 to {self._max} are allowed")
            if end - position < 4 + length:
                break
            try:
                frame_type = FrameType(kind)
            except ValueError:
                raise PeerError(f"the peer sent a frame of unknown type {kind}") from None
            frames.append(Frame(frame_type, bytes(memoryview(buffer)[position + 5 : position + 4 + length])))
            position += 4 + length
        if position:
            del buffer[:position]
        return frames

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not whole yet; not 0 at the end of a stream means that it was cut."""
        return len(self._buffer)


class Session:
    """Numbers, acknowledges, bounds and resumes one direction pair of numbered frames.

    Outgoing: message() and data() give the bytes to write and keep them until acknowledged. Incoming: accept() drops
    what came before, and refuses a gap. handled() says when an acknowledgement is due.
    """

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self.window_bytes = window_bytes
        self.received = 0  # last number whose effect is done; what was cut off in the middle comes again
        self._handled_bytes = 0  # since the last acknowledgement sent
        self._acked = 0  # last number we acknowledged
        self._sent = 0
        self._kept: deque[tuple[int, bytes, int]] = deque()
        self._in_flight_bytes = 0

    @property
    def credit_bytes(self) -> int:
        """How many data bytes may be sent now; may be negative, as one frame may overdraw it."""
        return self.window_bytes - self._in_flight_bytes

    @property
    def kept_frames(self) -> int:
        """Frames sent and not acknowledged."""
        return len(self._kept)

    def message(self, payload: bytes) -> bytes:
        """The frame of one control message. Messages are not bounded by credit."""
        if len(payload) + 9 > MAX_FRAME_BYTES:
            raise ValueError(f"a message of {len(payload)} bytes does not fit a frame")
        return self._number(FrameType.MESSAGE, b"", payload, 0)

    def data(self, header: DataHeader, payload: bytes | memoryview) -> bytes:
        """The frame of one piece of data; ask credit_bytes first."""
        if len(payload) + _DATA.size + 9 > MAX_FRAME_BYTES:
            raise ValueError(f"a piece of {len(payload)} bytes does not fit a frame")
        head = _DATA.pack(header.job, header.attempt, header.channel, header.offset, min(header.elapsed_ms, 0xFFFFFFFF))
        return self._number(FrameType.DATA, head, payload, len(payload))

    def _number(self, kind: FrameType, head: bytes, body: bytes | memoryview, data_bytes: int) -> bytes:
        self._sent += 1
        length = 9 + len(head) + len(body)
        frame = b"".join((_HEAD.pack(length, kind), _SEQ.pack(self._sent), head, body))  # the body's only copy
        self._kept.append((self._sent, frame, data_bytes))
        self._in_flight_bytes += data_bytes
        return frame

    def accept(self, frame: Frame) -> MessageFrame | DataFrame | None:
        """What a numbered frame carries; None for one seen before. Raises PeerError at a gap or a cut body."""
        body = frame.body
        if len(body) < 8:
            raise PeerError(f"a {frame.type.name} frame of {len(body)} bytes has no number")
        (seq,) = _SEQ.unpack_from(body)
        if seq <= self.received:
            return None
        if seq != self.received + 1:
            raise PeerError(f"frame {seq} came after {self.received}: frames between them are missing")
        if frame.type is FrameType.MESSAGE:
            return MessageFrame(seq, body[8:])
        if len(body) < 8 + _DATA.size:
            raise PeerError(f"a DATA frame of {len(body)} bytes has no header")
        return DataFrame(seq, DataHeader(*_DATA.unpack_from(body, 8)), memoryview(body)[8 + _DATA.size :])

    def handled(self, item: MessageFrame | DataFrame) -> bool:
        """Note that an item's effect is done; True when the peer should hear of it before more is read."""
        self.received = item.seq
        if isinstance(item, DataFrame):
            self._handled_bytes += len(item.payload)
        return self._handled_bytes >= self.window_bytes // 4

    @property
    def ack_due(self) -> bool:
        return self.received > self._acked

    def ack(self) -> bytes:
        """The acknowledgement of all that was handled."""
        self._acked = self.received
        self._handled_bytes = 0
        return pack(FrameType.ACK, _SEQ.pack(self.received))

    def acknowledged(self, frame: Frame) -> None:
        """Forget what an ACK frame covers. Raises PeerError for numbers never sent."""
        if len(frame.body) != 8:
            raise PeerError(f"an ACK frame of {len(frame.body)} bytes")
        (seq,) = _SEQ.unpack(frame.body)
        self._forget(seq)

    def _forget(self, seq: int) -> None:
        if seq > self._sent:
            raise PeerError(f"the peer acknowledged frame {seq}, but only {self._sent} were sent")
        kept = self._kept
        while kept and kept[0][0] <= seq:
            self._in_flight_bytes -= kept.popleft()[2]

    def resume(self, peer_received: int) -> list[bytes]:
        """The frames to send again on a new connection to a peer that has received up to peer_received."""
        self._forget(peer_received)
        if peer_received != self._sent - len(self._kept):
            raise PeerError(f"the peer asks for frame {peer_received + 1}, which is no longer kept")
        return [frame for _, frame, _ in self._kept]
