"""A kind's test of itself: a real worker is made, heard and unmade."""

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from biruda.config import Environment
from biruda.coordinator.spawners.protocol import Capability, Incoming, Spawned, Spawner
from biruda.errors import EnvironmentFault
from biruda.model import Facts

_LIMIT_S: Final = 15.0
_LEASE_S: Final = 5.0


async def try_out(spawner: Spawner, environment: Environment, facts: Facts, reservation: str = "") -> Capability:
    """Whether a worker of this kind can be made here and says its nonce; `reservation` is the reason when it can."""
    nonce = os.urandom(8).hex()
    with tempfile.TemporaryDirectory(prefix="biruda-probe-") as directory:
        place = spawner.plan(environment, f"probe-{nonce}", nonce, Path(directory, "place"))
        began_s = time.perf_counter()
        try:
            spawned = await spawner.spawn(environment, place, facts, lease_s=_LEASE_S, guess=False)
            try:
                await _hear_nonce(spawned, nonce)
                measured_ms = (time.perf_counter() - began_s) * 1000
            finally:
                spawned.connection.close()
                if spawned.pidfd >= 0:
                    os.close(spawned.pidfd)
                await spawner.kill(spawned.place)
                await spawner.dispose(spawned.place)
        except EnvironmentFault as fault:
            return Capability(usable=False, reason=f"{fault}{'; ' if fault.hint else ''}{fault.hint}")
    return Capability(usable=True, reason=reservation, measured_ms=measured_ms)


def ended_early(who: str, incoming: Incoming | None) -> str:
    """The sentence about a worker that ended before it said hello."""
    said = incoming.said if incoming is not None else ""
    return f"{who} ended before it said hello" + (f": {said}" if said else "")


async def _hear_nonce(spawned: Spawned, nonce: str) -> None:
    loop, heard = asyncio.get_running_loop(), b""
    try:
        async with asyncio.timeout(_LIMIT_S):
            while nonce.encode() not in heard:
                data = await loop.sock_recv(spawned.connection, 65536)
                if not data:
                    raise EnvironmentFault(ended_early("the worker", spawned.incoming))
                heard += spawned.incoming.feed(data) if spawned.incoming is not None else data
    except TimeoutError:
        raise EnvironmentFault(f"the worker said no hello within {_LIMIT_S:g} s") from None
