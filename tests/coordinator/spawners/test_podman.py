"""Podman's socket, which speaks Docker's API: a job runs there, or the kind says in Podman's words why none can."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from biruda.config import Environment
from biruda.coordinator.spawners.docker import DockerSpawner
from biruda.coordinator.spawners.host import Host
from biruda.model import Kind, Outcome
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import need_root
from tests.dockerd import Dockerd, need_worker
from tests.worker.peer import wait_until

pytestmark = pytest.mark.slow  # Podman is not among the packages that all tests need


@pytest.fixture
def podman() -> Iterator[Dockerd]:
    """Its service, with data of its own."""
    need_root()
    need_worker()
    if shutil.which("podman") is None or shutil.which("runc") is None:
        pytest.skip("no podman or runc: apt-get install podman runc")
    directory = Path(tempfile.mkdtemp(prefix="biruda-podman-"))
    places = ["--root", f"{directory}/data", "--runroot", f"{directory}/run", "--storage-driver", "vfs"]
    argv = ["podman", *places, "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
    daemon = Dockerd(directory)
    with daemon.log.open("wb") as log:
        process = subprocess.Popen(
            [*argv, "system", "service", "--time", "0", f"unix://{daemon.socket}"], stdout=log, stderr=log
        )
    try:
        assert wait_until(lambda: os.path.exists(daemon.socket), 30), daemon.log.read_text()
        yield daemon
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


async def test_a_job_runs_there_or_podman_says_why_not(
    podman: Dockerd, host: Host, tiny_root: Path, tmp_path: Path
) -> None:
    there = replace(host, docker_socket=podman.socket)
    spawner = DockerSpawner(there)
    capability = await spawner.probe()
    if not capability.usable:
        assert capability.reason.startswith("environment probe: Docker does not start its container: ")
        assert "\n" not in capability.reason
        assert podman.containers() == []
        pytest.skip(f"Podman cannot start a container here: {capability.reason}")
    podman.import_tree(tiny_root, "biruda-tests/tiny")
    kit = Kit(there, spawner, Environment(name="pod", kind=Kind.DOCKER, image="biruda-tests/tiny"), tmp_path)
    worker = await kit.make()
    result = await worker.run("hostname; cat /proc/1/comm")
    assert (result.outcome, worker.output) == (Outcome.PASSED, "pod\n.biruda\n")
    await kit.close()
    assert wait_until(lambda: podman.containers() == [], 10)
