"""This host's environments: what each is, whether it can be used, and why not."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

from biruda import guessenv
from biruda.config import Environment, Worker
from biruda.config.recipe import recipe_of
from biruda.convert import decode
from biruda.coordinator.spawners.protocol import Spawner
from biruda.errors import EnvironmentFault
from biruda.model import EnvironmentReport, Facts, Kind, WorkerReport

LOOKING: Final = "it is being looked at"


@dataclass(slots=True)
class EnvironmentState:
    """One environment and what is known of it."""

    config: Environment
    spawner: Spawner
    host_facts: Facts
    facts: Facts | None = None
    static: Facts | None = None
    problem: str = LOOKING
    idle: list[str] = field(default_factory=list)  # workers that wait for an attempt
    coming: int = 0  # spares that are being made
    dropped: bool = False  # it is not in the configuration any more, or another is in its place

    @property
    def usable(self) -> bool:
        return self.facts is not None and not self.problem and not self.dropped

    @property
    def has_failed(self) -> bool:
        """Whether it was looked at, and cannot be used."""
        return bool(self.problem) and self.problem != LOOKING

    @property
    def arch(self) -> str:
        return self.config.arch or (self.facts or self.static or self.host_facts).arch

    @property
    def platform(self) -> str:
        return self.config.platform or (self.facts or self.static or self.host_facts).platform

    def fail(self, error: EnvironmentFault) -> None:
        """It cannot be used, for this reason."""
        self.problem = f"{error}; {error.hint}" if error.hint else str(error)

    @property
    def _evidence(self) -> tuple[str, ...]:
        facts, static = self.facts or self.static, self.static
        if facts is None or static is None or facts is static or not static.content:
            return facts.evidence if facts is not None else ()
        return (*static.evidence, *facts.evidence)

    def report(self) -> EnvironmentReport:
        facts = self.facts or self.static
        declared = {
            key: value for key, value in (("arch", self.config.arch), ("platform", self.config.platform)) if value
        }
        guessed = {"arch": facts.arch, "platform": facts.platform, "libc": facts.libc} if facts else {}
        return EnvironmentReport(
            name=self.config.name,
            kind=self.config.kind,
            arch=self.arch,
            platform=self.platform,
            usable=self.usable,
            problem=self.problem,
            warnings=tuple(guessenv.compare(declared, guessed)) if facts else (),
            evidence=self._evidence,
            declared=declared,
            guessed=guessed,
            slots=self.config.slots or None,
            spares=len(self.idle),
            emulated=bool(facts and facts.emulated),
        )


class FactsCache:
    """Executed facts by environment, kept until its content or its configuration changes (S2.33)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def _key(self, config: Environment, static: Facts | None) -> str:
        if static is not None and static.content:
            return f"{config.kind.value} {static.content}"
        root = config.root if config.kind is Kind.CHROOT else "/"
        return f"{config.kind.value} {root} {guessenv.fingerprint(root)}"

    def find(self, config: Environment, static: Facts | None = None) -> Facts | None:
        """What the environment said of itself when it was last asked, if it is still the same. Blocking.

        static: what looking at it has just told.
        """
        if config.kind is Kind.SSH:  # it may be another machine by now
            return None
        try:
            stored = orjson.loads((self._directory / f"{config.name}.json").read_bytes())
            if stored["key"] == self._key(config, static):
                return decode(Facts, stored["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def keep(self, config: Environment, facts: Facts, static: Facts | None = None) -> None:
        """Remember an answer. Blocking."""
        path = self._directory / f"{config.name}.json"
        temporary = path.with_suffix(".new")
        temporary.write_bytes(orjson.dumps({"key": self._key(config, static), "facts": facts}))
        temporary.replace(path)

    def drop(self, name: str) -> None:
        (self._directory / f"{name}.json").unlink(missing_ok=True)


def host_facts() -> Facts:
    """What this host is: the default of every environment that shares its root."""
    return facts_of(guessenv.guess_here())


def facts_of(guess: guessenv.Guess) -> Facts:
    return Facts(
        arch=guess.arch,
        platform=guess.platform,
        libc=guess.libc,
        bits=guess.bits,
        emulated=guess.emulated,
        evidence=guess.evidence,
    )


def worker_reports(workers: tuple[Worker, ...], states: dict[str, EnvironmentState]) -> tuple[WorkerReport, ...]:
    """The named workers of this host, each once for every environment that it names and whose system it fits."""
    reports: list[WorkerReport] = []
    for worker in workers:
        recipe = recipe_of(worker)
        for name in worker.environment:
            state = states.get(name)
            if state is None:
                continue
            if worker.arch not in ("", state.arch) or worker.platform not in ("", state.platform):
                continue
            reports.append(
                WorkerReport(
                    name=worker.name,
                    environment=name,
                    arch=state.arch,
                    platform=state.platform,
                    recipe=recipe,
                    source_path=worker.source,
                )
            )
    return tuple(reports)


def slots_of(configured: int) -> int:
    """How many attempts run at once: as configured, else one for each CPU this process may use."""
    return configured or len(os.sched_getaffinity(0))
