"""A worker on a wire: coordinators come and go, and nobody sees it but by what they say."""

import hashlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biruda.coordinator.spawners.docker_api import Demultiplexer
from biruda.coordinator.spawners.injected import Incoming, birth, connect
from biruda.frames import DataHeader, FrameType, pack
from biruda.messages import PROTOCOL, AttemptRecorded, Cancel, encode
from biruda.model import Outcome
from biruda.wire import CONNECTION_BYTES, HANG_UP, echo_of, mark_of
from biruda.worker.opening import Opening
from biruda.worker.serve import Worker
from biruda.worker.wire import Wire
from tests.worker.peer import NONCE, Peer, opening_of, python, recipe_of, shell, wait_until
from tests.worker.test_log import BLOCKS, blocks_sha256

LINES = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; read x < {fifo}; echo $x"


@dataclass
class Wired:
    """A worker started as an injected one is, and both ends of its wire."""

    opening: Opening
    directory: Path
    process: "subprocess.Popen[bytes]"
    ours: socket.socket
    peers: list[Peer] = field(default_factory=list)

    def attach(self, *, before: bytes = b"") -> Peer:
        """Begin a connection; `before` is what an earlier coordinator had not finished."""
        mark, incoming = connect(NONCE)
        self.ours.sendall(before + mark)
        peer = Peer(self.ours.dup(), incoming)
        self.peers.append(peer)
        return peer

    def wait_ended(self, limit_s: float = 20.0) -> int:
        return self.process.wait(limit_s)

    def said(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@contextmanager
def wired(*, born: bool = True, **fields: Any) -> Iterator[Wired]:
    with tempfile.TemporaryDirectory(prefix="biruda-test-") as name:
        directory = Path(name)
        values: dict[str, Any] = {"room_path": "", "memory_room_bytes": 32 << 20, **fields}
        opening = opening_of(directory, **values)
        ours, theirs = socket.socketpair()
        argv = [sys.executable, "-m", "biruda", "--worker"]
        with theirs:
            process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
        worker = Wired(opening, directory, process, ours)
        try:
            if born:
                ours.sendall(birth(opening))
            yield worker
        finally:
            ours.close()
            for peer in worker.peers:
                peer.close()
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def test_the_opening_comes_over_the_wire_and_lines_before_it_do_not_count() -> None:
    with wired(born=False, guess=True) as worker:
        worker.ours.sendall(b"Welcome to this host\n\n\xff\xfe\n" + birth(worker.opening))
        hello = worker.attach().attach()
        assert (hello.worker, hello.nonce, hello.pid) == ("w1", NONCE, worker.process.pid)
        assert hello.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert hello.facts is not None
        assert hello.arch == hello.facts.arch
        assert b"nonce" not in Path(f"/proc/{worker.process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"biruda-opening 99 {}\n", f"speaks protocol 99, this worker {PROTOCOL}; run the same version"),
        (b"biruda-opening 2 {\n", "the opening is no JSON"),
        (b'biruda-opening 2 {"new": 1}\n', "the opening does not fit this worker"),
        (b"x" * 70_000, "longer than 65536 bytes"),
        (b"", "nobody is there to tell it what for"),
    ],
)
def test_a_wrong_opening_is_one_sentence(line: bytes, said: str) -> None:
    with wired(born=False) as worker:
        worker.ours.sendall(line)
        worker.ours.shutdown(socket.SHUT_WR)
        assert worker.wait_ended() == 70
        text = worker.said()
        assert text.startswith("biruda: ")
        assert said in text
        assert text.count("\n") == 1


def test_a_job_goes_on_while_coordinators_come_and_go_unseen() -> None:
    """Each leaves half a frame behind, and takes nothing of what the worker says meanwhile."""
    with wired() as worker:
        fifo = worker.directory / "go"
        os.mkfifo(fifo)
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(shell(LINES.format(fifo=fifo))))
        peer.until(lambda: peer.log.size > 1000)
        half = pack(FrameType.DATA, bytes(50_000))
        for cut in (3, 7, 1000, 40_000):
            size, digest = peer.log.size, peer.log.sha256
            peer = worker.attach(before=half[:cut])
            hello = peer.attach()
            assert (hello.job, hello.ended) == (7, False)
            peer.want((0, size))
            peer.log.sha256 = digest
        fifo.write_text("on\n")
        result = peer.result()
        assert result.outcome is Outcome.PASSED
        assert result.log.sha256 == peer.log.sha256.hexdigest()
        peer.record()
        assert worker.wait_ended() == 0


