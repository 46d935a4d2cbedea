"""What belongs to a tree, without git."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
from sourcetrees import as_nobody, make_tree, packed

from biruda.errors import UserError
from biruda.sourcepack.tree import walk


def names_in(directory: Path) -> list[bytes]:
    return [found.path for found in walk(directory).found]


def test_paths_are_sorted_as_bytes_and_empty_directories_belong(tmp_path: Path) -> None:
    make_tree(tmp_path, {"a/z": "", "a-b": "", "B": "", "a/c/x": "", "empty/er": None})
    assert names_in(tmp_path) == [b"B", b"a", b"a-b", b"a/c", b"a/c/x", b"a/z", b"empty", b"empty/er"]


def test_gitignore_files_count_outside_of_git_too(tmp_path: Path) -> None:
    make_tree(tmp_path, {".gitignore": "*.o\n", "a.o": "", "sub/.gitignore": "!b.o\n", "sub/b.o": "", "sub/c.o": ""})
    assert names_in(tmp_path) == [b".gitignore", b"sub", b"sub/.gitignore", b"sub/b.o"]


def test_birudaignore_has_the_last_word(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            ".gitignore": "generated/\n*.o\n",
            ".birudaignore": "!/generated/\n/movies/\n",
            "generated/parser.c": "",
            "generated/parser.o": "",
            "movies/large": "",
            "sub/.birudaignore": "!x.o\n",
            "sub/x.o": "",
            "sub/y.o": "",
        },
    )
    names = [
        b".birudaignore",
        b".gitignore",
        b"generated",
        b"generated/parser.c",
        b"sub",
        b"sub/.birudaignore",
        b"sub/x.o",
    ]
    assert names_in(tmp_path) == names


def test_git_directories_never_belong(tmp_path: Path) -> None:
    make_tree(tmp_path, {".git/config": "", "sub/.git": "gitdir: elsewhere", "sub/a": "", ".gitignore": "!.git\n"})
    assert names_in(tmp_path) == [b".gitignore", b"sub", b"sub/a"]


def test_ignore_files_that_are_no_files_have_no_rules(tmp_path: Path) -> None:
    make_tree(tmp_path, {"rules": "a\n", "a": "", "sub/.gitignore/x": "", "sub/a": ""})
    (tmp_path / ".gitignore").symlink_to("rules")
    assert b"a" in names_in(tmp_path)
    assert b"sub/.gitignore/x" in names_in(tmp_path)


def test_what_no_pack_can_hold_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, {"src/a": "", ".gitignore": "ignored.sock\n"})
    os.mkfifo(tmp_path / "src" / "pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    for name in ("src/agent.sock", "ignored.sock"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(name)
    tar, summary = packed(tmp_path)
    assert summary.skipped == ("src/agent.sock: a socket; left out", "src/pipe: a fifo; left out")
    assert summary.files == 2
    assert b"agent.sock" not in tar


@pytest.mark.parametrize("what", ["secret.txt", "closed"])
def test_what_cannot_be_read_is_named(what: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = make_tree(Path(name), {"closed/a": "", "secret.txt": "s"})
        root.chmod(0o755)
        (root / what).chmod(0)
        with as_nobody(), pytest.raises(UserError, match=rf"^{what}: cannot be packed: Permission denied") as caught:
            packed(root)
        assert ".birudaignore" in caught.value.hint
        (root / what).chmod(0o755)


def test_only_directories_can_be_packed(tmp_path: Path) -> None:
    make_tree(tmp_path, {"file": ""})
    for name in ("file", "nothing"):
        with pytest.raises(UserError, match=rf"{name}: not a directory"):
            packed(tmp_path / name)
