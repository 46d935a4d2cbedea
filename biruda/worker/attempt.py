"""One attempt from its assignment to its result. Never blocks: advance() does what can be done now and returns.

    SOURCE → BETWEEN ⇄ STEP → ENDING → ENDED

A cancel or a fault leads from anywhere to ENDING; whatever happens there is one result, and nothing is left running.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto

from biruda.messages import Assignment, AttemptEnded, FromWorker, Notice, StepEnded, StepStarted, encode
from biruda.model import Artifact, AttemptResult, Kind, Outcome, Step, StepResult
from biruda.process import account_of
from biruda.worker.cleanup import WorkDirectory, give_tree, remove_tree
from biruda.worker.ending import KILL_S, POLL_S, Ending
from biruda.worker.holding import hold_to
from biruda.worker.log import Log
from biruda.worker.opening import Opening, log_path
from biruda.worker.processes import group_lives, processes_of
from biruda.worker.room import MemoryRoom, Room, file_room
from biruda.worker.source import PackRefused, SourceIntake
from biruda.worker.steps import CannotStart, RunningStep, Scene, launch, refused
from biruda.worker.verdict import Verdict, reported_argv, that_fit


class Phase(Enum):
    SOURCE = auto()  # the pack is coming
    BETWEEN = auto()
    STEP = auto()
    ENDING = auto()
    ENDED = auto()


class Attempt:
    """Changes in advance() and in prepare(), take_source(), cancel(), fail() and abandon() only."""

    def __init__(
        self,
        opening: Opening,
        assignment: Assignment,
        directory: WorkDirectory,
        variables: Mapping[str, str],
        tell: Callable[[FromWorker], None],
        *,
        wakes: bool,
    ) -> None:
        self.assignment = assignment
        self.key = (assignment.job, assignment.attempt)
        self.phase = Phase.BETWEEN
        self.ended: AttemptResult | None = None
        self.running: RunningStep | None = None
        self.results: dict[int, StepResult] = {}  # by index in the recipe; steps that were left out are not in it
        self._room_problem: OSError | None = None
        self.log = Log(self._room_of(opening))
        self._opening = opening
        self._directory = directory
        self._tell = tell
        self._wakes = wakes  # the end of a child interrupts the poll
        self._verdict = Verdict()
        self._next = 0
        self._has_work = False
        self._argv = reported_argv(assignment.recipe)
        self._began_at_s = time.time()
        self._steps_began_s = 0.0
        self._intake: SourceIntake | None = None
        self._processes = processes_of(opening, (b"BIRUDA_JOB=%d\0" % assignment.job, os.fsencode(opening.work)))
        self._ending = Ending(opening.work, assignment.recipe, self.log, self._processes)
        self._scene = Scene(
            opening=opening,
            assignment=assignment,
            variables=variables,
            account=None,
            stdin=_no_input(),
            stdout=self.log.write_fd,
        )

    def _room_of(self, opening: Opening) -> Room:
        try:
            job, number = self.key
            path = log_path(opening.room_path, job, number) if opening.room_path else ""
            room = file_room(path, opening.room_fd, opening.room_bytes)
            return room or MemoryRoom(opening.memory_room_bytes)
        except OSError as error:
            self._room_problem = error
            return MemoryRoom()

    def prepare(self) -> None:
        """Make the directory and find the account. Raises EnvironmentFault and OSError."""
        if self._room_problem is not None:
            raise self._room_problem
        if self._opening.kind is Kind.QEMU:
            hold_to(self.assignment.recipe.limits)
        account = account_of(self._opening.user) if self._opening.user else None
        self._scene = replace(self._scene, account=account)
        self._directory.make(account)
        self._has_work = True
        if self.assignment.source is not None:
            self._intake = SourceIntake(self._opening.work)
            self.phase = Phase.SOURCE

    def take_source(self, offset: int, payload: memoryview) -> None:
        """Bytes of the source pack. Raises PeerError for a gap."""
        if self.phase is not Phase.SOURCE or self._intake is None:
            return
        try:
            self._intake.take(offset, payload)
        except PackRefused as refusal:
            self.fail(refusal.outcome, str(refusal))
            return
        if self._intake.complete:
            if self._scene.account is not None:
                give_tree(self._opening.work, self._scene.account)
            self.phase = Phase.BETWEEN

    def cancel(self, outcome: Outcome, reason: str) -> None:
        """End before its time: TERM, grace, KILL."""
        if self.phase is Phase.ENDED:
            return
        self._verdict.cancel(outcome, reason)
        if self.running is not None and self.phase is Phase.STEP:
            self.running.tell_to_end(outcome.value, time.monotonic())
        else:
            self.phase = Phase.ENDING

    def fail(self, outcome: Outcome, why: str) -> None:
        """Not the job but the worker or its place went wrong: end at once, a second time with what there is."""
        if self.phase is Phase.ENDED:
            return
        again = self._verdict.faulty
        self._verdict.fault(outcome, why)
        self.phase = Phase.ENDING
        if again:
            with suppress(Exception):  # whatever is broken, as much as can be shall be dead
                self._processes.sweep(0)
            self._end()

    def abandon(self, why: str) -> None:
        """Nobody wants it any more. is_killing tells how long advance() is still needed."""
        self._verdict.fault(Outcome.INFRA, why)
        if self.phase is not Phase.ENDED:
            self.phase = Phase.ENDING

    @property
    def awaits_source(self) -> bool:
        """True until the whole source pack has come."""
        return self.phase is Phase.SOURCE

    @property
    def is_killing(self) -> bool:
        """True while something of it may be alive."""
        return self.phase is not Phase.ENDED and self._ending.is_killing

    def next_s(self, now_s: float) -> float:
        """When advance() is wanted again though no descriptor became ready; infinity for never."""
        return min(self._wanted_s(now_s), self.log.retry_at_s)

    def _wanted_s(self, now_s: float) -> float:
        match self.phase:
            case Phase.SOURCE | Phase.ENDED:
                return float("inf")
            case Phase.BETWEEN:
                return now_s
            case Phase.ENDING:
                return self._ending.next_s(now_s)
            case Phase.STEP:
                return self._step_wanted_s(now_s)

    def _step_wanted_s(self, now_s: float) -> float:
        running = self.running
        if running is None:
            return now_s
        has_ended = running.exit is not None
        unseen = not has_ended and running.child.pidfd < 0 and not self._wakes
        wanted_s = now_s + POLL_S if unseen else float("inf")
        if running.kill_at_s is None:
            return wanted_s if has_ended else min(wanted_s, running.next_limit_s(self.log.last_output_s))
        if has_ended or running.kill_at_s <= now_s:
            return now_s + POLL_S
        return min(wanted_s, running.kill_at_s)

    def advance(self, now_s: float) -> None:
        """Do what can be done now."""
        problem = self.log.tend(now_s)
        if problem:
            text = (
                f"no space left for the log of job {self.assignment.job} ({problem}); the job is paused until there is"
            )
            self._tell(Notice(job=self.assignment.job, text=text))
        while self._turn(now_s):
            pass

    def _turn(self, now_s: float) -> bool:
        """One piece of work; True when there may be more at once."""
        match self.phase:
            case Phase.SOURCE | Phase.ENDED:
                return False
            case Phase.BETWEEN:
                return self._start_next()
            case Phase.STEP:
                return self._follow_step(now_s)
            case Phase.ENDING:
                self._go_on_ending(now_s)
                return False

    def _start_next(self) -> bool:
        steps = self.assignment.recipe.steps
        while self._next < len(steps) and not self._verdict.runs(steps[self._next]):
            self._next += 1
        if self._next == len(steps):
            self.phase = Phase.ENDING
            return True
        index, step = self._next, steps[self._next]
        self._next += 1
        self._steps_began_s = self._steps_began_s or time.monotonic()
        job, number = self.key
        self._tell(StepStarted(job=job, attempt=number, index=index, at_s=time.time()))
        try:
            child = launch(self._scene, index, step)
        except CannotStart as problem:
            self._refuse(index, step, problem)
            return True
        self.running = RunningStep(
            index,
            step,
            self.assignment.recipe.limits,
            child,
            self.log.end,
            steps_began_s=None if self._verdict.total_is_over else self._steps_began_s,
            after_failure=self._verdict.decided,
        )
        self.phase = Phase.STEP
        self._processes.started(child.pid)
        return False

    def _refuse(self, index: int, step: Step, problem: CannotStart) -> None:
        """The step failed without having run; why stands in the log too."""
        start = self.log.end
        self.log.say(" ".join(f"step {index + 1} {step.name}".split()) + f": {problem}")
        result = refused(step, self._argv[index], problem, start)
        self._note_result(index, result)

    def _note_result(self, index: int, result: StepResult) -> None:
        self.results[index] = result
        self._verdict.step_ended(result)
        job, number = self.key
        self._tell(StepEnded(job=job, attempt=number, index=index, result=result))

    def _follow_step(self, now_s: float) -> bool:
        running = self.running
        if running is None:
            raise RuntimeError("no step runs")
        has_ended = running.note_exit(self.log)
        if running.kill_at_s is None:
            if not has_ended:
                self._hold_to_limits(running, now_s)
        elif not self._is_over(running, running.kill_at_s, now_s):
            return False
        if not has_ended or self.log.end < running.drain_to:
            return False
        self.running = None
        self.phase = Phase.BETWEEN
        self._note_result(running.index, running.result(self._argv[running.index]))
        return True

    def _is_over(self, running: RunningStep, kill_at_s: float, now_s: float) -> bool:
        """A step was told to end: whether nothing of the attempt is left, or is given up."""
        has_ended = running.exit is not None
        if now_s < kill_at_s and (not has_ended or group_lives(running.child.pid)):
            return False  # its grace is also that of its children
        return self._processes.sweep(0 if has_ended else running.child.pid) or now_s >= kill_at_s + KILL_S

    def _hold_to_limits(self, running: RunningStep, now_s: float) -> None:
        stop = running.exceeded(now_s, self.log.last_output_s)
        if stop is not None:
            self._verdict.time_out(stop.reason, is_total=stop.is_total)
            running.tell_to_end(stop.note, now_s)

    def _go_on_ending(self, now_s: float) -> None:
        running = self.running  # only after a fault, or when the lease is over
        if running is not None and running.note_exit(self.log):
            self.results[running.index] = running.result(self._argv[running.index])
            self.running = running = None
        leader = running.child.pid if running is not None else 0
        if not self._ending.advance(now_s, leader=leader, wants_artifacts=self._verdict.wants_artifacts):
            return
        job = self.assignment.job
        if not self._ending.all_dead:
            self._tell(Notice(job=job, text=f"processes of job {job} could not be killed within {KILL_S:g} s"))
        for remark in self._ending.collection.remarks[:20]:
            self._tell(Notice(job=job, text=f"artifacts of job {job}: {remark}"))
        self._end()

    def _end(self) -> None:
        self.log.close_writer()
        self.log.close_reader()
        artifacts = self._ending.collection.artifacts if self._verdict.wants_artifacts else []
        job, number = self.key
        fitting: tuple[Artifact, ...] = ()
        if artifacts:
            bare = AttemptEnded(job=job, attempt=number, result=self._result(()))
            fitting = that_fit(artifacts, len(encode(bare)))
        if len(fitting) < len(artifacts):
            remark = f"{len(artifacts)} artifacts do not fit into one message: the first {len(fitting)} were taken"
            self._ending.collection.remarks.insert(0, remark)
        self.ended = self._result(fitting)
        self.phase = Phase.ENDED

    def _result(self, artifacts: tuple[Artifact, ...]) -> AttemptResult:
        remarks = () if self._verdict.decided else self._ending.collection.remarks[:3]
        return AttemptResult(
            outcome=self._verdict.outcome,
            exit_status=self._verdict.exit_status,
            steps=tuple(result for _, result in sorted(self.results.items())),
            log=self.log.info(),
            artifacts=artifacts,
            reason=self._verdict.reason or "; ".join(remarks),
            started_s=self._began_at_s,
            finished_s=time.time(),
        )

    def clean_up(self) -> list[str]:
        """Remove all that it made; what could not be removed is listed."""
        self.log.close()
        if self.running is not None:
            self.running.child.close()
        if self._intake is not None:
            self._intake.close()
        os.close(self._scene.stdin)
        problems: list[str] = []
        if self._has_work:  # what it has not made is not its to remove
            problems += self._directory.clear()
        for index, step in enumerate(self.assignment.recipe.steps[: self._next]):
            if step.script is not None:
                problems += remove_tree(self._scene.script_path(index))
        return problems


def _no_input() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:  # a root without devices
        reader, writer = os.pipe()
        os.close(writer)
        return reader
