"""Where the executables run: the half of the matrix that needs no other system's packages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from biruda.model import Outcome
from tests.static.conftest import OWN_ARCH
from tests.static.hello import started
from tests.static.places import NOEXEC_TMP, READ_ONLY, UNPRIVILEGED, WITH_PROC, Maker, Place
from tests.worker.peer import recipe_of, shell, step

MakePlace = Callable[[Maker, Path], Place]


def in_empty(maker: Maker, file: Path) -> Place:
    return maker.place(maker.empty(), file)


def in_empty_with_proc(maker: Maker, file: Path) -> Place:
    return maker.place(maker.empty(), file, mounts=[WITH_PROC])


def in_busybox(maker: Maker, file: Path) -> Place:
    return maker.place(maker.busybox(), file, mounts=[WITH_PROC], tool="busybox uname -m")


def in_musl(maker: Maker, file: Path) -> Place:
    return maker.place(maker.musl(), file, mounts=[WITH_PROC], tool="/bin/tool")


def in_noexec_tmp(maker: Maker, file: Path) -> Place:
    return maker.place(maker.busybox(), file, mounts=[WITH_PROC, NOEXEC_TMP], tool="busybox uname -m")


def in_read_only(maker: Maker, file: Path) -> Place:
    return maker.place(maker.busybox(), file, mounts=[WITH_PROC, READ_ONLY], tool="busybox uname -m")


def unprivileged(maker: Maker, file: Path) -> Place:
    return maker.place(maker.busybox(), file, mounts=[WITH_PROC], user=UNPRIVILEGED, tool="busybox uname -m")


WRITABLE = [in_empty, in_empty_with_proc, in_busybox, in_musl, in_noexec_tmp, unprivileged]


def check_guess(place: Place) -> None:
    """--guess-env says the truth, twice: the second start finds what the first unpacked."""
    for _ in range(2):
        done = place.run("--guess-env", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["arch"] == OWN_ARCH


def check_worker(place: Place) -> None:
    """It says hello, and a step of the root's own tools runs in it, with nothing of ours around it."""
    with started(place.argv, guess=True, work="/tmp/biruda-work") as worker:
        assert worker.hello.arch == OWN_ARCH
        worker.peer.attach()
        if not place.tool:
            worker.peer.assign(recipe_of(step("/bin/none")))
            assert worker.peer.result().outcome in (Outcome.ENVIRONMENT, Outcome.FAILED)
        elif place.tool.startswith("/"):
            worker.peer.assign(recipe_of(step(place.tool)))
            assert worker.peer.result().outcome is Outcome.PASSED, worker.peer.notices()
        else:
            worker.peer.assign(recipe_of(shell(f"{place.tool} && env")))
            assert worker.peer.result().outcome is Outcome.PASSED, bytes(worker.peer.log.head)
            said = bytes(worker.peer.log.head).decode()
            assert "_PYI" not in said
            assert "LD_" not in said
        worker.peer.record()


@pytest.mark.parametrize("make", [*WRITABLE, in_read_only])
def test_the_worker_runs_and_guesses(make: MakePlace, maker: Maker, worker: Path) -> None:
    check_guess(make(maker, worker))


@pytest.mark.parametrize("make", [in_busybox, in_musl, in_noexec_tmp, unprivileged])
def test_the_worker_runs_the_tools_of_the_place(make: MakePlace, maker: Maker, worker: Path) -> None:
    check_worker(make(maker, worker))


@pytest.mark.parametrize("make", WRITABLE)
def test_the_executable_runs_and_guesses(make: MakePlace, maker: Maker, executable: Path) -> None:
    check_guess(make(maker, executable))


@pytest.mark.parametrize("make", [in_busybox, in_musl, unprivileged])
def test_the_executable_is_a_worker_too(make: MakePlace, maker: Maker, executable: Path) -> None:
    check_worker(make(maker, executable))


def test_where_nothing_can_be_written_the_executable_says_so(maker: Maker, executable: Path) -> None:
    done = in_read_only(maker, executable).run("status")
    assert done.returncode == 125
    assert done.stderr.startswith("biruda: there is no directory for its files that is this user's own, writable")
    assert done.stderr.endswith("hint: name a directory of yours for its files with BIRUDA_CACHE\n")
