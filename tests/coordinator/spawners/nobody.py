"""What a user without rights gets: run by a test as such a user, prints one line of JSON."""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from biruda.config import Environment, Network
from biruda.coordinator.spawners import SPAWNERS
from biruda.coordinator.spawners.host import Host, open_host
from biruda.errors import EnvironmentFault
from biruda.model import Kind, Limits
from tests.coordinator.spawners.making import Kit
from tests.worker.peer import marked, wait_until


async def report(host: Host, kind: Kind, root: str, directory: Path) -> dict[str, Any]:
    kit = Kit(host, SPAWNERS[kind](host), Environment(name="here", kind=kind, root=root), directory)
    capability = await kit.spawner.probe()
    said: dict[str, Any] = {"usable": capability.usable, "reason": capability.reason}
    if not capability.usable:
        return said
    worker = await kit.make()
    result = await worker.run("id -u; echo x > f && cat f; touch /etc/new; ls /dev; grep CapEff /proc/self/status")
    said |= {"outcome": result.outcome, "output": worker.output}
    daemon, seconds = await kit.make(), f"7654321.{os.getpid()}"
    await daemon.begin(f"setsid sh -c 'sleep {seconds} & sleep {seconds}' & echo ready; wait")
    said["daemons"] = wait_until(lambda: len(marked(seconds)) >= 2)
    await kit.spawner.kill(daemon.place)
    said["left"] = marked(seconds)
    said["faults"] = await faults_of(kit, daemon)
    await kit.close()
    said["directories"] = os.listdir(directory)
    return said


async def faults_of(kit: Kit, worker: Any) -> list[str]:
    said = []
    for change in ({"user": "root"}, {"network": Network.BRIDGE}, {"memory_bytes": 1 << 26}):
        values = {"name": "here", "kind": kit.kind, "root": kit.environment.root, **change}
        try:
            await kit.spawner.prepare(Environment(**values))
        except EnvironmentFault as fault:
            said.append(str(fault))
    try:
        await kit.spawner.limit(worker.place, Limits(pids=10))
    except EnvironmentFault as fault:
        said.append(str(fault))
    return said


async def main(kind: Kind, root: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with open_host(f"nobody-{os.getpid()}") as host:
            print(json.dumps(await report(host, kind, root, Path(directory))))


if __name__ == "__main__":
    asyncio.run(main(Kind(sys.argv[1]), sys.argv[2]))
