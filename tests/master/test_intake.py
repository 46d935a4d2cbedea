"""What comes in of an attempt: pieces in any order become exactly the bytes that were sent, or are asked for again."""

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biruda.frames import DataHeader
from biruda.master import intake as intake_module
from biruda.master.intake import Intake, safe_path
from biruda.master.spool import Spool
from biruda.model import Artifact, Outcome
from tests.fakes import artifact, log_info, result

said: list[str] = []


def notice(text: str, job: int) -> None:
    said.append(text)


@pytest.fixture(autouse=True)
def no_notices_yet() -> None:
    said.clear()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def intake(spool: Spool) -> Iterator[Intake]:
    intake = Intake(spool, 5, 1, notice)
    yield intake
    intake.close()


async def give(intake: Intake, offset: int, data: bytes, channel: int = 0, elapsed_ms: int = 0) -> Any:
    return await intake.take(DataHeader(5, 1, channel, offset, elapsed_ms), memoryview(data))


def on_disk(spool: Spool) -> bytes:
    return spool.partial_log(5, 1).read_bytes()


# The log.


async def test_pieces_in_order_are_the_log(intake: Intake, spool: Spool) -> None:
    assert await give(intake, 0, b"one ") is None
    assert await give(intake, 4, b"two") is None
    assert on_disk(spool) == b"one two"
    assert intake.log.size == 7
    assert intake.log.digest.hexdigest() == log_info(b"one two").sha256


async def test_what_came_before_is_dropped_and_an_overlap_cut(intake: Intake, spool: Spool) -> None:
    await give(intake, 0, b"12345")
    assert await give(intake, 0, b"12345") is None
    assert await give(intake, 1, b"23") is None
    assert await give(intake, 3, b"45678") is None
    assert await give(intake, 8, b"") is None
    assert on_disk(spool) == b"12345678"


async def test_a_gap_is_asked_for_once(intake: Intake, spool: Spool) -> None:
    await give(intake, 0, b"12345")
    assert await give(intake, 10, b"x") == (0, 5)
    assert await give(intake, 11, b"y") is None
    assert on_disk(spool) == b"12345"
    await give(intake, 5, b"67890x")
    assert on_disk(spool) == b"1234567890x"
    assert await give(intake, 20, b"z") == (0, 11)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 120)), max_size=20))
async def test_any_pieces_give_a_beginning_of_the_log_and_the_rest_all_of_it(
    spool: Spool, data: bytes, pieces: list[tuple[int, int]]
) -> None:
    spool.drop(5, 1)
    intake = Intake(spool, 5, 1, notice)
    for start, length in pieces:
        asked = await give(intake, start, data[start : start + length])
        assert asked in (None, (0, intake.log.size))
        assert data.startswith(on_disk(spool) if intake.log.size else b"")
    await give(intake, 0, data)
    intake.expect(result(log=data))
    assert intake.log_is_here
    assert not intake.log_differs()
    ended = intake.close()
    assert ended is not None
    assert ended.log == log_info(data)


async def test_a_new_process_goes_on_where_the_last_one_was(intake: Intake, spool: Spool) -> None:
    await give(intake, 0, b"first ")
    intake.close()
    again = Intake(spool, 5, 1, notice)
    assert again.log.size == 6
    await give(again, 6, b"second")
    again.expect(result(log=b"first second"))
    ended = again.close()
    assert ended is not None
    assert ended.log.complete


async def test_large_pieces_are_written_too(intake: Intake, spool: Spool) -> None:
    pieces = [bytes([number]) * (intake_module.INLINE_BYTES + number) for number in range(4)]
    offset = 0
    for piece in pieces:
        await give(intake, offset, piece)
        offset += len(piece)
    assert on_disk(spool) == b"".join(pieces)


