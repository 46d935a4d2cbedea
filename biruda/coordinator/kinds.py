"""Which kinds of environment work on this host: a real self-test of each, once."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from biruda.coordinator.spawners.protocol import Capability, Spawner
from biruda.errors import EnvironmentFault
from biruda.model import Kind, KindReport

log = logging.getLogger("biruda.coordinator")

SLOW: Final = (Kind.QEMU,)
"""Kinds whose self-test boots something: it waits until the host has come to rest."""

SETTLED_S: Final = 15.0

_TO_COME: Final = Capability(
    usable=False, reason=f"its self-test boots a machine, and waits {SETTLED_S:.0f} s for that"
)


class Kinds:
    """What is known of each kind. What works is tested once; what does not is tested again when it is asked for."""

    def __init__(self, spawners: Mapping[Kind, Spawner]) -> None:
        self._spawners = spawners
        self._known: dict[Kind, Capability] = {}
        self.testing = asyncio.Lock()  # self-tests make places that no ledger knows: not while the reaper looks

    async def capability(self, kind: Kind, *, anew: bool = False) -> Capability:
        """The result of the kind's self-test."""
        async with self.testing:
            known = self._known.get(kind)
            if known is None or not known.usable or anew:
                known = self._known[kind] = await self._tested(kind)
        return known

    async def _tested(self, kind: Kind) -> Capability:
        try:
            return await self._spawners[kind].probe()
        except EnvironmentFault as fault:
            return Capability(usable=False, reason=f"{fault}; {fault.hint}" if fault.hint else str(fault))
        except Exception as error:  # the border of one kind: the others go on
            log.exception("self-test of %s", kind)
            return Capability(usable=False, reason=f"its self-test failed: {error!r}")

    async def test_all(self, tell: Callable[[], None]) -> None:
        """Test what was not tested yet, and tell what changed by that; of those that nobody uses too."""
        untested = [kind for kind in self._spawners if kind not in self._known]
        for kinds in ([kind for kind in untested if kind not in SLOW], [kind for kind in untested if kind in SLOW]):
            if kinds and kinds[0] in SLOW:
                await asyncio.sleep(SETTLED_S)
            for kind in kinds:
                await self.capability(kind)
            if kinds:
                tell()

    def reports(self) -> tuple[KindReport, ...]:
        """What is known by now, in the order of the spawners; with it, that a slow self-test is to come."""
        known_by_kind = {**dict.fromkeys(SLOW, _TO_COME), **self._known} if self._known else {}
        return tuple(
            KindReport(
                kind=kind,
                usable=known.usable,
                reason=known.reason[:1000],
                measured_ms=round(known.measured_ms, 1),
            )
            for kind in self._spawners
            if (known := known_by_kind.get(kind)) is not None
        )
