"""The end of an attempt: what is left of it is killed, what it printed is read, what the recipe names is collected."""

import time
from collections.abc import Iterator
from enum import Enum, auto

from biruda.model import Recipe
from biruda.worker.artifacts import Collection, collect
from biruda.worker.log import RETRY_S, Log
from biruda.worker.processes import Processes

KILL_S = 10.0
"""How long processes that do not die are waited for."""

DRAIN_S = 2.0
"""How long a pipe is read that somebody out of reach still holds open."""

POLL_S = 0.004
"""Between two looks at what gives no sign when it has ended."""

_TURN_S = 0.01


class _Stage(Enum):
    KILL = auto()
    DRAIN = auto()
    COLLECT = auto()


class Ending:
    """Advanced when no step will run any more, until it says that all is done. Never blocks for long."""

    def __init__(self, work: str, recipe: Recipe, log: Log, processes: Processes) -> None:
        self.collection = Collection()
        self.all_dead = True
        self._work = work
        self._recipe = recipe
        self._log = log
        self._processes = processes
        self._stage = _Stage.KILL
        self._deadline_s = time.monotonic() + KILL_S
        self._collecting: Iterator[None] | None = None

    @property
    def is_killing(self) -> bool:
        """True until nothing is left, or is given up."""
        return self._stage is _Stage.KILL

    def next_s(self, now_s: float) -> float:
        """When advance() is wanted though nothing was printed."""
        match self._stage:
            case _Stage.KILL:
                return now_s + POLL_S
            case _Stage.DRAIN:
                return self._deadline_s
            case _Stage.COLLECT:
                return now_s

    def advance(self, now_s: float, *, leader: int, wants_artifacts: bool) -> bool:
        """True when all is done. leader: a step's process that still has to be waited for, 0 for none."""
        if self._stage is _Stage.KILL and not self._kill(now_s, leader):
            return False
        if self._stage is _Stage.DRAIN and not self._drain(now_s):
            return False
        return not wants_artifacts or self._collect(now_s)

    def _kill(self, now_s: float, leader: int) -> bool:
        self.all_dead = self._processes.sweep(leader) and leader == 0
        if not self.all_dead and now_s < self._deadline_s:
            return False
        self._log.close_writer()
        self._stage = _Stage.DRAIN
        self._deadline_s = now_s + DRAIN_S
        return True

    def _drain(self, now_s: float) -> bool:
        log = self._log
        if not log.at_end and log.read_fd >= 0:
            if not log.may_read:
                self._deadline_s = now_s + DRAIN_S  # back-pressure: nothing is lost, it only takes longer
                return False
            if log.waiting_bytes == 0:
                log.read()  # the end, when all writers are dead
            if not log.at_end and now_s < self._deadline_s:
                return False
        log.close_reader()
        if log.room.pending:
            self._deadline_s = now_s + RETRY_S
            return False
        self._stage = _Stage.COLLECT
        return True

    def _collect(self, now_s: float) -> bool:
        if self._collecting is None:
            recipe = self._recipe
            self._collecting = collect(self._work, recipe.artifacts, recipe.reports, self.collection)
        return all(time.monotonic() < now_s + _TURN_S for _ in self._collecting)
