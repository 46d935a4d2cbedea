"""One step: what it is started with, and from its start to its end the limits it runs under."""

import errno
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

from biruda.messages import Assignment
from biruda.model import Kind, Limits, Step, StepResult
from biruda.process import Account, Child, Exit, start
from biruda.worker.artifacts import is_inside
from biruda.worker.cleanup import remove_tree
from biruda.worker.log import Log
from biruda.worker.opening import Opening
from biruda.worker.verdict import short

ALWAYS_LIMIT_S = 60.0
"""Limit of an `always` step without its own, once the job has failed."""


class CannotStart(Exception):
    """A step that could not be started; a shell would give the same exit status."""

    def __init__(self, exit_status: int, why: str) -> None:
        super().__init__(why)
        self.exit_status = exit_status


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What all steps of an attempt share."""

    opening: Opening
    assignment: Assignment
    variables: Mapping[str, str]  # from the coordinator
    account: Account | None
    stdin: int
    stdout: int

    def script_path(self, index: int) -> str:
        """Beside the work directory: the source tree stays as it was sent."""
        return f"{self.opening.work.rstrip('/')}.step-{index + 1}"


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that is over. `note` is of the step, `reason` of the attempt."""

    reason: str
    note: str
    is_total: bool = False


def environment_of(scene: Scene, step: Step, cwd: str) -> dict[str, str]:
    """Every variable of a step: nothing is inherited, and the more special word wins."""
    return {
        "PATH": scene.opening.path,
        "HOME": scene.opening.work,
        "LANG": "C.UTF-8",
        "PWD": cwd,
        "BIRUDA_JOB": str(scene.assignment.job),
        "BIRUDA_ATTEMPT": str(scene.assignment.attempt),
        "BIRUDA_STEP": step.name,
        **scene.opening.variables,
        **scene.variables,
        **scene.assignment.recipe.env,
        **step.env,
    }


def launch(scene: Scene, index: int, step: Step) -> Child:
    """The step's process. Raises CannotStart with the reason in words."""
    cwd = os.path.join(scene.opening.work, step.cwd) if step.cwd else scene.opening.work
    argv = list(step.argv)
    env = environment_of(scene, step, cwd)
    try:
        _check_directory(scene.opening.work, cwd, step.cwd)
        if step.script is not None:
            argv.append(_write_script(scene, index, step.script))
        if not argv:
            raise CannotStart(127, "no command is given")
        return start(
            argv,
            env=env,
            cwd=cwd,
            stdin=scene.stdin,
            stdout=scene.stdout,
            account=scene.account,
            alone=scene.opening.kind is not Kind.THREAD,
        )
    except OSError as error:
        raise _in_words(error, argv, cwd, env["PATH"]) from None
    except ValueError as error:  # a NUL in an argument, "=" in a variable's name
        raise CannotStart(126, str(error)) from None


def _check_directory(work: str, cwd: str, name: str) -> None:
    if name and not is_inside(os.path.realpath(cwd), work):
        raise CannotStart(126, f"{name}: outside the work directory")
    if not os.path.isdir(cwd):
        name = name or "the work directory"
        raise CannotStart(126, f"{name}: not a directory" if os.path.exists(cwd) else f"{name}: no such directory")


