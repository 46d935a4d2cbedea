"""The codec and the session: whatever the stream does, every frame is handled once and in order."""

import itertools
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biruda.errors import PeerError
from biruda.frames import (
    MAX_FRAME_BYTES,
    DataFrame,
    DataHeader,
    Frame,
    FrameParser,
    FrameType,
    MessageFrame,
    Session,
    pack,
)

frames = st.builds(Frame, st.sampled_from(FrameType), st.binary(max_size=64))
headers = st.builds(
    DataHeader,
    job=st.integers(0, 2**64 - 1),
    attempt=st.integers(0, 2**32 - 1),
    channel=st.integers(0, 2**32 - 1),
    offset=st.integers(0, 2**64 - 1),
    elapsed_ms=st.integers(0, 2**32 - 1),
)


def cut_at(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# Frames.


def test_the_bytes_of_a_frame() -> None:
    assert pack(FrameType.PING) == b"\0\0\0\x01\x05"
    assert pack(FrameType.HELLO, b"{}") == b"\0\0\0\x03\x01{}"
    header = DataHeader(job=1, attempt=2, channel=3, offset=4, elapsed_ms=5)
    body = struct.pack(">QQIIQI", 1, 1, 2, 3, 4, 5) + b"bytes"
    assert Session().data(header, b"bytes") == pack(FrameType.DATA, body)


@given(st.lists(frames, max_size=12), st.lists(st.integers(0, 2**16)))
def test_frames_survive_any_split(sent: list[Frame], places: list[int]) -> None:
    stream = b"".join(pack(frame.type, frame.body) for frame in sent)
    parser = FrameParser()
    assert [frame for piece in cut_at(stream, places) for frame in parser.feed(piece)] == sent
    assert parser.pending_bytes == 0


@given(st.lists(frames, min_size=1, max_size=5), st.data())
def test_a_truncated_stream_is_noticed(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(pack(frame.type, frame.body) for frame in sent)
    last = len(pack(sent[-1].type, sent[-1].body))
    cut = data.draw(st.integers(len(stream) - last + 1, len(stream) - 1))
    parser = FrameParser()
    assert parser.feed(stream[:cut]) == sent[:-1]
    assert parser.pending_bytes == cut - (len(stream) - last)


def test_every_kind_of_buffer_is_taken() -> None:
    frame = pack(FrameType.MESSAGE, b"body")
    for kind in (bytes, bytearray, memoryview):
        assert FrameParser().feed(kind(frame)) == [Frame(FrameType.MESSAGE, b"body")]


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_an_empty_or_oversized_frame_is_refused_by_its_head(length: int) -> None:
    with pytest.raises(PeerError, match=f"a frame of {length} bytes"):
        FrameParser().feed(struct.pack(">IB", length, FrameType.MESSAGE))


def test_the_longest_frame_is_taken() -> None:
    parser = FrameParser()
    assert parser.feed(pack(FrameType.DATA, bytes(MAX_FRAME_BYTES - 1)))[0].type is FrameType.DATA
    assert Session().message(bytes(MAX_FRAME_BYTES - 9))
    with pytest.raises(ValueError, match="does not fit"):
        Session().message(bytes(MAX_FRAME_BYTES - 8))
    assert len(Session().data(DataHeader(1, 1, 0, 0), bytes(1 << 20))) <= MAX_FRAME_BYTES + 4
    with pytest.raises(ValueError, match="does not fit"):
        Session().data(DataHeader(1, 1, 0, 0), bytes(MAX_FRAME_BYTES - 36))


@pytest.mark.parametrize("kind", [0, 8, 255])
def test_a_frame_of_unknown_type_is_refused(kind: int) -> None:
    with pytest.raises(PeerError, match=f"unknown type {kind}"):
        FrameParser().feed(struct.pack(">IB", 1, kind))


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_a_parser_raises_nothing_but_peer_error(pieces: list[bytes]) -> None:
    parser = FrameParser(max_frame_bytes=100)
    try:
        for piece in pieces:
            parser.feed(piece)
    except PeerError:
        pass


# Sessions.


def accept(session: Session, raw: bytes) -> MessageFrame | DataFrame | None:
    (frame,) = FrameParser().feed(raw)
    return session.accept(frame)


@given(headers, st.binary(max_size=64))
def test_data_round_trips(header: DataHeader, payload: bytes) -> None:
    item = accept(Session(), Session().data(header, payload))
    assert isinstance(item, DataFrame)
    assert (item.seq, item.header, bytes(item.payload)) == (1, header, payload)


def test_a_time_beyond_the_field_is_its_largest_value() -> None:
    item = accept(Session(), Session().data(DataHeader(1, 1, 0, 0, elapsed_ms=1 << 40), b""))
    assert isinstance(item, DataFrame)
    assert item.header.elapsed_ms == 2**32 - 1


def test_a_duplicate_is_dropped_and_a_gap_refused() -> None:
    sender, receiver = Session(), Session()
    first, second, third = (sender.message(b"%d" % number) for number in range(3))
    item = accept(receiver, first)
    assert item == MessageFrame(1, b"0")
    receiver.handled(item)
    assert accept(receiver, first) is None
    with pytest.raises(PeerError, match="frame 3 came after 1"):
        accept(receiver, third)
    assert accept(receiver, second) == MessageFrame(2, b"1")


def test_what_was_not_handled_is_not_received() -> None:
    sender, receiver = Session(), Session()
    frame = sender.message(b"x")
    assert accept(receiver, frame) == accept(receiver, frame)  # its handling was cut off: it is not lost
    assert receiver.received == 0
    assert not receiver.ack_due


@pytest.mark.parametrize("kind", [FrameType.MESSAGE, FrameType.DATA])
@pytest.mark.parametrize("body", [b"", b"1234567"])
def test_a_frame_without_a_number_is_refused(kind: FrameType, body: bytes) -> None:
    with pytest.raises(PeerError, match="has no number"):
        Session().accept(Frame(kind, body))


def test_data_without_a_whole_header_is_refused() -> None:
    with pytest.raises(PeerError, match="has no header"):
        Session().accept(Frame(FrameType.DATA, struct.pack(">Q", 1) + bytes(27)))


def test_an_acknowledgement_of_the_future_is_refused() -> None:
    session = Session()
    session.message(b"x")
    session.acknowledged(Frame(FrameType.ACK, struct.pack(">Q", 1)))
    with pytest.raises(PeerError, match="acknowledged frame 2, but only 1"):
        session.acknowledged(Frame(FrameType.ACK, struct.pack(">Q", 2)))
    with pytest.raises(PeerError, match="an ACK frame of 7 bytes"):
        session.acknowledged(Frame(FrameType.ACK, bytes(7)))


def test_an_old_acknowledgement_changes_nothing() -> None:
    session = Session(window_bytes=100)
    for _ in range(3):
        session.data(DataHeader(1, 1, 0, 0), bytes(10))
    session.acknowledged(Frame(FrameType.ACK, struct.pack(">Q", 2)))
    session.acknowledged(Frame(FrameType.ACK, struct.pack(">Q", 1)))
    assert (session.kept_frames, session.credit_bytes) == (1, 90)


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=30), st.data())
def test_credit_is_the_window_less_what_is_in_flight(pieces: list[tuple[int, bool]], data: st.DataObject) -> None:
    session = Session(window_bytes=100)
    sizes: list[int] = []
    acknowledged = 0
    for size, is_data in pieces:
        if is_data:
            session.data(DataHeader(1, 1, 0, 0), bytes(size))
        else:
            session.message(bytes(size))
        sizes.append(size if is_data else 0)
        acknowledged = data.draw(st.integers(acknowledged, len(sizes)))
        session.acknowledged(Frame(FrameType.ACK, struct.pack(">Q", acknowledged)))
        assert session.credit_bytes == 100 - sum(sizes[acknowledged:])
        assert session.kept_frames == len(sizes) - acknowledged


