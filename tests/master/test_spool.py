"""The spool: a file appears under its name only when it is whole, whatever happens in between, and however often."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from biruda.errors import ConfigError
from biruda.master import events as ev
from biruda.master import spool as spool_module
from biruda.master import views
from biruda.master.spool import PARTIAL, SMALL_LOG_BYTES, Spool
from biruda.model import Artifact
from tests.fakes import artifact, environment, job_spec, log_info, result

NAME = "amd64-debian12-h1-5"
ARTIFACTS = {"a.deb": b"package", "deep/er/b.txt": b"text"}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def record(log: bytes = b"printed\n", artifacts: tuple[Artifact, ...] = (), *, attempt: int = 1) -> dict[str, Any]:
    placement = ev.Placement(attempt=attempt, host="h1", environment=environment(), assigned_s=1.0, started_s=2.0)
    given = result(log=log, artifacts=artifacts)
    save = ev.SaveAttempt(job=5, spec=job_spec(), submitted_s=1.0, placement=placement, result=given)
    return views.attempt_record(save, [])


def came_in(spool: Spool, log: bytes | None = b"printed\n", artifacts: dict[str, bytes] | None = None) -> None:
    if log is not None:
        spool.partial_log(5, 1).write_bytes(log)
    for path, content in (artifacts or {}).items():
        full = spool.partial_artifacts(5, 1) / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(content)


def full_record() -> dict[str, Any]:
    return record(artifacts=tuple(artifact(path, content) for path, content in ARTIFACTS.items()))


def seen(spool: Spool) -> dict[str, bytes]:
    """Every file that has a final name, with its content."""
    return {
        os.fspath(path.relative_to(spool.directory)): path.read_bytes()
        for path in spool.directory.rglob("*")
        if path.is_file() and PARTIAL not in path.parts
    }


def whole(spool: Spool) -> dict[str, bytes]:
    files = {f"{NAME}.d/{path}": content for path, content in ARTIFACTS.items()}
    json = orjson.dumps(full_record(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return {f"{NAME}.log": b"printed\n", f"{NAME}.json": json, **files}


def left(spool: Spool) -> list[str]:
    return sorted(os.listdir(spool.directory / PARTIAL))


def test_a_spool_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="the spool cannot be made: Not a directory"):
        Spool(tmp_path / "file" / "spool")


def test_publishing_gives_every_file_its_name(spool: Spool) -> None:
    came_in(spool, artifacts=ARTIFACTS)
    assert spool.publish(full_record()) == b"printed\n"
    spool.sync_names()
    spool.sync()
    assert seen(spool) == whole(spool)
    assert left(spool) == []
    assert orjson.loads((spool.directory / f"{NAME}.json").read_bytes()) == full_record()


def test_publishing_twice_changes_nothing(spool: Spool) -> None:
    came_in(spool, artifacts=ARTIFACTS)
    spool.publish(full_record())
    assert spool.publish(full_record()) == b"printed\n"
    assert seen(spool) == whole(spool)
    assert left(spool) == []


def test_artifacts_of_an_attempt_that_was_lost_are_not_left_behind(spool: Spool) -> None:
    came_in(spool, artifacts=ARTIFACTS)
    spool.publish(record())
    assert set(seen(spool)) == {f"{NAME}.log", f"{NAME}.json"}
    assert list((spool.directory / PARTIAL).iterdir()) == []


def test_nothing_printed_is_an_empty_log(spool: Spool) -> None:
    assert spool.publish(record(b"")) == b""
    assert seen(spool)[f"{NAME}.log"] == b""


def test_a_large_log_is_not_handed_back(spool: Spool) -> None:
    large = bytes(SMALL_LOG_BYTES + 1)
    came_in(spool, large)
    assert spool.publish(record(large)) is None
    assert seen(spool)[f"{NAME}.log"] == large
    came_in(spool, large[:-1])
    assert spool.publish(record(large[:-1])) == large[:-1]


class Crash(Exception):
    pass


CALLS = ("replace", "rename", "open", "unlink", "link", "fsync", "mkdir", "rmdir", "write", "pread")


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """The process dies at its n-th call of the system. Before each, no name may stand for less than the whole."""
    state = {"left": -1}

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if state["left"] == 0:
                raise Crash
            state["left"] -= 1
            return real(*args, **more)

        return call

    def begin(count: int) -> None:
        state["left"] = count

    for name in CALLS:
        monkeypatch.setattr(spool_module.os, name, watched(getattr(os, name)))
    yield begin
    state["left"] = -1


def crash_points(spool: Spool, crash_at: Callable[[int], None], prepare: Callable[[], None]) -> Iterator[int]:
    for count in range(200):
        shutil.rmtree(spool.directory)
        (spool.directory / PARTIAL).mkdir(parents=True)
        prepare()
        crash_at(count)
        try:
            spool.publish(full_record())
        except Crash:
            crash_at(-1)
            yield count
        else:
            crash_at(-1)
            assert count > 5
            return
    raise AssertionError("it never ends")


def test_a_crash_anywhere_shows_only_whole_files_and_is_made_good(
    spool: Spool, crash_at: Callable[[int], None]
) -> None:
    for count in crash_points(spool, crash_at, lambda: came_in(spool, artifacts=ARTIFACTS)):
        found, right = seen(spool), whole(spool)
        assert all(found[name] == right[name] for name in found), f"at call {count}"
        in_directory = {name for name in found if name.startswith(f"{NAME}.d/")}
        assert in_directory in (set(), {name for name in right if name.startswith(f"{NAME}.d/")})
        spool.publish(full_record())
        assert seen(spool) == right


def test_a_crash_while_publishing_again_shows_only_whole_files(spool: Spool, crash_at: Callable[[int], None]) -> None:
    """Published and not recorded; then the attempt came in once more after a restart."""

    def prepare() -> None:
        came_in(spool, artifacts=ARTIFACTS)
        spool.publish(full_record())
        came_in(spool, artifacts=ARTIFACTS)

    for count in crash_points(spool, crash_at, prepare):
        found, right = seen(spool), whole(spool)
        assert all(found[name] == right[name] for name in found), f"at call {count}"
        assert {f"{NAME}.log", f"{NAME}.json"} <= set(found)
        in_directory = {name for name in found if name.startswith(f"{NAME}.d/")}
        assert in_directory in (set(), {name for name in right if name.startswith(f"{NAME}.d/")}), f"at call {count}"
        spool.publish(full_record())
        assert seen(spool) == right


def test_a_write_that_takes_only_a_part_goes_on(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a disk does that is nearly full."""
    real = os.write
    monkeypatch.setattr(spool_module.os, "write", lambda fd, data: real(fd, data[:7]))
    came_in(spool, artifacts=ARTIFACTS)
    spool.publish(full_record())
    assert seen(spool) == whole(spool)


