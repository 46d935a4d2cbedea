"""Where the executables run: containers. A Docker daemon of the tests' own; it fetches no image: they are imported."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.coordinator.spawners.support import busybox_root
from tests.dockerd import Dockerd, docker_daemon
from tests.static.conftest import OWN_ARCH
from tests.static.places import Place
from tests.static.test_places import check_worker

HARDENED = ("--read-only", "--user=1000:1000", "--cap-drop=ALL", "--security-opt=no-new-privileges")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Dockerd]:
    with docker_daemon() as running:
        yield running


@dataclass(frozen=True, slots=True)
class Image:
    """An imported one, and the daemon's socket."""

    socket: str
    name: str


@pytest.fixture(scope="module")
def image(daemon: Dockerd, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Busybox alone."""
    root = busybox_root(tmp_path_factory.mktemp("image") / "root")
    (root / "tmp").chmod(0o1777)  # which runc gives a tmpfs there too, whatever its options say
    return Image(daemon.socket, daemon.import_tree(root, "busybox"))


@pytest.fixture(scope="module")
def scratch_image(daemon: Dockerd) -> Image:
    """Nothing at all."""
    return Image(daemon.socket, daemon.import_tree(None, "scratch"))


def place(image: Image, file: Path, *options: str, tool: str = "") -> Place:
    mount = f"type=bind,source={os.path.realpath(file)},target=/it,readonly"
    docker = ("docker", f"--host=unix://{image.socket}", "run", "--rm", "--interactive", "--network=none")
    return Place((*docker, "--mount", mount, *options, image.name, "/it"), tool)


def check(where: Place) -> None:
    done = where.run("--guess-env", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["arch"] == OWN_ARCH


@pytest.mark.parametrize("kind", ["worker", "executable"])
def test_a_container_as_it_comes(kind: str, image: Image, request: pytest.FixtureRequest) -> None:
    where = place(image, request.getfixturevalue(kind), tool="busybox uname -m")
    check(where)
    check_worker(where)


@pytest.mark.parametrize("kind", ["worker", "executable"])
def test_a_scratch_image(kind: str, scratch_image: Image, request: pytest.FixtureRequest) -> None:
    check(place(scratch_image, request.getfixturevalue(kind)))


@pytest.mark.parametrize("options", [("--read-only",), HARDENED], ids=["read-only", "hardened"])
def test_nothing_can_be_written(options: tuple[str, ...], image: Image, scratch_image: Image, worker: Path) -> None:
    check(place(image, worker, *options))
    check(place(scratch_image, worker, *options))


def test_a_hardened_container_runs_its_own_tools(image: Image, worker: Path) -> None:
    where = place(image, worker, *HARDENED, "--tmpfs=/tmp:mode=1777", tool="busybox uname -m")
    check_worker(where)


def test_the_executable_refuses_where_it_cannot_unpack(image: Image, executable: Path) -> None:
    done = place(image, executable, "--read-only").run("--guess-env")
    assert done.returncode == 125
    assert "BIRUDA_CACHE" in done.stderr


def test_the_executable_where_only_a_tmpfs_can_be_written(image: Image, executable: Path) -> None:
    check(place(image, executable, "--read-only", "--tmpfs=/tmp:exec,mode=1777"))