def test_an_acknowledgement_is_urgent_after_a_quarter_of_the_window() -> None:
    sender, receiver = Session(), Session(window_bytes=100)
    urgent = []
    for _ in range(4):
        item = accept(receiver, sender.data(DataHeader(1, 1, 0, 0), bytes(10)))
        assert item is not None
        urgent.append(receiver.handled(item))
        if urgent[-1]:
            assert receiver.ack() == pack(FrameType.ACK, struct.pack(">Q", item.seq))
            assert not receiver.ack_due
    assert urgent == [False, False, True, False]


@given(st.integers(0, 12), st.integers(0, 12), st.integers(-3, 15))
def test_resume_sends_exactly_what_the_peer_has_not(sent: int, acknowledged: int, received: int) -> None:
    session = Session()
    wire = [session.message(b"%d" % number) for number in range(sent)]
    acknowledged = min(sent, acknowledged)
    session.acknowledged(Frame(FrameType.ACK, struct.pack(">Q", acknowledged)))
    if acknowledged <= received <= sent:
        assert session.resume(received) == wire[received:]
        assert session.resume(received) == wire[received:]  # a connection that breaks at once loses nothing
    else:
        with pytest.raises(PeerError):
            session.resume(received)


@dataclass
class Side:
    """One end of a connection that is cut again and again."""

    session: Session = field(default_factory=lambda: Session(window_bytes=400))
    parser: FrameParser = field(default_factory=FrameParser)
    wire: bytearray = field(default_factory=bytearray)  # written and not yet carried to the other side
    sent: list[bytes] = field(default_factory=list)
    handled: list[bytes] = field(default_factory=list)

    def say(self, size: int, is_data: bool) -> None:
        payload = b"%d:" % len(self.sent) + bytes(size)
        if not is_data:
            self.wire += self.session.message(payload)
        elif self.session.credit_bytes > 0:
            self.wire += self.session.data(DataHeader(1, 1, 0, len(self.sent)), payload)
        else:
            return
        self.sent.append(payload)

    def take(self, data: bytes, *, stop_before: int = -1) -> bool:
        """Handle what came; False when the connection broke while the item number stop_before was being handled."""
        for number, frame in enumerate(self.parser.feed(data)):
            if frame.type is FrameType.ACK:
                self.session.acknowledged(frame)
                continue
            item = self.session.accept(frame)
            if item is None:
                continue
            if number == stop_before:
                return False
            self.handled.append(bytes(item.payload))
            if self.session.handled(item):
                self.wire += self.session.ack()
        if self.session.ack_due:
            self.wire += self.session.ack()
        return True

    def reconnect(self, peer_received: int) -> None:
        self.parser = FrameParser()
        self.wire[:] = b"".join(self.session.resume(peer_received))