def test_a_log_that_is_not_complete_is_measured_where_it_is(spool: Spool) -> None:
    came_in(spool, b"half of")
    expected = log_info(b"half of", complete=False)
    assert spool.log_info(5, 1, NAME) == expected
    spool.publish(record(b"half of"))
    assert spool.log_info(5, 1, NAME) == expected  # the recording failed, and is tried again
    assert spool.log_info(6, 1, "amd64-debian12-h1-6") == log_info(b"", complete=False)


def test_files_that_a_power_cut_took_are_written_again(spool: Spool) -> None:
    (spool.directory / f"{NAME}.log").write_bytes(b"\0\0")
    spool.restore(full_record(), b"printed\n")
    assert seen(spool) == {name: data for name, data in whole(spool).items() if ".d/" not in name}
    assert left(spool) == []


def test_dropping_forgets_what_came_in(spool: Spool) -> None:
    came_in(spool, artifacts=ARTIFACTS)
    spool.drop(5, 1)
    spool.drop(5, 1)
    assert left(spool) == []


def test_a_sweep_keeps_what_is_out_and_nothing_else(spool: Spool) -> None:
    for name in ("5.1.log", "5.2.log", "6.1.log", "amd64-debian12-h1-5.json", "x", "5", "5.x.log", ".log"):
        (spool.directory / PARTIAL / name).touch()
    for name in ("5.1.d", "5.2.d", "6.1.d/deep", "7.1.old"):
        (spool.directory / PARTIAL / name).mkdir(parents=True)
    (spool.directory / f"{NAME}.log").touch()
    spool.sweep(lambda job, attempt: (job, attempt) == (5, 2))
    assert left(spool) == ["5.2.d", "5.2.log"]
    assert list(seen(spool)) == [f"{NAME}.log"]
