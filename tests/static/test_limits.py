"""Sizes and start times, against packaging/limits.toml."""

import itertools
import shutil
import statistics
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from tests.static.conftest import CHECKOUT
from tests.static.hello import started

LIMITS = tomllib.loads((CHECKOUT / "packaging" / "limits.toml").read_text())
ROUNDS = 15
TRIES = 3  # a start is too slow when it is in each of them


def test_sizes(worker: Path, executable: Path) -> None:
    sizes = LIMITS["size"]
    assert executable.stat().st_size <= sizes["executable"]
    for path in worker.parent.iterdir():
        assert path.stat().st_size <= sizes["worker"], path
    assert len(zstd.compress(worker.read_bytes(), 19)) <= sizes["worker_packed"]


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bare_python() -> None:
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", "pass"], check=True)


def check(name: str, measure: Callable[[], float], rounds: int = ROUNDS) -> None:
    """A median within its limit in milliseconds or as a ratio; the two are measured in turns."""
    limit = LIMITS["start"][name]
    said = []
    for _ in range(TRIES):
        ours, python = [], []
        for _ in range(rounds):
            ours.append(measure())
            python.append(seconds(bare_python))
        took_ms = statistics.median(ours) * 1000
        ratio = statistics.median(ours) / statistics.median(python)
        said.append(f"{took_ms:.1f} ms, {ratio:.1f} times a bare python3")
        if took_ms <= limit["milliseconds"] or ratio <= limit["ratio"]:
            print(f"{name}: {said[-1]}")
            return
    pytest.fail(f"{name}: {'; '.join(said)}; at most {limit['milliseconds']} ms or {limit['ratio']} times")


@pytest.fixture(autouse=True)
def _needs_a_python_to_compare_with() -> None:
    if shutil.which("/usr/bin/python3") is None:
        pytest.skip("needs /usr/bin/python3, to tell a slow start from a slow machine")


def test_the_worker_guesses_at_once(worker: Path) -> None:
    check("worker_guess_env", lambda: seconds(lambda: guess(worker, {})))


def test_the_worker_says_hello_at_once(worker: Path) -> None:
    def hello_s() -> float:
        with started([worker], guess=True) as running:
            return running.hello_after_s

    check("worker_hello", hello_s)


def test_the_executable_guesses_at_once(executable: Path, cache: dict[str, str]) -> None:
    guess(executable, cache)
    check("executable_guess_env", lambda: seconds(lambda: guess(executable, cache)))


def test_the_first_start_unpacks_quickly(executable: Path, cache: dict[str, str]) -> None:
    def first_s() -> float:
        # each in a directory of its own: ext4 is slow to make files where as many have just been removed
        fresh = {**cache, "BIRUDA_CACHE": f"{cache['BIRUDA_CACHE']}-{next(numbers)}"}
        return seconds(lambda: guess(executable, fresh))

    numbers = itertools.count()

    check("executable_first_run", first_s, rounds=5)


def guess(executable: Path, env: dict[str, str]) -> None:
    subprocess.run([executable, "--guess-env"], env=env, stdout=subprocess.DEVNULL, check=True)
