"""Every message between roles: it round-trips, and what is none is a PeerError whatever it is made of."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda import messages
from biruda.errors import PeerError
from biruda.messages import AttemptEnded, AttemptRecorded, Cancel, Notice, StreamsWanted, encode
from biruda.model import Artifact, AttemptResult, LogInfo, Outcome
from tests.fakes import values

Decode = Callable[[bytes], Any]

DIRECTIONS: list[tuple[Any, Decode]] = [
    (messages.ToCoordinator, messages.decode_to_coordinator),
    (messages.ToMaster, messages.decode_to_master),
    (messages.ToWorker, messages.decode_to_worker),
    (messages.FromWorker, messages.decode_from_worker),
]
EVERY = [(kind, decode) for union, decode in DIRECTIONS for kind in get_args(union)]
DECODERS = [decode for _, decode in DIRECTIONS]


@pytest.fixture(params=["with orjson", "without orjson"], autouse=True, scope="module")
def reader(request: pytest.FixtureRequest) -> Iterator[None]:
    """The worker has the standard library only; the other roles have loaded orjson."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "with orjson":
            import orjson

            assert sys.modules["orjson"] is orjson
        else:
            patch.setitem(sys.modules, "orjson", None)
        yield


@pytest.mark.parametrize(("kind", "decode"), EVERY, ids=[f"{d.__name__}-{k.__name__}" for k, d in EVERY])
def test_every_message_round_trips(kind: type, decode: Decode) -> None:
    @settings(max_examples=15, deadline=None)
    @given(values(kind))
    def round_trip(message: Any) -> None:
        assert decode(encode(message)) == message

    round_trip()


@settings(max_examples=30, deadline=None)
@given(st.one_of([values(kind) for kind in get_args(messages.ToMaster)]))
def test_the_form_is_a_json_object_whose_last_key_is_its_type(message: Any) -> None:
    builtins = json.loads(encode(message))
    assert list(builtins)[-1] == "type"
    assert builtins["type"] == type(message).__name__
    assert set(builtins) - {"type"} == set(message.__dataclass_fields__)


def test_the_bytes_of_a_message() -> None:
    assert encode(AttemptRecorded(job=7, attempt=2)) == (
        b'{"job":7,"attempt":2,"next_follows":false,"type":"AttemptRecorded"}'
    )
    said = StreamsWanted(job=1, attempt=1, streams=((0, 5), (1, 0)))
    assert encode(said) == b'{"job":1,"attempt":1,"streams":[[0,5],[1,0]],"type":"StreamsWanted"}'
    assert encode(Notice(text='Zürich "\n"')) == '{"text":"Zürich \\"\\n\\"","job":0,"type":"Notice"}'.encode()


def test_no_message_passes_in_the_wrong_direction() -> None:
    cancel = encode(Cancel(job=1, attempt=1, outcome="cancelled", reason=""))
    for decode in (messages.decode_to_master, messages.decode_from_worker):
        with pytest.raises(PeerError, match="a message that is none of"):
            decode(cancel)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"1",
        b'"AttemptRecorded"',
        b"[]",
        b'["type"]',
        b"{}",
        b'{"type":null}',
        b'{"type":[]}',
        b'{"type":{"type":"AttemptRecorded"}}',
        b'{"type":"Nonsense"}',
        b'{"type":"AttemptRecorded"}',
        b'{"type":"AttemptRecorded","job":1,"attempt":1,"more":0}',
        b'{"type":"AttemptRecorded","job":"1","attempt":1}',
        b'{"type":"AttemptRecorded","job":1e2,"attempt":1}',
        b'{"type":"AttemptRecorded","job":18446744073709551616,"attempt":1}',
        b'{"type":"AttemptRecorded","job":' + b"9" * 5000 + b',"attempt":1}',
        b'{"type":"Attach","protocol":1,"nonce":"","lease_s":NaN}',
        b'{"type":"Attach","protocol":1,"nonce":"","lease_s":1e999}',
        b'{"type":"Attach","protocol":1,"nonce":"","lease_s":' + b"9" * 400 + b"}",
        b'{"type":"AttemptRecorded","job":1,"attempt":1',
        b"\xff\xfe",
        b"[" * 500_000,
        b'{"a":' * 200_000,
        b'{"type":"AttemptRecorded","job":1,"attempt":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"type":"AttemptRecorded","job":1,"attempt":"\\ud800"}',
    ],
)
def test_what_is_no_message_is_a_peer_error(payload: bytes) -> None:
    for decode in DECODERS:
        with pytest.raises(PeerError) as refused:
            decode(payload)
        assert len(str(refused.value)) < 2000


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=100), st.sampled_from(DECODERS))
def test_any_bytes_are_a_message_or_a_peer_error(payload: bytes, decode: Decode) -> None:
    try:
        decode(payload)
    except PeerError:
        pass


@settings(max_examples=150, deadline=None)
@given(
    st.one_of([values(kind) for kind in get_args(messages.ToMaster)]),
    st.integers(0, 2**16),
    st.binary(max_size=3),
    st.integers(0, 3),
)
def test_a_damaged_message_is_a_message_or_a_peer_error(message: Any, place: int, bytes_: bytes, lost: int) -> None:
    payload = encode(message)
    place %= len(payload)
    try:
        messages.decode_to_master(payload[:place] + bytes_ + payload[place + lost :])
    except PeerError:
        pass


LOG = LogInfo(bytes=0, sha256="", complete=True)


def test_names_that_are_no_utf8_arrive_as_something_that_a_file_and_a_page_can_hold() -> None:
    """A worker reads file names with surrogateescape; behind the link every string must be writable anywhere."""
    artifact = Artifact(path="caf\udce9/\udcff.txt", bytes=1, sha256="")
    result = AttemptResult(outcome=Outcome.PASSED, exit_status=0, steps=(), log=LOG, artifacts=(artifact,))
    for decode in (messages.decode_to_master, messages.decode_from_worker):
        came = decode(encode(AttemptEnded(job=1, attempt=1, result=result)))
        assert came.result.artifacts[0].path == "caf\ufffd/\ufffd.txt"
        escaped = json.dumps({**json.loads(encode(came)), "job": 2}).replace("caf\\ufffd", "caf\\uDC80").encode()
        assert decode(escaped).result.artifacts[0].path == "caf\ufffd/\ufffd.txt"
    assert messages.decode_to_master(b'{"text":"\\ud83d\\ude00 \xed\x95\x9c","type":"Notice"}') == Notice(text="😀 한")
    with pytest.raises(PeerError, match="unknown field"):
        messages.decode_to_master(b'{"text":"","\\udc80":1,"type":"Notice"}')