def _write_script(scene: Scene, index: int, text: str) -> str:
    path = scene.script_path(index)
    remove_tree(path)  # of a worker that was killed
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
    with open(fd, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        os.fchmod(fd, 0o700)
        if scene.account is not None:
            os.fchown(fd, scene.account.uid, scene.account.gid)
    return path


def _in_words(error: OSError, argv: list[str], cwd: str, path: str) -> CannotStart:
    command = argv[0] if argv else ""
    if error.filename == cwd:
        return CannotStart(126, f"{cwd}: cannot be entered ({os.strerror(error.errno or 0)})")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        interpreter = _interpreter(os.path.join(cwd, command)) if "/" in command else ""
        if interpreter:
            return CannotStart(127, f"{command}: its interpreter {interpreter} is not there")
        return CannotStart(127, f"{command}: not found" + ("" if "/" in command else f" in {path}"))
    if error.errno == errno.ENOEXEC:
        return CannotStart(126, f"{command}: not a program for this system (exec format error)")
    if error.errno == errno.EACCES:
        return CannotStart(126, f"{command}: not executable (permission denied)")
    if error.errno == errno.E2BIG:
        return CannotStart(126, f"{command}: arguments and variables are too long")
    if error.errno == errno.EAGAIN:
        return CannotStart(126, f"{command}: no process can be made, the limit of processes is reached")
    return CannotStart(126, f"{command}: {os.strerror(error.errno or 0)}")


def _interpreter(path: str) -> str:
    """What a file that exists asks for in its first line; "its loader" for a program without one."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(256)
    except OSError:
        return ""
    words = head[2:].split(b"\n")[0].split() if head.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else "(the program's loader)"


def refused(step: Step, argv: tuple[str, ...], problem: CannotStart, log_start: int) -> StepResult:
    """The result of a step that could not be started."""
    return StepResult(
        name=short(step.name),
        argv=argv,
        exit_status=problem.exit_status,
        signal=None,
        wall_s=0.0,
        cpu_s=0.0,
        peak_rss_bytes=0,
        log_start=log_start,
        note=short(str(problem)),
    )


class RunningStep:
    """A started step, until its process has ended and what it printed was read."""

    def __init__(
        self,
        index: int,
        step: Step,
        limits: Limits,
        child: Child,
        log_start: int,
        *,
        steps_began_s: float | None,
        after_failure: bool,
    ) -> None:
        self.index = index
        self.step = step
        self.child = child
        self.exit: Exit | None = None
        self.kill_at_s: float | None = None  # monotonic; set once it was told to end
        self.drain_to = 0  # log offset that must be read before the step counts as ended
        self.began_at_s = time.time()
        self._log_start = log_start
        self._limits = limits
        self._steps_began_s = steps_began_s  # None: the total limit does not bind this step
        self._limit_s = ALWAYS_LIMIT_S if after_failure and step.limit_s is None else step.limit_s
        self._silence_s = limits.silence_s if step.silence_s is None else step.silence_s
        self._note = ""
        self._began_s = time.monotonic()
        self._ended_s = 0.0

    def exceeded(self, now_s: float, last_output_s: float) -> Exceeded | None:
        """The limit that is over, if one is."""
        total_end_s, end_s, silence_end_s = self._ends_s(last_output_s)
        name = f"step {short(self.step.name)}"
        if now_s >= total_end_s:
            limit = f"{self._limits.total_s:g} s"
            reason = f"{name}: the job was still running after {limit} in all"
            return Exceeded(reason, f"total time limit of {limit}", is_total=True)
        if now_s >= end_s:
            return Exceeded(f"{name}: still running after {self._limit_s:g} s", f"time limit of {self._limit_s:g} s")
        if now_s >= silence_end_s:
            note = f"no output for {self._silence_s:g} s"
            return Exceeded(f"{name}: {note}", note)
        return None

    def next_limit_s(self, last_output_s: float) -> float:
        """When exceeded() should be asked again; infinity without any limit."""
        return min(self._ends_s(last_output_s))

    def _ends_s(self, last_output_s: float) -> tuple[float, float, float]:
        total_s = self._limits.total_s
        return (
            math.inf if total_s is None or self._steps_began_s is None else self._steps_began_s + total_s,
            math.inf if self._limit_s is None else self._began_s + self._limit_s,
            math.inf if self._silence_s is None else max(self._began_s, last_output_s) + self._silence_s,
        )

    def tell_to_end(self, note: str, now_s: float) -> None:
        """First rung of the ladder: SIGTERM to its process group, and the time of the next one is set."""
        if self.kill_at_s is None:
            self._note = note
            self.kill_at_s = now_s + self._limits.grace_s
            if self.exit is None:
                self.child.signal_group(signal.SIGTERM)
                self.child.signal_group(signal.SIGCONT)  # what is stopped would not hear it

    def note_exit(self, log: Log) -> bool:
        """True once its process has ended; what was in the pipe then is still to be read."""
        if self.exit is None:
            self.exit = self.child.poll()
            if self.exit is not None:
                self._ended_s = time.monotonic()
                self.drain_to = log.end + log.waiting_bytes
        return self.exit is not None

    def result(self, argv: tuple[str, ...]) -> StepResult:
        """What it did; note_exit() must have been true."""
        if self.exit is None:
            raise RuntimeError(f"step {self.step.name} has not ended")
        return StepResult(
            name=short(self.step.name),
            argv=argv,
            exit_status=self.exit.exit_status,
            signal=self.exit.signal,
            wall_s=round(self._ended_s - self._began_s, 6),
            cpu_s=round(self.exit.cpu_s, 6),
            peak_rss_bytes=self.exit.peak_rss_bytes,
            read_bytes=self.exit.read_bytes,
            written_bytes=self.exit.written_bytes,
            log_start=self._log_start,
            note=self._note,
        )