async def test_a_cancelled_piece_comes_again_and_is_there_once(
    intake: Intake, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes it is not to be stopped; it has ended before anybody else writes."""
    piece = os.urandom(intake_module.INLINE_BYTES * 3)
    begun, loop, real = asyncio.Event(), asyncio.get_running_loop(), os.pwrite

    def slow(fd: int, data: memoryview, offset: int) -> int:
        loop.call_soon_threadsafe(begun.set)
        return real(fd, data[:1000], offset)

    monkeypatch.setattr(intake_module.os, "pwrite", slow)
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(give(intake, 0, piece))
        await begun.wait()
        taking.cancel()
    await give(intake, 0, piece)
    assert on_disk(spool) == piece
    assert intake.log.digest.hexdigest() == log_info(piece).sha256


async def test_who_follows_is_woken(intake: Intake) -> None:
    async with asyncio.TaskGroup() as tasks:
        for action in (lambda: give(intake, 0, b"x"), lambda: expect(intake), lambda: close(intake)):
            waiting = tasks.create_task(intake.changed.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            await action()
            await waiting


async def expect(intake: Intake) -> None:
    intake.expect(result())


async def close(intake: Intake) -> None:
    intake.close()


async def test_a_log_that_differs_is_asked_for_once_more(intake: Intake, spool: Spool) -> None:
    await give(intake, 0, b"wrong")
    intake.expect(result(log=b"right"))
    assert intake.log_is_here
    assert intake.log_differs()
    assert not intake.log_is_here
    assert on_disk(spool) == b""
    assert await give(intake, 3, b"ht") == (0, 0)
    await give(intake, 0, b"right")
    assert not intake.log_differs()
    ended = intake.close()
    assert ended is not None
    assert ended.log == log_info(b"right")


async def test_a_log_that_differs_twice_is_kept_and_said_to_be_incomplete(intake: Intake) -> None:
    intake.expect(result(log=b"right"))
    for content in (b"wrong", b"WRONG"):
        await give(intake, 0, content)
        assert intake.log_differs() == (content == b"wrong")
    ended = intake.close()
    assert ended is not None
    assert ended.log == log_info(b"WRONG", complete=False)


async def test_more_log_than_was_announced_is_not_complete(intake: Intake) -> None:
    await give(intake, 0, b"longer")
    intake.expect(result(log=b"long"))
    assert intake.log_differs()
    await give(intake, 0, b"longer")
    assert not intake.log_differs()
    ended = intake.close()
    assert ended is not None
    assert (ended.log.bytes, ended.log.complete) == (6, False)


async def test_a_log_that_nobody_calls_complete_is_taken_as_it_is(intake: Intake) -> None:
    await give(intake, 0, b"half")
    intake.expect(replace(result(Outcome.INFRA), log=log_info(b"ha?f", complete=False)))
    assert intake.log_is_here
    assert not intake.log_differs()
    ended = intake.close()
    assert ended is not None
    assert ended.log == log_info(b"half", complete=False)


async def test_closing_ends_it_for_good(intake: Intake, spool: Spool) -> None:
    await give(intake, 0, b"x")
    intake.expect(result(log=b"x", artifacts=(artifact("a", b"a"),)))
    intake.missing()
    first = intake.close()
    assert intake.close() is first
    assert await give(intake, 1, b"y") is None
    assert await give(intake, 0, b"a", channel=1) is None
    assert on_disk(spool) == b"x"
    open_files = {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    assert not [path for path in open_files if path.startswith(os.fspath(spool.directory))]


async def test_an_attempt_without_an_end_has_no_result(intake: Intake) -> None:
    await give(intake, 0, b"x")
    assert not intake.log_is_here
    assert intake.close() is None


async def test_a_log_that_its_host_has_lost_ends_where_it_is(intake: Intake) -> None:
    await give(intake, 0, b"the begin")
    await give(intake, 9, b"")  # of a running attempt it means nothing
    intake.expect(result(log=b"the begin and the end"))
    assert not intake.log_is_here
    await give(intake, 9, b"")
    assert intake.log_is_here
    assert not intake.log_differs()
    ended = intake.close()
    assert ended is not None
    assert ended.log == log_info(b"the begin", complete=False)


# Artifacts.


async def collected(intake: Intake, spool: Spool, given: dict[int, bytes], *artifacts: Artifact) -> dict[str, bytes]:
    """The artifacts that are in the result, with what is on disk."""
    intake.expect(result(artifacts=artifacts))
    for channel, _ in intake.missing():
        await give(intake, 0, given.get(channel, b""), channel=channel)
    ended = intake.close()
    assert ended is not None
    return {item.path: (spool.partial_artifacts(5, 1) / item.path).read_bytes() for item in ended.artifacts}


async def test_artifacts_are_asked_for_and_kept(intake: Intake, spool: Spool) -> None:
    one, two = artifact("a", b"first"), artifact("deep/er/b", b"second")
    intake.expect(result(artifacts=(one, two)))
    assert intake.missing() == [(1, 0), (2, 0)]
    await give(intake, 0, b"fi", channel=1)
    assert intake.missing() == [(1, 2), (2, 0)]
    assert await give(intake, 5, b"x", channel=1) == (1, 2)
    assert await give(intake, 2, b"x", channel=2) == (2, 0)  # each channel is asked for by itself
    await give(intake, 2, b"rst", channel=1)
    await give(intake, 0, b"second", channel=2)
    assert intake.missing() == []
    ended = intake.close()
    assert ended is not None
    assert ended.artifacts == (one, two)
    assert (spool.partial_artifacts(5, 1) / "deep/er/b").read_bytes() == b"second"


async def test_equal_content_is_sent_once_and_has_all_its_names(intake: Intake, spool: Spool) -> None:
    paths = ("a", "b", "c/d")
    intake.expect(result(artifacts=tuple(artifact(path, b"same") for path in paths)))
    assert intake.missing() == [(1, 0)]
    await give(intake, 0, b"same", channel=1)
    assert intake.missing() == []
    ended = intake.close()
    assert ended is not None
    assert [item.path for item in ended.artifacts] == list(paths)
    inodes = {(spool.partial_artifacts(5, 1) / path).stat().st_ino for path in paths}
    assert len(inodes) == 1


async def test_what_a_process_closed_and_did_not_record_is_closed_again(intake: Intake, spool: Spool) -> None:
    contents = {"a": b"same", "b": b"same", "c/empty": b"", "d": b"", "e": b"other"}
    ended = result(artifacts=tuple(artifact(path, data) for path, data in contents.items()))
    intake.expect(ended)
    await give(intake, 0, b"same", channel=1)
    await give(intake, 0, b"other", channel=5)
    assert intake.missing() == []
    intake.close()
    again = Intake(spool, 5, 1, notice)
    again.expect(ended)
    assert again.missing() == []
    kept = again.close()
    assert kept is not None
    assert [item.path for item in kept.artifacts] == list(contents)
    assert {path: (spool.partial_artifacts(5, 1) / path).read_bytes() for path in contents} == contents
    assert said == []


async def test_two_artifacts_of_one_name_and_content_are_one(intake: Intake, spool: Spool) -> None:
    assert await collected(intake, spool, {1: b"x"}, artifact("a", b"x"), artifact("a", b"x")) == {"a": b"x"}
    assert said == ["artifact 'a' of job 5 is left out: another one has its name"]


async def test_empty_files_need_no_bytes(intake: Intake, spool: Spool) -> None:
    assert await collected(intake, spool, {}, artifact("empty"), artifact("also/empty")) == {
        "empty": b"",
        "also/empty": b"",
    }


async def test_a_damaged_artifact_is_left_out_and_said(intake: Intake, spool: Spool) -> None:
    found = await collected(
        intake, spool, {1: b"bad!", 2: b"good"}, artifact("a", b"good?"[:4]), artifact("b", b"GOOD")
    )
    assert found == {}
    assert said == [f"artifact {path!r} of job 5 came damaged and is left out" for path in ("a", "b")]


async def test_an_artifact_that_came_in_part_is_left_out_and_said(intake: Intake, spool: Spool) -> None:
    assert await collected(intake, spool, {1: b"go"}, artifact("a", b"good")) == {}
    assert said == ["artifact 'a' of job 5 came with 2 of 4 bytes and is left out"]


async def test_data_of_no_artifact_is_nothing(intake: Intake) -> None:
    assert await give(intake, 0, b"x", channel=1) is None
    intake.expect(result(artifacts=(artifact("a", b"x"),)))
    assert await give(intake, 0, b"x", channel=2) is None
    assert await give(intake, 0, b"x", channel=2**32 - 1) is None
    assert intake.missing() == [(1, 0)]


HOSTILE = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../up",
    "a/../../up",
    "a/..",
    "nul\0byte",
    "x" * 256,
    "x/" * 600 + "x",
    "surrogate\udc80" + "x" * 250,
]


@pytest.mark.parametrize("path", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_path_is_left_out_and_spoils_nothing(intake: Intake, spool: Spool, path: str) -> None:
    assert not safe_path(path)
    before = sorted(os.listdir(spool.directory.parent))
    bad, good, same = artifact(path, b"bad"), artifact("good", b"good"), artifact("same", b"bad")
    found = await collected(intake, spool, {1: b"bad", 2: b"good", 3: b"bad"}, bad, good, same)
    assert found.pop("same", b"bad") == b"bad"
    assert found == {"good": b"good"}
    assert len(said) >= 1
    assert sorted(os.listdir(spool.directory.parent)) == before


@pytest.mark.parametrize(
    "paths", [("a", "a/b"), ("a/b", "a"), ("a", "a"), ("a", "./a"), ("a//b", "a/b"), ("a/", "a")], ids=str
)
@pytest.mark.parametrize("same", [True, False])
async def test_paths_that_exclude_each_other_leave_the_first(
    intake: Intake, spool: Spool, paths: tuple[str, str], same: bool
) -> None:
    contents = (b"first", b"first" if same else b"other")
    artifacts = [artifact(path, content) for path, content in zip(paths, contents, strict=True)]
    found = await collected(intake, spool, {1: contents[0], 2: contents[1]}, *artifacts)
    assert found == {paths[0]: b"first"}
    assert len(said) == 1


@pytest.mark.parametrize(
    "path", ["a", "a/b", "x.tar.gz", "ünïcode", "with space", "-dash", "a" * 255, "..a", ".hidden"]
)
def test_ordinary_paths_are_safe(path: str) -> None:
    assert safe_path(path)


@given(st.text())
def test_a_safe_path_stays_below_its_directory(path: str) -> None:
    if safe_path(path):
        resolved = os.path.normpath(os.path.join("/base/dir", path))
        assert resolved.startswith("/base/dir/")


# A full disk.


async def test_a_full_disk_delays_and_loses_nothing(
    intake: Intake, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "RETRY_S", 0.0)
    real, failures = os.pwrite, 3

    def full(fd: int, data: memoryview, offset: int) -> int:
        nonlocal failures
        if failures:
            failures -= 1
            real(fd, data[:2], offset)  # a part went through
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(intake_module.os, "pwrite", full)
    await give(intake, 0, b"all of it")
    assert on_disk(spool) == b"all of it"
    assert intake.log.digest.hexdigest() == log_info(b"all of it").sha256
    assert len(said) == 1
    assert "waits until there is room" in said[0]


async def test_other_errors_of_the_disk_are_not_waited_for(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(intake_module.os, "pwrite", broken)
    with pytest.raises(OSError, match="Read-only"):
        await give(intake, 0, b"x")


async def test_who_is_closed_while_he_waits_for_room_waits_no_longer(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "RETRY_S", 0.0)
    tried = asyncio.Event()

    def full(fd: int, data: memoryview, offset: int) -> int:
        tried.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(intake_module.os, "pwrite", full)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
        tasks.create_task(give(intake, 0, b"x"))
        await tried.wait()
        intake.close()


ON_A_TINY_DISK = """
    import asyncio, os, subprocess, sys
    from pathlib import Path
    from biruda.frames import DataHeader
    from biruda.master import intake as module
    from biruda.master.spool import Spool
    from tests.fakes import artifact, log_info, result

    place = sys.argv[1]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], check=True)
    module.RETRY_S = 0.001
    notices = []
    waits = asyncio.Event()
    spool = Spool(Path(place) / "spool")
    intake = module.Intake(spool, 5, 1, lambda text, job: (notices.append(text), waits.set()))
    ballast = Path(place) / "ballast"
    ballast.write_bytes(bytes(150_000))
    data = os.urandom(200_000)

    async def main():
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
            for offset in range(0, len(data), 20_000):
                piece = memoryview(data)[offset : offset + 20_000]
                taking = tasks.create_task(intake.take(DataHeader(5, 1, 0, offset), piece))
                waiting = tasks.create_task(waits.wait())
                await asyncio.wait([taking, waiting], return_when=asyncio.FIRST_COMPLETED)
                if waits.is_set() and ballast.exists():
                    assert not taking.done()
                    ballast.unlink()
                waiting.cancel()
                await taking
        intake.expect(result(log=data, artifacts=(artifact("a", b"x"),)))
        assert intake.log_is_here and not intake.log_differs()

    asyncio.run(main())
    assert not ballast.exists() and len(notices) == 1 and "No space left on device" in notices[0], notices
    assert spool.partial_log(5, 1).read_bytes() == data
    print("whole")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tiny disk needs root")
def test_on_a_real_full_disk_the_log_waits_for_room(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = textwrap.dedent(ON_A_TINY_DISK)
    root = Path(__file__).parents[2]
    child = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", script, tmp_path / "disk"],
        env={**os.environ, "PYTHONPATH": os.fspath(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode and ("unshare failed" in child.stderr or "mount" in child.stderr.splitlines()[-1]):
        pytest.skip(f"no mount namespace here: {child.stderr.splitlines()[-1]}")
    assert child.stdout == "whole\n", child.stderr
