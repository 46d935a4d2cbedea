"""`network = "bridge"`: an address of its own for each worker, and the host at the other end."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from biruda.config import Network
from biruda.coordinator.spawners.host import open_host
from biruda.errors import EnvironmentFault
from biruda.model import Kind, Outcome
from tests.coordinator.spawners.conftest import kit_of
from tests.coordinator.spawners.making import Kit
from tests.coordinator.spawners.support import need_root, new_instance

SUBNET = "10.213.77.0/29"


@pytest.fixture
async def bridged(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kit]:
    need_root()
    async with open_host(new_instance(), bridge_subnet=SUBNET) as host:
        kit = kit_of(host, Kind.CHROOT, tmp_path, request)
        kit.environment = replace(kit.environment, network=Network.BRIDGE)
        yield kit
        await kit.close()
        await kit.spawner.reap([])
        assert not os.path.exists(f"/sys/class/net/{host.bridge.name}")


def serve_once(address: str, text: bytes) -> int:
    """A server that says a text to the first who connects; its port."""
    server = socket.create_server((address, 0))

    def answer() -> None:
        with server, server.accept()[0] as connection:
            connection.sendall(text)

    threading.Thread(target=answer, daemon=True).start()
    port: int = server.getsockname()[1]
    return port


async def test_a_job_reaches_the_host_on_the_bridge(bridged: Kit) -> None:
    worker = await bridged.make()
    gateway = bridged.host.bridge.gateway
    port = serve_once(gateway, b"from the host\n")
    result = await worker.run(f"ls /sys/class/net; ip route; nc {gateway} {port} </dev/null")
    assert result.outcome is Outcome.PASSED
    assert worker.output.split()[:2] == ["eth0", "lo"]
    assert f"default via {gateway} dev eth0" in worker.output
    assert "from the host" in worker.output


async def test_addresses_are_given_once_and_given_back(bridged: Kit) -> None:
    facts = await bridged.spawner.prepare(bridged.environment)
    one, two = await asyncio.gather(bridged.make(facts=facts), bridged.make(facts=facts))
    for worker in (one, two):
        await worker.run("ip -4 addr show dev eth0 | grep -o 'inet [0-9./]*'")
    assert {one.output, two.output} == {"inet 10.213.77.2/29\n", "inet 10.213.77.3/29\n"}
    await bridged.spawner.kill(one.place)
    await bridged.spawner.dispose(one.place)
    three = await bridged.make(facts=facts)
    await three.run("ip -4 addr show dev eth0 | grep -o 'inet [0-9./]*'")
    assert three.output == one.output


async def test_a_full_subnet_is_a_fault_and_leaves_nothing(bridged: Kit) -> None:
    facts = await bridged.spawner.prepare(bridged.environment)
    for _ in range(ip_network(SUBNET).num_addresses - 3):
        await bridged.make(facts=facts)
    ports = f"/sys/class/net/{bridged.host.bridge.name}/brif"
    before = set(os.listdir(ports))
    with pytest.raises(EnvironmentFault, match="all addresses are in use"):
        await bridged.make(facts=facts)
    assert set(os.listdir(ports)) == before


async def test_reap_removes_pairs_that_nobody_owns(bridged: Kit) -> None:
    owned, lost = await bridged.make(), await bridged.make()
    sentences = await bridged.spawner.reap([owned.place.worker])
    assert any(lost.place.worker in sentence for sentence in sentences)
    assert not os.path.exists(f"/sys/class/net/{lost.place.veth}")
    assert os.path.exists(f"/sys/class/net/{owned.place.veth}")
    assert all(len(name) <= 15 for name in (owned.place.veth, bridged.host.bridge.name))


async def test_a_subnet_that_the_host_uses_is_refused(
    bridged: Kit, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await bridged.make()
    async with open_host(new_instance(), bridge_subnet=SUBNET) as other_host:
        other = kit_of(other_host, Kind.CHROOT, tmp_path / "other", request)
        with pytest.raises(EnvironmentFault, match=r"has 10\.213\.77\.1/29 already"):
            await other.make(bridged.environment)
