"""The command line as a process, and a small master that it talks to."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_master import FakeMaster

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a test's commands see of the environment: this home and no other."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home.parent),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "BIRUDA_HOME": str(home),
        **more,
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that is not there yet, in a directory that is the user's."""
    return tmp_path / "home"


@pytest.fixture
def master(home: Path) -> Iterator[FakeMaster]:
    """A master that answers at the home."""
    fake = FakeMaster(home)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start a command; it is killed at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def starter(*arguments: str, **env: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "biruda", *arguments],
            env=environment(home, **env),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield starter
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def biruda(home: Path, tmp_path: Path) -> Run:
    """Run a command to its end."""

    def run(*arguments: str, cwd: Path = tmp_path, **env: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "biruda", *arguments],
            env=environment(home, **env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        stdout, stderr = (part.decode("utf-8", "surrogateescape") for part in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)

    return run
