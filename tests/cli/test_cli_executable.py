"""Which executable `deploy` brings, and what it says where none is at hand for the other host's architecture."""

import hashlib
import struct
import sys
from pathlib import Path

import pytest

from biruda.cli import executable
from biruda.cli.executable import find_executable
from biruda.errors import UserError
from biruda.guessenv import guess_here

_MACHINES = {"amd64": 62, "arm64": 183, "riscv64": 243}


def program(path: Path, arch: str) -> Path:
    """A file that is nothing but the header of a static program."""
    head = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    head += struct.pack("<HHIQQQIHHHHHH", 2, _MACHINES[arch], 1, 0, 64, 0, 0, 64, 56, 0, 64, 0, 0)
    path.write_bytes(head)
    return path


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This program is an executable for arm64."""
    path = program(tmp_path / "biruda", "arm64")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("BIRUDA_EXECUTABLE", str(path))
    monkeypatch.setattr(executable, "_built", lambda: None)
    return path


def test_the_one_that_runs_is_brought(frozen: Path) -> None:
    found = find_executable(None, ("arm64", "armhf"))
    assert (found.path, found.arch, found.size_bytes) == (frozen, "arm64", 64)
    assert found.sha256 == hashlib.sha256(frozen.read_bytes()).hexdigest()
    assert b"".join(found.pieces()) == frozen.read_bytes()


def test_a_host_of_another_architecture_is_refused_and_how_to_make_one_is_said(frozen: Path) -> None:
    with pytest.raises(UserError, match="there is no executable of biruda for riscv64 here") as refused:
        find_executable(None, ("riscv64",))
    assert refused.value.hint == (
        "./build-static.sh, run on a host of architecture riscv64, makes dist/biruda for it; bring that one with "
        "--executable FILE"
    )


def test_one_that_was_made_there_is_brought(frozen: Path, tmp_path: Path) -> None:
    made = program(tmp_path / "made", "riscv64")
    assert find_executable(made, ("riscv64",)).path == made
    with pytest.raises(UserError, match="is for riscv64, and that host is amd64") as refused:
        find_executable(made, ("amd64",))
    assert "architecture amd64" in refused.value.hint


def test_from_source_without_one_it_says_what_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "_built", lambda: None)
    with pytest.raises(UserError, match="it runs from source") as refused:
        find_executable(None, (guess_here().arch,))
    assert refused.value.hint == "./build-static.sh makes it"
    with pytest.raises(UserError, match="no executable of biruda for s390x here"):
        find_executable(None, ("s390x",))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such file or directory"):
        find_executable(tmp_path / "none", ("amd64",))