def test_the_result_waits_for_the_log_to_be_asked_for() -> None:
    with wired() as worker:
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(shell("echo hello; sleep 0.2; echo world")))
        peer.until(lambda: peer.log.size == 6)
        worker.ours.sendall(mark_of(NONCE, HANG_UP))
        assert wait_until(lambda: not list(Path(f"/proc/{worker.process.pid}/task").glob("*/children/*")), 1)
        time.sleep(0.5)
        peer = worker.attach()
        assert peer.attach().ended
        peer.pump(0.3)
        assert peer.messages == []
        peer.want((0, 6))
        result = peer.result()
        assert bytes(peer.log.head) == b"world\n"
        assert result.log.bytes == 12


def test_a_backlog_is_kept_and_slows_the_job_when_there_is_no_room() -> None:
    with wired(memory_room_bytes=8 << 20) as worker:
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(python(BLOCKS.format(count=80))))
        peer.until(lambda: peer.log.size > 0)
        size, digest = peer.log.size, peer.log.sha256
        worker.ours.sendall(mark_of(NONCE, HANG_UP))
        time.sleep(0.5)
        peer = worker.attach()
        hello = peer.attach()
        assert hello.log_end - hello.log_start <= 8 << 20
        assert not hello.ended
        peer.want((0, size))
        peer.log.sha256 = digest
        assert peer.result().log.sha256 == blocks_sha256(80)


def test_an_idle_worker_ends_when_the_coordinator_hangs_up() -> None:
    with wired() as worker:
        worker.attach().attach()
        worker.ours.sendall(mark_of(NONCE, HANG_UP))
        assert worker.wait_ended(5) == 0


def test_what_was_said_before_hanging_up_counts() -> None:
    """They come in one read when the coordinator stops just then; else the worker would keep its ended attempt."""
    with wired() as worker:
        peer = worker.attach()
        result = peer.run(shell("echo hello"))
        assert result.outcome is Outcome.PASSED
        recorded = peer.session.message(encode(AttemptRecorded(job=7, attempt=1)))
        worker.ours.sendall(recorded + mark_of(NONCE, HANG_UP))
        assert worker.wait_ended(5) == 0


def test_an_idle_worker_that_nobody_attaches_to_ends_with_its_lease() -> None:
    with wired(lease_s=0.3) as worker:
        assert worker.wait_ended(5) == 0


def test_who_is_not_heard_within_the_lease_is_gone() -> None:
    with wired() as worker:
        peer = worker.attach()
        peer.attach(lease_s=30)
        peer.assign(recipe_of(shell("echo up; sleep 1000")), lease_s=0.5)
        peer.until(lambda: peer.log.size == 3)
        for _ in range(10):
            peer.raw(pack(FrameType.PING))
            peer.pump(0.15)
        assert worker.process.poll() is None
        began_s = time.monotonic()
        assert worker.wait_ended(5) == 0
        assert time.monotonic() - began_s < 2


def test_the_end_of_the_stream_is_the_end_of_the_attempt() -> None:
    with wired() as worker:
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(shell("echo up; sleep 1000")))
        peer.until(lambda: peer.log.size == 3)
        peer.close()
        worker.ours.close()
        assert worker.wait_ended(5) == 0
        assert not (worker.directory / "work").exists()


def test_garbage_ends_a_conversation_and_not_the_attempt() -> None:
    with wired() as worker:
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(shell("echo up; sleep 0.5; echo done")))
        peer.until(lambda: peer.log.size == 3)
        worker.ours.sendall(os.urandom(100_000))
        peer = worker.attach(before=bytes(1000))
        hello = peer.attach()
        assert (hello.job, hello.log_end) == (7, 3)
        peer.want((0, hello.log_start))
        assert peer.result().outcome is Outcome.PASSED


