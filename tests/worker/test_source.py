"""The source pack: unpacked as it comes, wherever the connection was cut, whatever is in it."""

import io
import os
import tarfile
from collections.abc import Callable

import pytest

from biruda.frames import DataHeader
from biruda.messages import StepStarted
from biruda.model import Outcome
from tests.worker.peer import Worker, recipe_of, shell, start_process, start_thread

DIGEST = "0" * 64


def tar_of(*entries: tuple[str, bytes | str | None]) -> bytes:
    """A pack: path and content, a link's target as text, None for a directory."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in entries:
            info = tarfile.TarInfo(path)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    return file.getvalue()[:end] + bytes(1024)  # a pack is not padded to a tape's records


PACK = tar_of(
    ("configure", b"#!/bin/sh\necho configured; cat src/main.c | head -c 5; wc -c < src/main.c\n"),
    ("src", None),
    ("src/link", "main.c"),
    ("src/main.c", b"int main" * 100_000),
)
EXPECTED = b"configured\nint m800000\n"


@pytest.mark.parametrize("start", [start_process, start_thread], ids=["process", "thread"])
def test_a_job_with_its_sources(start: Callable[..., Worker]) -> None:
    with start() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(("./configure",)), source=DIGEST)
        worker.peer.send_source(PACK)
        result = worker.peer.result()
        assert (result.outcome, bytes(worker.peer.log.head)) == (Outcome.PASSED, EXPECTED), result
        worker.peer.record()
        worker.wait_ended()
        assert not worker.work.exists()


def test_no_step_begins_before_the_last_byte() -> None:
    with start_process() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(("./configure",)), source=DIGEST)
        worker.peer.raw(worker.peer.session.data(DataHeader(7, 1, 0, 0), PACK))
        worker.peer.until_acknowledged()  # it is written when it is acknowledged
        assert (worker.work / "src" / "main.c").stat().st_size > 700_000
        assert not worker.peer.of(StepStarted)
        worker.peer.send_source(PACK, start=len(PACK))
        assert worker.peer.result().outcome is Outcome.PASSED


def test_a_cut_transfer_is_sent_again_from_the_start_or_gone_on_with() -> None:
    with start_process() as worker:
        peer = worker.peer
        peer.attach()
        peer.assign(recipe_of(("./configure",)), source=DIGEST)
        for offset in range(0, 300_000, 100_000):
            peer.raw(peer.session.data(DataHeader(7, 1, 0, offset), PACK[offset : offset + 100_000]))
        peer.until_acknowledged()
        peer.close()
        for start in (0, 100_000):
            peer = worker.connect()
            assert peer.attach().job == 7
            peer.want((0, 0))
            peer.assign(recipe_of(("./configure",)), source=DIGEST)
            peer.raw(peer.session.data(DataHeader(7, 1, 0, start), PACK[start : start + 250_000]))
            peer.until_acknowledged()
        peer.send_source(PACK)
        result = peer.result()
        assert (result.outcome, bytes(peer.log.head)) == (Outcome.PASSED, EXPECTED)
        peer.send_source(PACK)  # once more is no harm
        peer.record()
        worker.wait_ended()


def test_a_gap_ends_the_connection_and_not_the_attempt() -> None:
    with start_process() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(("./configure",)), source=DIGEST)
        worker.peer.raw(worker.peer.session.data(DataHeader(7, 1, 0, 512), PACK[512:1024]))
        worker.peer.wait_closed()
        peer = worker.connect()
        peer.attach()
        peer.want((0, 0))
        peer.send_source(PACK)
        assert peer.result().outcome is Outcome.PASSED


HOSTILE = {
    "a way out": tar_of(("../evil", b"x")),
    "an absolute path": tar_of(("/tmp/biruda-evil", b"x")),
    "through a link": tar_of(("a", "/tmp"), ("a/biruda-evil", b"x")),
    "cut off": PACK[:5000],
    "no tar at all": os.urandom(4096),
    "empty": b"",
}


@pytest.mark.parametrize("tar", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_pack_runs_nothing(tar: bytes) -> None:
    with start_process() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell("echo ran")), source=DIGEST)
        worker.peer.send_source(tar)
        result = worker.peer.result()
        assert (result.outcome, result.exit_status, result.steps) == (Outcome.INFRA, None, ())
        assert result.reason
        assert result.log.bytes == 0
        assert not os.path.exists("/tmp/biruda-evil")
        assert not (worker.directory / "evil").exists()
        worker.peer.record()
        worker.wait_ended()


def test_a_pack_of_many_small_files_costs_no_memory() -> None:
    small_files = tar_of(*((f"f{n:05}", b"x" * 100) for n in range(3000)))
    with start_process() as worker:
        worker.peer.attach()
        before = worker.rss_bytes()
        worker.peer.assign(recipe_of(shell("ls | wc -l")), source=DIGEST)
        worker.peer.send_source(small_files, piece=250_000)
        worker.peer.result()
        assert bytes(worker.peer.log.head).strip() == b"3000"
        assert worker.rss_bytes() - before < 6 << 20


def test_sources_belong_to_the_user_who_builds() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    with start_process(user="nobody") as worker:
        os.chmod(worker.directory, 0o755)
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell("./configure && touch src/new && stat -c %U src src/link")), source=DIGEST)
        worker.peer.send_source(PACK)
        assert worker.peer.result().outcome is Outcome.PASSED
        assert bytes(worker.peer.log.head) == EXPECTED + b"nobody\nnobody\n"
