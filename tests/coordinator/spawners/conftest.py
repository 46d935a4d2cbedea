import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from biruda.config import Environment
from biruda.coordinator.spawners import SPAWNERS
from biruda.coordinator.spawners.host import Host, open_host
from biruda.model import Kind
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import busybox_root, new_instance
from tests.dockerd import Dockerd, docker_daemon, need_worker
from tests.system.sshd import SshHost, hosts
from tests.system.sshd import needs as needs_sshd

TINY_IMAGE = "biruda-tests/tiny"


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("roots") / "tiny")


@pytest.fixture(scope="session")
def dockerd(tiny_root: Path) -> Iterator[Dockerd]:
    """A daemon of these tests' own, with an image of the tiny root."""
    need_worker()
    with docker_daemon() as daemon:
        daemon.import_tree(tiny_root, TINY_IMAGE)
        yield daemon


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHost]:
    """A host that ssh reaches, at a port of this one."""
    need_worker()
    needs_sshd()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = SshHost("there", tmp_path_factory.mktemp("sshd"), "127.0.0.1", (), port=port)
    with hosts(there):
        yield there


@pytest.fixture
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Host]:
    errors = tmp_path / "errors"
    kind = request.node.callspec.params.get("kit") if hasattr(request.node, "callspec") else None
    wants_docker = kind is Kind.DOCKER or "docker" in request.fixturenames
    docker_socket = request.getfixturevalue("dockerd").socket if wants_docker else "/nowhere"
    async with open_host(new_instance(), errors=str(errors), docker_socket=docker_socket) as host:
        yield host
    assert errors.read_text() == ""
    if host.cgroups.unified:
        assert not os.path.exists(host.cgroups.unified), "the instance left a cgroup"


@pytest.fixture(params=[Kind.THREAD, Kind.PROCESS, Kind.CHROOT, Kind.DOCKER, Kind.SSH])
async def kit(request: pytest.FixtureRequest, host: Host, tmp_path: Path) -> AsyncIterator[Kit]:
    """Each kind in turn."""
    kit = kit_of(host, request.param, tmp_path, request)
    yield kit
    await kit.close()


@pytest.fixture
async def chroot(request: pytest.FixtureRequest, host: Host, tmp_path: Path) -> AsyncIterator[Kit]:
    kit = kit_of(host, Kind.CHROOT, tmp_path, request)
    yield kit
    await kit.close()


@pytest.fixture
async def process(request: pytest.FixtureRequest, host: Host, tmp_path: Path) -> AsyncIterator[Kit]:
    kit = kit_of(host, Kind.PROCESS, tmp_path, request)
    yield kit
    await kit.close()


@pytest.fixture
async def docker(request: pytest.FixtureRequest, host: Host, tmp_path: Path) -> AsyncIterator[Kit]:
    kit = kit_of(host, Kind.DOCKER, tmp_path, request)
    yield kit
    await kit.close()


def kit_of(host: Host, kind: Kind, directory: Path, request: pytest.FixtureRequest) -> Kit:
    root = str(request.getfixturevalue("tiny_root")) if kind is Kind.CHROOT else ""
    image = TINY_IMAGE if kind is Kind.DOCKER else ""
    environment = Environment(name="here", kind=kind, root=root, image=image)
    if kind is Kind.SSH:
        there = request.getfixturevalue("sshd")
        environment = replace(
            environment,
            host=f"root@{there.address}:{there.port}",
            identity=str(there.identity),
            known_hosts=str(there.known_hosts),
        )
    return Kit(host, SPAWNERS[kind](host), environment, directory)