def test_a_mark_that_is_cut_where_a_frame_lacked_as_much_changes_nothing() -> None:
    """The worst place: the first part of the mark completes a message of the coordinator before."""
    with wired() as worker:
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(shell("echo up; sleep 1000")))
        peer.until(lambda: peer.log.size == 3)
        cancel = encode(Cancel(job=7, attempt=1, outcome="cancelled", reason="it must not come to this"))
        for lacking in (1, 10, 30):
            mark, incoming = connect(NONCE)
            worker.ours.sendall(peer.session.message(cancel)[:-lacking] + mark[:lacking])
            time.sleep(0.05)  # the worker has read that
            worker.ours.sendall(mark[lacking:])
            peer = Peer(worker.ours.dup(), incoming)
            worker.peers.append(peer)
            assert peer.attach().job == 7


@pytest.fixture
def port(tmp_path: Path) -> Iterator[tuple[Path, Path, int]]:
    """A worker on two FIFOs that end when nobody has them open, as a port of a virtual machine does."""
    to_worker, from_worker = tmp_path / "in", tmp_path / "out"
    os.mkfifo(to_worker)
    os.mkfifo(from_worker)
    code = (
        "import os, sys\n"
        "from biruda.worker.entry import read_opening\n"
        "from biruda.worker.serve import serve_over\n"
        "read_fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)\n"
        "write_fd = os.open(sys.argv[2], os.O_RDWR | os.O_NONBLOCK)\n"
        "serve_over(read_fd, write_fd, read_opening(read_fd, reopens=True), reopens=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, to_worker, from_worker], stdin=subprocess.DEVNULL)
    yield to_worker, from_worker, process.pid
    process.kill()
    process.wait()


class Ends:
    """The other side of a port, with as much of a socket as a peer needs."""

    def __init__(self, to_worker: Path, from_worker: Path) -> None:
        self._out = os.open(to_worker, os.O_WRONLY)
        self._in = os.open(from_worker, os.O_RDONLY | os.O_NONBLOCK)

    def setblocking(self, flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return self._in

    def recv_into(self, buffer: memoryview) -> int:
        data = os.read(self._in, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes) -> int:
        return os.write(self._out, data)

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._out, data) :]

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)


def test_a_port_that_is_closed_and_opened_again_is_no_end(port: tuple[Path, Path, int], tmp_path: Path) -> None:
    to_worker, from_worker, pid = port
    opening = opening_of(tmp_path, room_path="")
    size = 0
    for turn in range(3):
        ends: Any = Ends(to_worker, from_worker)
        mark, incoming = connect(NONCE)
        ends.sendall((birth(opening) if turn == 0 else b"") + mark)
        peer = Peer(ends, incoming)
        hello = peer.attach()
        if turn == 0:
            peer.assign(recipe_of(shell("i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.05; done")))
        else:
            assert (hello.job, hello.ended) == (7, False)
            peer.want((0, size))
        peer.until_size(size + 1)
        size = peer.log.size
        ends.close()
    before = _cpu_s(pid)
    time.sleep(0.3)
    assert _cpu_s(pid) - before < 0.2, "it does not rest while nobody is there"


def test_a_port_that_rests_is_looked_at_again(tmp_path: Path) -> None:
    """The rest may be over between the look at what is polled and the look at the clock, as on a slow processor."""
    read_fd, write_fd = os.pipe()
    try:
        wire = Wire(read_fd, write_fd, NONCE, reopens=True)
        worker = Worker(None, wire, opening_of(tmp_path, room_path="", lease_s=1000), -1)
        wire.rests_until_s = time.monotonic() + 0.01
        assert read_fd not in worker._descriptors()
        time.sleep(0.02)
        assert worker._timeout_ms() == 0
        assert read_fd in worker._descriptors()
    finally:
        os.close(read_fd)
        os.close(write_fd)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the pieces


@given(st.binary(max_size=200), st.binary(max_size=200), st.data())
def test_an_incoming_connection_begins_behind_its_echo_however_it_is_cut(
    before: bytes, after: bytes, data: st.DataObject
) -> None:
    number = bytes(range(CONNECTION_BYTES))
    whole = before + echo_of(NONCE, number) + after
    incoming = Incoming(NONCE, number)
    got = b"".join(incoming.feed(piece) for piece in _cut(whole, data))
    assert got == after


