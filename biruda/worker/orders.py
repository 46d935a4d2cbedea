"""What a coordinator says, and what the worker does about it. Holds the one attempt, and what is before and after it.

Where the coordinator sees the attempt's file itself, a worker that is used again takes attempts ahead: they wait here,
and the next one begins as soon as the result of the last one is told. A result is kept until it is recorded.
"""

import hashlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable

from biruda.errors import EnvironmentFault, PeerError
from biruda.frames import DataFrame, MessageFrame
from biruda.messages import (
    PROTOCOL,
    Assign,
    Assignment,
    Attach,
    AttemptEnded,
    AttemptRecorded,
    Cancel,
    FromWorker,
    Notice,
    StepEnded,
    StepStarted,
    StreamsWanted,
    ToWorker,
    Unassign,
    Unassigned,
    WorkerIdle,
    decode_to_worker,
)
from biruda.model import AttemptResult, LogInfo, Outcome
from biruda.worker.attempt import Attempt
from biruda.worker.cleanup import WorkDirectory
from biruda.worker.conversation import Conversation
from biruda.worker.opening import Opening

MAX_STEPS = 1000
"""Their results have to fit into one message."""

MOST_WAITING = 64
"""Attempts that a worker takes ahead."""

_NOTICES_KEPT = 16

Key = tuple[int, int]


