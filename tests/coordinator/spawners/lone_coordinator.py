"""A coordinator of one worker, to be killed by a test: says in one line of JSON what it has made, and waits."""

import asyncio
import json
import sys
from pathlib import Path

from biruda.config import Environment
from biruda.convert import encode
from biruda.coordinator.spawners import SPAWNERS
from biruda.coordinator.spawners.host import open_host
from biruda.model import Kind
from tests.coordinator.spawners.making import script
from tests.worker.peer import NONCE, Peer, recipe_of


async def main(kind: Kind, root: str, directory: str, instance: str, lease_s: float, docker_socket: str = "") -> None:
    """root is for kind docker the name of an image."""
    async with open_host(instance, docker_socket=docker_socket) as host:
        spawner = SPAWNERS[kind](host)
        where = {"image": root} if kind is Kind.DOCKER else {"root": root}
        environment = Environment(name="here", kind=kind, **where)
        place = spawner.plan(environment, "w1", NONCE, Path(directory))
        spawned = await spawner.spawn(
            environment, place, await spawner.prepare(environment), lease_s=lease_s, guess=False
        )
        peer = Peer(spawned.connection, spawned.incoming)
        peer.attach(lease_s)
        peer.assign(recipe_of(script("mkfifo go; echo ready; read line < go; echo $line")), lease_s=lease_s)
        peer.until(lambda: b"ready" in bytes(peer.log.head))
        print(json.dumps({"place": encode(spawned.place), "zygote": host.zygote.pid}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Kind(sys.argv[1]), *sys.argv[2:5], float(sys.argv[5]), *sys.argv[6:]))
