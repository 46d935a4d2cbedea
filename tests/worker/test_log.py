"""Every byte of a log arrives once, and memory stays bounded whoever is slow."""

import hashlib
import os
import select
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from biruda.messages import AttemptEnded, Notice
from biruda.model import Outcome
from tests.worker import namespaces
from tests.worker.peer import Worker, python, recipe_of, shell, start_process, start_thread, wait_until

Start = Callable[..., Worker]
rooms = pytest.mark.parametrize("room", [{}, {"room_path": ""}], ids=["file", "memory"])
GROWTH_BYTES = 12 << 20  # 8 MiB are the aim; what the allocator keeps comes on top

BLOCKS = """
import os
from hashlib import sha256
block = b"".join(sha256(b"%d" % n).digest() for n in range(8192))
for n in range({count}):
    view = memoryview(block)
    while view: view = view[os.write(1, view):]
"""


def blocks_sha256(count: int) -> str:
    block = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(8192))
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(block)
    return digest.hexdigest()


@rooms
@pytest.mark.parametrize("start", [start_process, start_thread], ids=["process", "thread"])
def test_50_mb_arrive_byte_for_byte(start: Start, room: dict[str, str]) -> None:
    with start(**room) as worker:
        worker.peer.attach()
        before = worker.rss_bytes() if worker.pid else 0
        worker.peer.assign(recipe_of(python(BLOCKS.format(count=200))))
        result = worker.peer.result()
        assert result.outcome is Outcome.PASSED
        assert result.log.bytes == 200 << 18
        assert result.log.sha256 == blocks_sha256(200)
        if worker.pid:
            assert worker.rss_bytes() - before < GROWTH_BYTES
        if not room:
            (path,) = worker.directory.glob("log.*")
            with open(path, "rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == result.log.sha256


def test_a_job_with_a_file_is_not_slowed_by_a_slow_reader() -> None:
    with start_process() as worker:
        worker.peer.attach()
        before = worker.rss_bytes()
        worker.peer.reads = False
        worker.peer.assign(recipe_of(python(BLOCKS.format(count=200)), shell("touch ../done")))
        assert wait_until((worker.directory / "done").exists)
        assert worker.rss_bytes() - before < GROWTH_BYTES
        worker.peer.reads = True
        assert worker.peer.result().log.sha256 == blocks_sha256(200)
        assert worker.rss_bytes() - before < GROWTH_BYTES


def test_a_job_without_a_file_waits_for_a_slow_reader() -> None:
    with start_process(room_path="") as worker:
        worker.peer.attach()
        before = worker.rss_bytes()
        worker.peer.reads = False
        worker.peer.assign(recipe_of(python(BLOCKS.format(count=200) + "open('../done', 'w')"), silence_s=0.3))
        assert wait_until(lambda: worker.rss_bytes() - before > 4 << 20)
        select.select([], [], [], 0.5)  # longer than the silence limit: it is not the job that is silent
        assert not (worker.directory / "done").exists()
        assert worker.rss_bytes() - before < GROWTH_BYTES
        worker.peer.reads = True
        result = worker.peer.result()
        assert result.outcome is Outcome.PASSED
        assert result.log.sha256 == blocks_sha256(200)


def test_a_peer_that_takes_and_never_acknowledges_costs_no_memory() -> None:
    text = "import os\nfor n in range(30000): os.write(1, b'x')\n"
    with start_process() as worker:
        worker.peer.attach()
        before = worker.rss_bytes()
        worker.peer.acknowledges = False  # but answers a PING
        worker.peer.assign(recipe_of(python(text)))
        worker.peer.until(lambda: worker.peer.of(AttemptEnded))
        assert worker.rss_bytes() - before < 4 << 20
        assert worker.peer.result().log.bytes == 30000


@pytest.mark.slow
def test_one_line_of_300_mb_is_nothing_special() -> None:
    with start_process() as worker:
        worker.peer.attach()
        before = worker.rss_bytes()
        worker.peer.assign(recipe_of(shell("head -c 300000000 /dev/zero | tr '\\0' x")))
        result = worker.peer.result()
        assert result.log.bytes == 300_000_000
        assert worker.rss_bytes() - before < GROWTH_BYTES


def test_the_first_byte_leaves_at_once() -> None:
    with start_process() as worker:
        worker.peer.attach()
        fifo = worker.directory / "go"
        os.mkfifo(fifo)
        worker.peer.assign(recipe_of(shell(f"printf x; read y < {fifo}; printf z")))
        worker.peer.until(lambda: worker.peer.log.size == 1)
        assert not worker.peer.of(AttemptEnded)
        fifo.write_text("\n")
        worker.peer.result()
        assert bytes(worker.peer.log.head) == b"xz"
        assert worker.peer.elapsed_ms == sorted(worker.peer.elapsed_ms)


def test_a_full_disk_pauses_the_job_and_loses_nothing() -> None:
    namespaces.need_root()
    place = Path(tempfile.mkdtemp(prefix="biruda-room-"))

    def in_child() -> None:
        namespaces.unshare(namespaces.NEWNS)
        namespaces.mount("tmpfs", str(place), "size=8m")
        (place / "ballast").write_bytes(bytes(6 << 20))

    try:
        with start_process(in_child=in_child, room_path=str(place / "log")) as worker:
            worker.peer.attach()
            worker.peer.assign(recipe_of(python(BLOCKS.format(count=16)), silence_s=0.3))
            notice = worker.peer.next(Notice)
            expected = "no space left for the log of job 7 (No space left on device); the job is paused until there is"
            assert (notice.job, notice.text) == (7, expected)
            worker.peer.until(lambda: worker.peer.log.size >= 1 << 20)
            assert not worker.peer.of(AttemptEnded)
            os.unlink(f"/proc/{worker.pid}/root{place}/ballast")
            result = worker.peer.result()
            assert (result.outcome, result.log.sha256) == (Outcome.PASSED, blocks_sha256(16))
            assert not worker.peer.of(Notice)
    finally:
        place.rmdir()


def test_a_room_that_cannot_be_made_is_said() -> None:
    with start_process(room_path="/no/such/directory/log") as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(("/bin/echo", "something")))
        result = worker.peer.next(AttemptEnded).result
        assert (result.outcome, result.exit_status) == (Outcome.INFRA, None)
        assert "/no/such/directory/log" in result.reason


def test_a_room_that_is_given_open() -> None:
    fd = os.memfd_create("room") if sys.platform == "linux" else -1
    if fd < 0:
        pytest.skip("no memfd here")
    try:
        with start_process(room_path="", room_fd=fd, reuse=True) as worker:
            worker.peer.attach()
            for job, word in ((1, "first"), (2, "2nd")):
                worker.peer.channels.clear()
                worker.peer.assign(recipe_of(("/bin/echo", word)), job=job)
                worker.peer.result()
                assert os.pread(fd, 100, 0) == f"{word}\n".encode()
                worker.peer.record(job=job)
    finally:
        os.close(fd)
