"""A directory is gone afterwards, whatever a job made of it."""

import os
import time
from pathlib import Path

import pytest

from biruda.model import Kind
from biruda.process import Account
from biruda.worker.cleanup import WorkDirectory, give_tree, make_directory, remove_tree
from biruda.worker.opening import Opening
from biruda.worker.serve import rehearse


def test_a_tree_with_links_and_closed_directories(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    work = tmp_path / "work"
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "file").write_text("x")
    (work / "link").symlink_to(outside)
    (work / "dangling").symlink_to("nowhere")
    os.mkfifo(work / "fifo")
    (work / os.fsdecode(b"not-utf8-\xff")).write_text("x")
    (work / "a").chmod(0)
    work.chmod(0)
    assert remove_tree(str(work)) == []
    assert not work.exists()
    assert (outside / "kept").read_text() == "kept"


def test_a_tree_deeper_than_a_path_can_be_long(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    fd = os.open(work, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep-directory", dir_fd=fd)
        below = os.open("deep-directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert remove_tree(str(work)) == []
    assert not work.exists()


def test_nothing_there_and_a_link_in_its_place(tmp_path: Path) -> None:
    assert remove_tree(str(tmp_path / "none")) == []
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    assert remove_tree(str(tmp_path / "link")) == []
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_what_cannot_be_removed_is_listed(tmp_path: Path) -> None:
    assert remove_tree("/proc/self/task")


def test_a_new_directory_replaces_an_old_one(tmp_path: Path) -> None:
    work = tmp_path / "x" / "work"
    make_directory(str(work), None)
    (work / "old").mkdir()
    make_directory(str(work), None)
    assert list(work.iterdir()) == []
    assert work.stat().st_mode & 0o777 == 0o755
    account = Account(uid=os.getuid(), gid=os.getgid())
    (work / "link").symlink_to("/etc/passwd")
    give_tree(str(work), account)
    assert Path("/etc/passwd").stat().st_uid == 0


def test_a_kept_directory_is_used_again_only_as_if_new(tmp_path: Path) -> None:
    work = tmp_path / "work"
    make_directory(str(work), None)
    made = work.stat().st_ino
    (work / "file").write_text("x")
    assert remove_tree(str(work), keep=True) == []
    make_directory(str(work), None)
    assert work.stat().st_ino == made
    work.chmod(0o777)
    make_directory(str(work), None)
    assert work.stat().st_mode & 0o7777 == 0o755
    work.rmdir()
    work.symlink_to(tmp_path)
    make_directory(str(work), None)
    assert not work.is_symlink()
    (work / "left").mkdir()
    make_directory(str(work), None)
    assert list(work.iterdir()) == []


def test_a_rehearsal_does_not_touch_a_directory_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of somebody else")
    opening = Opening(worker="w", nonce="n", kind=Kind.PROCESS, work=str(tmp_path))
    rehearse(opening)
    assert (tmp_path / "file").read_text() == "of somebody else"


def spoil(work: Path, how: str) -> None:
    match how:
        case "file":
            (work / "file").write_text("x")
        case "mode":
            work.chmod(0o777)
        case "come and gone":
            (work / "file").write_text("x")
            (work / "file").unlink()
        case "another":
            work.rmdir()
            work.mkdir(mode=0o700)
        case "none":
            work.rmdir()


@pytest.mark.parametrize("how", ["file", "mode", "come and gone", "another", "none", "nothing"])
@pytest.mark.parametrize("settles", [True, False])
def test_each_attempt_finds_a_directory_as_if_new(tmp_path: Path, how: str, settles: bool) -> None:
    work = tmp_path / "work"
    directory = WorkDirectory(str(work), keep=True)
    for _ in range(3):
        directory.make(None)
        assert work.stat().st_mode & 0o7777 == 0o755
        assert list(work.iterdir()) == []
        if settles:  # else what is done to it bears the time at which it was made
            time.sleep(0.06)  # a clock's tick is waited for by nothing else
        spoil(work, how)
        assert directory.clear() == []
        assert not work.exists() or list(work.iterdir()) == []
    if how == "nothing":
        made = work.stat()
        directory.make(None)
        assert work.stat().st_ctime_ns == made.st_ctime_ns


def test_a_directory_that_is_not_kept_goes(tmp_path: Path) -> None:
    directory = WorkDirectory(str(tmp_path / "work"), keep=False)
    directory.make(None)
    assert directory.clear() == []
    assert not (tmp_path / "work").exists()