class Orders:
    """The attempt, how long it goes on without contact, and what to tell to whoever comes next."""

    def __init__(self, opening: Opening, *, wakes: bool) -> None:
        self.attempt: Attempt | None = None
        self.conversation: Conversation | None = None  # the current one
        self.lease_s = opening.lease_s
        self.is_done = False  # the attempt was recorded, and there will be no other
        self.waiting: deque[Assignment] = deque()
        self._over: dict[Key, AttemptEnded] = {}  # ended, and gone from here but for this
        self._takes_ahead = opening.reuse and bool(opening.room_path)
        self._opening = opening
        self._wakes = wakes
        self._directory = WorkDirectory(opening.work, keep=opening.reuse)
        self._idle_lease_s = opening.lease_s
        self._variables: dict[str, str] = {}
        self._notices: list[Notice] = []

    def take(self, conversation: Conversation, item: MessageFrame | DataFrame) -> None:
        """Do what one frame says. Raises PeerError for what may not be said."""
        if isinstance(item, MessageFrame):
            self._handle(conversation, decode_to_worker(item.payload))
            return
        attempt, header = self.attempt, item.header
        if attempt is not None and (header.job, header.attempt) == attempt.key:
            self.guard(attempt, lambda: attempt.take_source(header.offset, item.payload))

    def guard(self, attempt: Attempt, act: Callable[[], None]) -> bool:
        """The border of one attempt: what goes wrong inside it is its outcome. True: nothing did."""
        try:
            act()
        except PeerError:
            raise
        except EnvironmentFault as fault:
            attempt.fail(Outcome.ENVIRONMENT, str(fault))
            return False
        except Exception as error:
            sys.excepthook(*sys.exc_info())
            attempt.fail(Outcome.INFRA, _in_words(error))
            return False
        return True

    def _handle(self, conversation: Conversation, message: ToWorker) -> None:
        if isinstance(message, Attach):
            self._attach(conversation, message)
            return
        if not conversation.attached:
            raise PeerError(f"{type(message).__name__} came before Attach")
        if isinstance(message, Assign):
            self._assign(conversation, message)
            return
        key = (message.job, message.attempt)
        held = self.attempt if self.attempt is not None and self.attempt.key == key else None
        match message:
            case Unassign():
                if self._drop_waiting(key) is not None:
                    conversation.link.tell(Unassigned(job=message.job, attempt=message.attempt))
            case Cancel():
                outcome = Outcome.PREEMPTED if message.outcome == Outcome.PREEMPTED else Outcome.CANCELLED
                unbegun = self._drop_waiting(key)
                if held is not None:
                    held.cancel(outcome, message.reason)
                elif unbegun is not None:
                    self._end_unbegun(unbegun, outcome, message.reason)
            case StreamsWanted():
                if held is not None:
                    conversation.want(message.streams)
            case AttemptRecorded():
                if self._over.pop(key, None) is not None and self._opening.reuse:
                    self._look_idle(conversation, says_idle=not message.next_follows)
                elif self.attempt is None or (held is not None and held.ended is not None):
                    self._forget(conversation, says_idle=not message.next_follows)

    def _drop_waiting(self, key: Key) -> Assignment | None:
        for assignment in self.waiting:
            if (assignment.job, assignment.attempt) == key:
                self.waiting.remove(assignment)
                return assignment
        return None

    def _attach(self, conversation: Conversation, message: Attach) -> None:
        if message.protocol != PROTOCOL:
            raise PeerError(f"the coordinator speaks protocol {message.protocol}, this worker {PROTOCOL}")
        if message.nonce != self._opening.nonce:
            raise PeerError("Attach has the nonce of another worker")
        if not 0 <= message.lease_s < math.inf:
            raise PeerError(f"a lease of {message.lease_s} s")
        self._variables = dict(message.variables)
        self.lease_s = self._idle_lease_s = message.lease_s
        if conversation.attached:
            return
        conversation.attached = True
        for ended in self._over.values():
            conversation.link.tell(ended)
        if self.attempt is not None:
            conversation.resume(self.attempt)
        for notice in self._notices:
            conversation.link.tell(notice)
        self._notices.clear()

    def _assign(self, conversation: Conversation, message: Assign) -> None:
        if not 1 <= len(message.assignments) <= (MOST_WAITING if self._takes_ahead else 1):
            raise PeerError(f"a worker runs one attempt, but {len(message.assignments)} were assigned")
        for assignment in message.assignments:
            if not (0 < assignment.job < 1 << 63 and 0 < assignment.attempt < 1 << 32 and assignment.lease_s >= 0):
                raise PeerError(f"attempt {assignment.attempt} of job {assignment.job}, lease {assignment.lease_s} s")
            self._take_in(conversation, assignment)

    def _take_in(self, conversation: Conversation, assignment: Assignment) -> None:
        """It begins, it waits, or it is refused; one that is here already stays as it is."""
        key = (assignment.job, assignment.attempt)
        if key in self._over or (self.attempt is not None and key == self.attempt.key):
            return
        if self.attempt is None and not self.waiting:
            self._begin(assignment)
        elif self._takes_ahead and len(self.waiting) < MOST_WAITING:
            if all((item.job, item.attempt) != key for item in self.waiting):
                self.waiting.append(assignment)
        elif self.attempt is not None:
            reason = f"this worker runs job {self.attempt.assignment.job}"
            conversation.link.tell(_unbegun(assignment, Outcome.INFRA, reason))

    def _begin(self, assignment: Assignment) -> None:
        if len(assignment.recipe.steps) > MAX_STEPS:
            count = len(assignment.recipe.steps)
            self._end_unbegun(assignment, Outcome.INFRA, f"a recipe of {count} steps: {MAX_STEPS} are the limit")
            return
        try:
            attempt = Attempt(self._opening, assignment, self._directory, self._variables, self.tell, wakes=self._wakes)
        except Exception as error:
            sys.excepthook(*sys.exc_info())
            self._end_unbegun(assignment, Outcome.INFRA, _in_words(error))
            return
        self.attempt = attempt
        self.lease_s = assignment.lease_s
        if self.conversation is not None and self.conversation.attached:
            self.conversation.begin(attempt)
        self.guard(attempt, attempt.prepare)

    def _end_unbegun(self, assignment: Assignment, outcome: Outcome, reason: str) -> None:
        """Its result is told now, and again until it is recorded."""
        ended = _unbegun(assignment, outcome, reason)
        self._over[ended.job, ended.attempt] = ended
        self.tell(ended)

    def go_on(self) -> bool:
        """Begin the next attempt if the last one needs nothing more from here; whether one has begun."""
        attempt = self.attempt
        if attempt is not None:
            if not self._takes_ahead or attempt.ended is None or attempt.ended.artifacts:
                return False
            conversation = self.conversation
            if conversation is not None and conversation.attached:
                if not conversation.told_end:
                    return False
                conversation.forget()
            job, number = attempt.key
            self._over[attempt.key] = AttemptEnded(job=job, attempt=number, result=attempt.ended)
            self.remove(attempt)
            self.lease_s = self._idle_lease_s
        while self.attempt is None and self.waiting:
            self._begin(self.waiting.popleft())
        return self.attempt is not None and self.attempt is not attempt

    @property
    def is_empty(self) -> bool:
        """Nothing runs, waits or is owed."""
        return self.attempt is None and not self.waiting and not self._over

    @property
    def others(self) -> tuple[Key, ...]:
        """What is here beside the attempt."""
        return (*self._over, *((item.job, item.attempt) for item in self.waiting))

    def _look_idle(self, conversation: Conversation, *, says_idle: bool) -> None:
        if says_idle and self.is_empty:
            conversation.link.tell(WorkerIdle(worker=self._opening.worker))

    def _forget(self, conversation: Conversation, *, says_idle: bool) -> None:
        """The attempt is safe with the coordinator: remove all of it, then end, or be ready for the next one."""
        conversation.forget()
        if self.attempt is not None:
            self.remove(self.attempt)
        if not self._opening.reuse:
            self.is_done = True
            return
        self.lease_s = self._idle_lease_s
        self._look_idle(conversation, says_idle=says_idle)

    def remove(self, attempt: Attempt) -> None:
        """Nothing of the attempt is left, or what is left is said."""
        self.attempt = None
        for problem in attempt.clean_up()[:5]:
            sys.stderr.write(f"biruda: worker {self._opening.worker} cannot remove {problem}\n")

    def tell(self, message: FromWorker) -> None:
        """To the coordinator, if one is there. Notices are kept for the next one; the rest it hears anyway."""
        if self.conversation is not None and self.conversation.attached:
            if isinstance(message, StepStarted | StepEnded):
                self.conversation.tell_soon(message)
            else:
                self.conversation.link.tell(message)
        elif isinstance(message, Notice):
            self._notices = [*self._notices, message][-_NOTICES_KEPT:]


def _unbegun(assignment: Assignment, outcome: Outcome, reason: str) -> AttemptEnded:
    """The result of an attempt of which nothing was run."""
    now_s = time.time()
    result = AttemptResult(
        outcome=outcome,
        exit_status=None,
        steps=(),
        log=LogInfo(bytes=0, sha256=hashlib.sha256().hexdigest(), complete=True),
        reason=reason,
        started_s=now_s,
        finished_s=now_s,
    )
    return AttemptEnded(job=assignment.job, attempt=assignment.attempt, result=result)


def _in_words(error: Exception) -> str:
    """One sentence with the place: nobody may read the worker's stderr."""
    place = ""
    at = error.__traceback__
    while at is not None:
        place = f" ({os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno})"
        at = at.tb_next
    return f"the worker failed: {type(error).__name__}: {error}{place}"
