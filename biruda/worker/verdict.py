"""What an attempt's result says, from what happened. The first cause decides; an exit status is never overwritten."""

import json
from collections.abc import Sequence

from biruda.frames import MAX_FRAME_BYTES
from biruda.model import Artifact, Outcome, Recipe, Step, StepResult

_ARGV_BYTES = 256 * 1024
_SPARE_BYTES = 16 * 1024
_TEXT_CHARACTERS = 100
_ARTIFACT_BYTES = 128  # of an Artifact in JSON, without its path


class Verdict:
    """The cause that came first, and the first failing step's exit status."""

    def __init__(self) -> None:
        self.reason = ""
        self.faulty = False
        self.no_more_steps = False
        self.total_is_over = False
        self._cause: Outcome | None = None
        self._failed_with: int | None = None

    @property
    def decided(self) -> bool:
        """True once the job cannot pass any more."""
        return self._cause is not None

    @property
    def outcome(self) -> Outcome:
        return self._cause or Outcome.PASSED

    @property
    def exit_status(self) -> int | None:
        """Of the first failing step; 0 when all passed, None when none failed but the attempt did not pass."""
        if self._failed_with is not None:
            return self._failed_with
        return None if self.decided else 0

    @property
    def wants_artifacts(self) -> bool:
        """Of a job that ran to its end, however that was."""
        return not self.no_more_steps and not self.faulty

    def runs(self, step: Step) -> bool:
        """Whether a step is still to be run."""
        return not self.no_more_steps and (step.always or not self.decided)

    def step_ended(self, result: StepResult) -> None:
        """A step has ended; 128 + N for signal N, as shells have it."""
        status = 128 + result.signal if result.signal is not None else result.exit_status
        if status and self._failed_with is None:
            self._failed_with = status
        if status and self._cause is None:
            self._cause = Outcome.FAILED

    def time_out(self, reason: str, *, is_total: bool) -> None:
        """A limit is over; the total one does not bind what runs afterwards."""
        self._decide(Outcome.TIMEOUT, reason)
        self.total_is_over |= is_total

    def cancel(self, outcome: Outcome, reason: str) -> None:
        """Somebody wants it to end, without any further step."""
        self.no_more_steps = True
        self._decide(outcome, reason)

    def fault(self, outcome: Outcome, why: str) -> None:
        """The worker itself or its place failed."""
        self.faulty = self.no_more_steps = True
        self._decide(outcome, why)

    def _decide(self, outcome: Outcome, reason: str) -> None:
        if self._cause is None:
            self._cause, self.reason = outcome, reason


def short(text: str) -> str:
    """A name or a sentence, cut so that a thousand of them fit into one message."""
    return text if len(text) <= _TEXT_CHARACTERS else text[: _TEXT_CHARACTERS - 1] + "…"


def reported_argv(recipe: Recipe) -> tuple[tuple[str, ...], ...]:
    """The steps' argv for their results; only the commands where all of it would crowd the result's message."""
    whole = tuple(step.argv for step in recipe.steps)
    if _json_bytes(whole) <= _ARGV_BYTES:
        return whole
    return tuple(argv[:1] if _json_bytes(argv[:1]) <= 256 else () for argv in whole)


def that_fit(artifacts: Sequence[Artifact], message_bytes: int) -> tuple[Artifact, ...]:
    """As many artifacts as one message holds that already has some bytes."""
    left = MAX_FRAME_BYTES - _SPARE_BYTES - message_bytes
    fitting: list[Artifact] = []
    for artifact in artifacts:
        left -= _ARTIFACT_BYTES + _json_bytes(artifact.path)
        if left < 0:
            break
        fitting.append(artifact)
    return tuple(fitting)


def _json_bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
