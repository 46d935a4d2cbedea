import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from biruda.config import Environment
from biruda.coordinator.spawners import SPAWNERS
from biruda.coordinator.spawners.host import Host, open_host
from biruda.model import Kind
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import busybox_root, new_instance


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox_root(tmp_path_factory.mktemp("roots") / "tiny")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    errors = tmp_path / "errors"
    async with open_host(new_instance(), errors=str(errors)) as host:
        yield host
    assert errors.read_text() == ""
    if host.cgroups.unified:
        assert not os.path.exists(host.cgroups.unified), "the instance left a cgroup"


@pytest.fixture(params=list(Kind))
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


def kit_of(host: Host, kind: Kind, directory: Path, request: pytest.FixtureRequest) -> Kit:
    root = str(request.getfixturevalue("tiny_root")) if kind is Kind.CHROOT else ""
    environment = Environment(name="here", kind=kind, root=root)
    return Kit(host, SPAWNERS[kind](host), environment, directory)
