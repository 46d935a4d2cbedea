"""Connections come, go, break and lie; the attempt goes on."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biruda.frames import MAX_FRAME_BYTES, DataHeader, FrameType, Session, pack
from biruda.messages import (
    PROTOCOL,
    Assign,
    Assignment,
    Attach,
    AttemptEnded,
    StepEnded,
    StepStarted,
    StreamsWanted,
    WorkerHello,
    encode,
)
from biruda.model import Facts, Outcome
from tests.worker.peer import (
    NONCE,
    Worker,
    ping,
    python,
    recipe_of,
    refused,
    shell,
    start_process,
    start_thread,
)
from tests.worker.test_log import BLOCKS, blocks_sha256


def attach(nonce: str = NONCE, protocol: int = PROTOCOL) -> bytes:
    return encode(Attach(protocol=protocol, nonce=nonce, lease_s=30.0))


@contextmanager
def held() -> Iterator[tuple[Worker, Path]]:
    """A worker whose job waits until something is written to the path."""
    with start_process() as worker:
        fifo = worker.directory / "go"
        os.mkfifo(fifo)
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell("echo first", name="one"), shell(f"echo up; read x < {fifo}; echo $x")))
        worker.peer.until(lambda: worker.peer.log.size == 9)
        yield worker, fifo


def finish(worker: Worker, fifo: Path) -> None:
    """The attempt is as it was before: it takes a new connection and ends well."""
    peer = worker.connect()
    hello = peer.attach()
    assert (hello.job, hello.attempt, hello.ended, hello.log_end) == (7, 1, False, 9)
    peer.want((0, 0))
    fifo.write_text("on\n")
    result = peer.result()
    assert (result.outcome, bytes(peer.log.head)) == (Outcome.PASSED, b"first\nup\non\n")
    peer.record()
    worker.wait_ended()


def test_hello_says_who_answers() -> None:
    with start_process() as worker:
        hello = worker.peer.attach()
        assert hello == WorkerHello(protocol=PROTOCOL, worker="w1", nonce=NONCE, pid=worker.pid)
        worker.peer.close()
        worker.wait_ended()


def test_hello_says_where_it_landed_when_asked_to_guess() -> None:
    with start_process(guess=True) as worker:
        facts = worker.peer.attach().facts
        assert isinstance(facts, Facts)
        assert facts.bits in (32, 64)
        assert facts.arch != ""


@pytest.mark.parametrize("start", [start_process, start_thread], ids=["process", "thread"])
def test_an_idle_worker_ends_with_its_connection(start: Callable[..., Worker]) -> None:
    with start() as worker:
        worker.peer.attach()
        worker.peer.close()
        worker.wait_ended()


def test_an_idle_worker_that_nobody_attaches_to_ends_with_its_lease() -> None:
    with start_process(lease_s=0.2) as worker:
        worker.wait_ended(5)


@pytest.mark.parametrize("room", [{}, {"room_path": ""}], ids=["file", "memory"])
def test_a_cut_connection_is_taken_up_at_an_offset(room: dict[str, Any]) -> None:
    with start_process(**room) as worker:
        peer = worker.peer
        peer.attach()
        peer.assign(recipe_of(python(BLOCKS.format(count=80)), shell("echo end")))
        digest = peer.log.sha256
        size = 0
        for cut in range(1, 5):
            peer.until_size(cut << 21)
            size = peer.log.size
            peer.close()
            peer = worker.connect()
            hello = peer.attach()
            assert hello.log_start <= size
            peer.want((0, size))
            peer.log.sha256 = digest
        result = peer.result()
        assert result.log.bytes == (80 << 18) + 4
        assert result.log.sha256 == digest.hexdigest()
        peer.record()
        worker.wait_ended()


def test_what_a_lost_acknowledgement_covered_is_given_free() -> None:
    with start_process(room_path="") as worker:
        peer = worker.peer
        peer.attach()
        peer.acknowledges = False
        peer.assign(recipe_of(python(BLOCKS.format(count=40))))
        peer.until(lambda: peer.log.size >= 2 << 20)
        size, digest = peer.log.size, peer.log.sha256
        peer.close()
        peer = worker.connect()
        peer.attach()
        peer.want((0, size))
        peer.log.sha256 = digest
        peer.until(lambda: peer.of(AttemptEnded))
        assert digest.hexdigest() == blocks_sha256(40)


def test_the_log_is_sent_again_from_wherever_it_is_wanted() -> None:
    with start_process() as worker:
        worker.peer.run(("/bin/echo", "hello world"))
        for offset in (0, 6, 12, 3):
            worker.peer.want((0, offset))
            worker.peer.until_size(12)
            assert bytes(worker.peer.log.head) == b"hello world\n"[offset:]
        worker.peer.say(StreamsWanted(job=7, attempt=1, streams=((0, 99), (5, 0), (-1, 0), (0, -1))))
        worker.peer.record()
        worker.wait_ended()


def test_a_new_connection_hears_what_has_happened() -> None:
    with held() as (worker, fifo):
        worker.peer.close()
        peer = worker.connect()
        hello = peer.attach()
        assert [s.name for s in hello.steps] == ["one"]
        assert peer.next(StepEnded).index == 0
        assert peer.next(StepStarted).index == 1
        peer.close()
        finish(worker, fifo)


def test_a_newer_connection_replaces_an_older_one() -> None:
    with held() as (worker, fifo):
        newer = worker.connect()
        worker.peer.wait_closed()
        newer.attach()
        finish(worker, fifo)
        newer.wait_closed()


def test_the_result_is_told_on_every_connection_until_it_is_recorded() -> None:
    with start_process() as worker:
        first = worker.peer.run(("/bin/echo", "x"))
        peers = [worker.peer]
        for _ in range(3):
            peers[-1].close()
            peers.append(worker.connect())
            hello = peers[-1].attach()
            assert (hello.ended, hello.log_end) == (True, 2)
            assert peers[-1].next(AttemptEnded).result == first
        peers[-1].want((0, 0))
        peers[-1].until(lambda: peers[-1].log.size == 2)
        peers[-1].record()
        worker.wait_ended()


def test_everything_may_be_wanted_together_with_attach() -> None:
    with start_process() as worker:
        worker.peer.run(shell("echo out; echo content > file"), artifacts=("file",))
        worker.peer.close()
        peer = worker.connect()
        peer.next(WorkerHello)
        wanted = StreamsWanted(job=7, attempt=1, streams=((0, 0), (1, 0)))
        peer.raw(peer.session.message(attach()) + peer.session.message(encode(wanted)))
        peer.until(lambda: 1 in peer.channels and peer.channels[1].ended_at is not None)
        assert (bytes(peer.log.head), bytes(peer.channels[1].head)) == (b"out\n", b"content\n")
        assert peer.result().outcome is Outcome.PASSED


def test_repeated_messages_do_no_harm() -> None:
    with held() as (worker, fifo):
        recipe = recipe_of(("/bin/echo", "again"))
        worker.peer.say(Attach(protocol=PROTOCOL, nonce=NONCE, lease_s=30.0))
        worker.peer.assign(recipe)
        worker.peer.assign(recipe, job=8)
        busy = worker.peer.next(AttemptEnded)
        assert (busy.job, busy.result.outcome, busy.result.reason) == (8, Outcome.INFRA, "this worker runs job 7")
        worker.peer.record(job=8)
        worker.peer.record()
        worker.peer.raw(ping())
        worker.peer.raw(worker.peer.session.data(DataHeader(7, 1, 0, 5), b"a source pack that nobody asked for"))
        worker.peer.raw(worker.peer.session.data(DataHeader(6, 1, 3, 0), b"of another job"))
        worker.peer.close()
        finish(worker, fifo)


def _numbered(payload: bytes, kind: FrameType = FrameType.MESSAGE, number: int = 1) -> bytes:
    return pack(kind, struct.pack(">Q", number) + payload)


def _attached(*rest: bytes) -> bytes:
    session = Session()
    return session.message(attach()) + b"".join(rest)


NONE = Assignment(job=1 << 70, attempt=0, environment="", recipe=recipe_of())
TWO = Assignment(job=1, attempt=1, environment="", recipe=recipe_of())
BROKEN = {
    "garbage": b"GET / HTTP/1.1\r\nHost: biruda\r\n\r\n",
    "an empty frame": bytes(5),
    "an oversized frame": struct.pack(">IB", MAX_FRAME_BYTES + 1, 6),
    "an unknown type": struct.pack(">IB", 9, 77) + bytes(8),
    "a hello of the other hop": pack(FrameType.HELLO, b"{}"),
    "a refusal": pack(FrameType.REFUSE, b"{}"),
    "a message without a number": pack(FrameType.MESSAGE, b"123"),
    "a number that skips one": _numbered(attach(), number=2),
    "no JSON": _numbered(b"{nonsense"),
    "deep JSON": _numbered(b"[" * 100_000),
    "a message that nobody knows": _numbered(b'{"type": "Dance"}'),
    "a message for a coordinator": _numbered(b'{"type": "SamplesWanted", "wanted": true}'),
    "a message without its fields": _numbered(b'{"type": "Attach"}'),
    "another protocol": _numbered(attach(protocol=PROTOCOL + 1)),
    "another nonce": _numbered(attach(nonce="guessed")),
    "an order before Attach": _numbered(encode(StreamsWanted(job=7, attempt=1, streams=((0, 0),)))),
    "data without a header": _numbered(b"short", FrameType.DATA),
    "a short acknowledgement": pack(FrameType.ACK, b"123"),
    "an acknowledgement of what was never sent": pack(FrameType.ACK, struct.pack(">Q", 1 << 40)),
    "a lease without end": _numbered(attach().replace(b"30.0", b"Infinity")),
    "a lease that is no number": _numbered(attach().replace(b"30.0", b"NaN")),
    "a number that is too large": _numbered(attach().replace(b"30.0", b"9" * 400)),
    "two assignments": _attached(_numbered(encode(Assign(assignments=(TWO, TWO))), number=2)),
    "a job that is none": _attached(_numbered(encode(Assign(assignments=(NONE,))), number=2)),
    "no assignment": _attached(_numbered(encode(Assign(assignments=())), number=2)),
}


def test_a_broken_peer_is_cut_off_and_the_attempt_goes_on() -> None:
    with held() as (worker, fifo):
        for name, data in BROKEN.items():
            peer = worker.connect()
            with refused(peer):
                peer.raw(data)
            assert "closes its connection" in worker.stderr or "OverflowError" in worker.stderr, name
            (worker.directory / "stderr").write_text("")
        for data in (b"", b"\0\0", _numbered(attach())[:20], _attached(b"\0\0\1")):
            peer = worker.connect()
            peer.raw(data)
            peer.close()  # in the middle of a frame
        finish(worker, fifo)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(_numbered)))
def test_no_bytes_end_the_attempt(data: bytes, noisy: tuple[Worker, Path]) -> None:
    worker, _ = noisy
    peer = worker.connect()
    peer.raw(data)
    peer.close()


@pytest.fixture(scope="module")
def noisy() -> Iterator[tuple[Worker, Path]]:
    with held() as (worker, fifo):
        yield worker, fifo
        finish(worker, fifo)


def test_a_worker_that_speaks_another_protocol_and_is_idle_ends() -> None:
    with start_process() as worker:
        worker.peer.next(WorkerHello)
        worker.peer.say(Attach(protocol=PROTOCOL + 1, nonce=NONCE, lease_s=30.0))
        worker.peer.wait_closed()
        worker.wait_ended()
        assert f"the coordinator speaks protocol {PROTOCOL + 1}" in worker.stderr