def carry(source: Side, target: Side, count: int, stop_before: int = -1) -> bool:
    piece = bytes(source.wire[:count])
    del source.wire[:count]
    return target.take(piece, stop_before=stop_before)


def reconnect(one: Side, two: Side) -> None:
    first, second = one.session.received, two.session.received
    one.reconnect(second)
    two.reconnect(first)


say = st.tuples(st.just("say"), st.booleans(), st.integers(0, 150), st.booleans())
move = st.tuples(st.just("carry"), st.booleans(), st.integers(1, 400), st.integers(-1, 3))
cut = st.tuples(st.just("cut"), st.just(True), st.just(0), st.just(0))


@given(st.lists(st.one_of(say, move, move, cut), max_size=60))
def test_everything_is_handled_once_and_in_order_over_a_line_that_is_cut(
    steps: list[tuple[str, bool, int, int]],
) -> None:
    sides = Side(), Side()
    for what, forward, size, more in steps:
        one, two = sides if forward else sides[::-1]
        match what:
            case "say":
                one.say(size, bool(more))
            case "carry":
                if not carry(one, two, size, more):
                    reconnect(one, two)
            case _:
                reconnect(one, two)
        for side in sides:
            assert side.session.credit_bytes > -200  # one frame may overdraw it, not two
    reconnect(*sides)
    while any(side.wire for side in sides):
        carry(sides[0], sides[1], 1 << 20)
        carry(sides[1], sides[0], 1 << 20)
    for one, two in (sides, sides[::-1]):
        assert two.handled == one.sent
        assert one.session.kept_frames == 0
        assert one.session.credit_bytes == 400


# A stream that was damaged on its way.

damages = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 8)), min_size=1, max_size=3)


@given(st.lists(st.one_of(st.binary(max_size=30), st.tuples(headers, st.binary(max_size=30))), max_size=6), damages)
def test_a_damaged_stream_is_taken_up_to_the_damage_or_refused(
    items: list[bytes | tuple[DataHeader, bytes]], damaged: list[tuple[int, bytes, int]]
) -> None:
    sender, receiver = Session(), Session()
    sent = [sender.message(item) if isinstance(item, bytes) else sender.data(*item) for item in items]
    stream = b"".join(sent)
    first = len(stream)
    for place, put, lost in damaged:
        place %= len(stream) + 1
        first = min(first, place)
        stream = stream[:place] + put + stream[place + lost :]
    whole = 0
    while whole < len(sent) and len(b"".join(sent[: whole + 1])) <= first:
        whole += 1
    taken = 0
    try:
        for frame in FrameParser().feed(stream):
            if frame.type in (FrameType.MESSAGE, FrameType.DATA):
                item = receiver.accept(frame)
                if item is not None:
                    receiver.handled(item)
                    taken += 1
            elif frame.type is FrameType.ACK:
                receiver.acknowledged(frame)
    except PeerError:
        pass
    assert receiver.received == taken
    assert taken >= whole or first < len(stream)
