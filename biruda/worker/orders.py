"""What a coordinator says, and what the worker does about it. Holds the one attempt."""

import hashlib
import math
import os
import sys
import time
import traceback
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

_NOTICES_KEPT = 16


class Orders:
    """The attempt, how long it goes on without contact, and what to tell to whoever comes next."""

    def __init__(self, opening: Opening, *, wakes: bool) -> None:
        self.attempt: Attempt | None = None
        self.conversation: Conversation | None = None  # the current one
        self.lease_s = opening.lease_s
        self.is_done = False  # the attempt was recorded, and there will be no other
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
            traceback.print_exc()
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
        held = self.attempt
        if held is not None and (message.job, message.attempt) != held.key:
            return  # of an attempt that is not here, or not any more
        match message:
            case Cancel():
                if held is not None:
                    outcome = Outcome.PREEMPTED if message.outcome == Outcome.PREEMPTED else Outcome.CANCELLED
                    held.cancel(outcome, message.reason)
            case StreamsWanted():
                conversation.want(message.streams)
            case AttemptRecorded():
                if held is None or held.ended is not None:
                    self._forget(conversation, says_idle=not message.next_follows)

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
        if self.attempt is not None:
            conversation.resume(self.attempt)
        for notice in self._notices:
            conversation.link.tell(notice)
        self._notices.clear()

    def _assign(self, conversation: Conversation, message: Assign) -> None:
        if len(message.assignments) != 1:
            raise PeerError(f"a worker runs one attempt, but {len(message.assignments)} were assigned")
        (assignment,) = message.assignments
        if not (0 < assignment.job < 1 << 63 and 0 < assignment.attempt < 1 << 32 and assignment.lease_s >= 0):
            raise PeerError(f"attempt {assignment.attempt} of job {assignment.job}, lease {assignment.lease_s} s")
        if self.attempt is not None:
            if (assignment.job, assignment.attempt) != self.attempt.key:
                self._refuse(conversation, assignment, f"this worker runs job {self.attempt.assignment.job}")
            return
        if len(assignment.recipe.steps) > MAX_STEPS:
            count = len(assignment.recipe.steps)
            self._refuse(conversation, assignment, f"a recipe of {count} steps: {MAX_STEPS} are the limit")
            return
        try:
            attempt = Attempt(self._opening, assignment, self._directory, self._variables, self.tell, wakes=self._wakes)
        except Exception as error:
            traceback.print_exc()
            self._refuse(conversation, assignment, _in_words(error))
            return
        self.attempt = attempt
        self.lease_s = assignment.lease_s
        conversation.begin(attempt)
        self.guard(attempt, attempt.prepare)

    def _refuse(self, conversation: Conversation, assignment: Assignment, reason: str) -> None:
        now_s = time.time()
        result = AttemptResult(
            outcome=Outcome.INFRA,
            exit_status=None,
            steps=(),
            log=LogInfo(bytes=0, sha256=hashlib.sha256().hexdigest(), complete=True),
            reason=reason,
            started_s=now_s,
            finished_s=now_s,
        )
        conversation.link.tell(AttemptEnded(job=assignment.job, attempt=assignment.attempt, result=result))

    def _forget(self, conversation: Conversation, *, says_idle: bool) -> None:
        """The attempt is safe with the coordinator: remove all of it, then end, or be ready for the next one."""
        conversation.forget()
        if self.attempt is not None:
            self.remove(self.attempt)
        if not self._opening.reuse:
            self.is_done = True
            return
        self.lease_s = self._idle_lease_s
        if says_idle:
            conversation.link.tell(WorkerIdle(worker=self._opening.worker))

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


def _in_words(error: Exception) -> str:
    """One sentence with the place: nobody may read the worker's stderr."""
    place = ""
    at = error.__traceback__
    while at is not None:
        place = f" ({os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno})"
        at = at.tb_next
    return f"the worker failed: {type(error).__name__}: {error}{place}"
