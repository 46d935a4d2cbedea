"""A kind is tested once while it works, and again when it does not."""

from biruda.coordinator.kinds import Kinds
from biruda.coordinator.spawners.protocol import Capability
from biruda.errors import EnvironmentFault
from biruda.model import Kind, KindReport


class Asked:
    """A spawner of which only the self-test is asked for."""

    def __init__(self, *answers: Capability | Exception) -> None:
        self.answers = list(answers)

    async def probe(self) -> Capability:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


GOOD = Capability(usable=True, measured_ms=1.24)


def kinds_of(**spawners: Asked) -> Kinds:
    return Kinds({Kind(name): spawner for name, spawner in spawners.items()})  # type: ignore[misc]


async def test_what_works_is_tested_once_unless_it_shall_be_anew() -> None:
    kinds = kinds_of(process=Asked(GOOD, Capability(usable=True, measured_ms=2)))
    assert await kinds.capability(Kind.PROCESS) is GOOD
    assert await kinds.capability(Kind.PROCESS) is GOOD
    assert (await kinds.capability(Kind.PROCESS, anew=True)).measured_ms == 2


async def test_what_does_not_work_is_tested_again() -> None:
    kinds = kinds_of(chroot=Asked(EnvironmentFault("no overlay", hint="load it"), GOOD))
    refused = await kinds.capability(Kind.CHROOT)
    assert (refused.usable, refused.reason) == (False, "no overlay; load it")
    assert (await kinds.capability(Kind.CHROOT)).usable


async def test_a_self_test_that_fails_is_no_end_of_the_host() -> None:
    kinds = kinds_of(thread=Asked(RuntimeError("oh")), process=Asked(GOOD))
    told: list[tuple[KindReport, ...]] = []
    await kinds.test_all(lambda: told.append(kinds.reports()))
    assert told == [
        (
            KindReport(kind=Kind.THREAD, usable=False, reason="its self-test failed: RuntimeError('oh')"),
            KindReport(kind=Kind.PROCESS, usable=True, measured_ms=1.2),
        )
    ]
    await kinds.test_all(lambda: told.append(()))
    assert len(told) == 1
