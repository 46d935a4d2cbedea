"""Where the executables run: containers. Needs a Docker daemon, and fetches no image: they are imported."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.coordinator.spawners.support import busybox_root
from tests.static.conftest import OWN_ARCH
from tests.static.places import Place
from tests.static.test_places import check_worker

HARDENED = ("--read-only", "--user=1000:1000", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def docker(*arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, check=False, timeout=60)
    if done.returncode != 0:
        raise AssertionError(done.stderr.decode())
    return done.stdout.decode().strip()


@pytest.fixture(scope="module", autouse=True)
def _needs_a_daemon() -> None:
    if shutil.which("docker") is None:
        pytest.skip("needs docker: apt-get install docker.io")
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False, timeout=30)
    if asked.returncode != 0:
        pytest.skip(f"needs a running dockerd: {asked.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Busybox alone."""
    root = busybox_root(tmp_path_factory.mktemp("image") / "root")
    yield from imported(root)


@pytest.fixture(scope="module")
def scratch_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Nothing at all; what is imported must have one entry."""
    root = tmp_path_factory.mktemp("scratch") / "root"
    (root / "empty").mkdir(parents=True)
    yield from imported(root)


def imported(root: Path) -> Iterator[str]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(root, arcname=".")
    digest = docker("import", "-", stdin=packed.getvalue())
    yield digest
    docker("rmi", "--force", digest)


def place(image: str, file: Path, *options: str, tool: str = "") -> Place:
    mount = f"type=bind,source={os.path.realpath(file)},target=/it,readonly"
    argv = ("docker", "run", "--rm", "--interactive", "--network=none", "--mount", mount, *options, image, "/it")
    return Place(argv, tool)


def check(where: Place) -> None:
    done = where.run("--guess-env", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["arch"] == OWN_ARCH


@pytest.mark.parametrize("kind", ["worker", "executable"])
def test_a_container_as_it_comes(kind: str, image: str, request: pytest.FixtureRequest) -> None:
    where = place(image, request.getfixturevalue(kind), tool="busybox uname -m")
    check(where)
    check_worker(where)


@pytest.mark.parametrize("kind", ["worker", "executable"])
def test_a_scratch_image(kind: str, scratch_image: str, request: pytest.FixtureRequest) -> None:
    check(place(scratch_image, request.getfixturevalue(kind)))


@pytest.mark.parametrize("options", [("--read-only",), HARDENED], ids=["read-only", "hardened"])
def test_nothing_can_be_written(options: tuple[str, ...], image: str, scratch_image: str, worker: Path) -> None:
    check(place(image, worker, *options))
    check(place(scratch_image, worker, *options))


def test_a_hardened_container_runs_its_own_tools(image: str, worker: Path) -> None:
    where = place(image, worker, *HARDENED, "--tmpfs=/tmp:mode=1777", tool="busybox uname -m")
    check_worker(where)


def test_the_executable_refuses_where_it_cannot_unpack(image: str, executable: Path) -> None:
    done = place(image, executable, "--read-only").run("--guess-env")
    assert done.returncode == 125
    assert "BIRUDA_CACHE" in done.stderr


def test_the_executable_where_only_a_tmpfs_can_be_written(image: str, executable: Path) -> None:
    check(place(image, executable, "--read-only", "--tmpfs=/tmp:exec,mode=1777"))