@given(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=60)), max_size=8), st.data())
def test_the_streams_of_a_container_are_told_apart_however_they_are_cut(
    pieces: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    whole = b"".join(bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for stream, text in pieces)
    decoder = Demultiplexer()
    got = b"".join(decoder.feed(piece) for piece in _cut(whole, data))
    assert got == b"".join(text for stream, text in pieces if stream == 1)


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5), st.data())
def test_a_wire_gives_each_connection_what_was_said_on_it_however_it_is_cut(
    said: list[bytes], data: st.DataObject
) -> None:
    read_fd, write_fd = os.pipe()
    numbers = [bytes([index + 1]) * CONNECTION_BYTES for index in range(len(said))]
    whole = b"".join(mark_of(NONCE, number) + text for number, text in zip(numbers, said, strict=True))
    try:
        wire = Wire(read_fd, read_fd, NONCE)
        last, got = None, b""
        buffer = memoryview(bytearray(1 << 16))
        for piece in _cut(whole, data):
            os.write(write_fd, piece)
            while select.select([read_fd], [], [], 0)[0]:
                try:
                    last, _ = wire.accept()
                    got = b""
                except BlockingIOError:
                    pass
                if last is not None:
                    try:
                        got += bytes(buffer[: last.recv_into(buffer)])
                    except BlockingIOError:
                        pass
        # the beginning of a mark that did not come as a whole yet may stand at the end of what an older one was given
        assert got == said[-1]
    finally:
        os.close(read_fd)
        os.close(write_fd)


def _cut(whole: bytes, data: st.DataObject) -> list[bytes]:
    places = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=6)))
    edges = [0, *places, len(whole)]
    return [whole[start:end] for start, end in pairwise(edges) if end > start]


def test_a_mark_says_nothing_about_the_nonce() -> None:
    mark = mark_of(NONCE, HANG_UP)
    assert NONCE.encode() not in mark
    assert mark != mark_of("another", HANG_UP)
    assert echo_of(NONCE, HANG_UP) not in mark
    assert hashlib.sha256(NONCE.encode()).digest() not in mark


def test_an_opening_survives_its_line() -> None:
    from biruda.convert import decode
    from biruda.wire import opening_of_line

    opening = replace(opening_of(Path("/d")), variables={"A": "b\nc é"}, user="x")
    assert decode(Opening, opening_of_line(birth(opening))) == opening
    assert birth(opening).count(b"\n") == 1


def test_killed_in_the_middle_of_a_frame_no_byte_is_lost_or_doubled() -> None:
    """A coordinator that stops reading wherever it is, again and again."""
    chance = random.Random(7)
    with wired() as worker:
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(python(BLOCKS.format(count=60))))
        size, digest = 0, hashlib.sha256()
        for _ in range(12):
            peer.until_size(peer.log.size + chance.randrange(1 << 20))
            size, digest = peer.log.size, peer.log.sha256
            peer = worker.attach(before=os.urandom(chance.randrange(100)))
            peer.attach()
            peer.want((0, size))
            peer.log.sha256 = digest
        result = peer.result()
        assert result.log.sha256 == blocks_sha256(60) == digest.hexdigest()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_directory_that_is_not_the_workers_is_not_touched(is_link: bool, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    work = tmp_path / ("link" if is_link else "mine")
    with wired(work=str(work)) as worker:
        assert worker.wait_ended() == 70
        assert f"{work} is there already, and a worker would remove what is in it" in worker.said()
    assert (work / "precious").read_text() == "x"


def test_an_idle_worker_leaves_an_empty_directory_that_it_finds_alone(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with wired(work=str(work)) as worker:
        worker.attach().attach()
        time.sleep(0.3)  # a fresh worker has rehearsed
        assert work.is_dir()


def test_signals_of_a_terminal_do_not_end_it() -> None:
    with wired() as worker:
        worker.attach().attach()
        worker.process.send_signal(signal.SIGINT)
        worker.process.send_signal(signal.SIGHUP)
        assert worker.attach().attach().worker == "w1"


def test_data_of_a_source_that_did_not_come_as_a_whole_is_told() -> None:
    with wired() as worker:
        peer = worker.attach()
        peer.attach()
        peer.assign(recipe_of(shell("true")), source="0" * 64)
        peer.raw(peer.session.data(DataHeader(7, 1, 0, 0), bytes(512)))
        assert wait_until(lambda: (worker.directory / "work").exists())
        peer = worker.attach()
        assert peer.attach().awaits_source
