"""How a job ended, for a person: which step, how, and whose fault it was."""

import re
import signal
from typing import Any

from biruda.master.views import View
from biruda.model import Outcome

BLAMES_A_STEP = (Outcome.FAILED, Outcome.TIMEOUT)

_TESTS = re.compile(r"(?i)test|check|verif|lint")

FAULTS = {
    Outcome.PASSED: "",
    Outcome.TIMEOUT: "a limit was over: the job is too slow, or the limit too short",
    Outcome.CANCELLED: "somebody asked for its end",
    Outcome.PREEMPTED: "the farm needed the place for another job",
    Outcome.INFRA: "the farm's fault, not the job's",
    Outcome.ENVIRONMENT: "an administrator has to mend the environment; not the job's fault",
}


def blamed_step(view: View) -> int | None:
    """The index of the step that is to blame for a job's end; None where none is."""
    if view["outcome"] not in BLAMES_A_STEP:
        return None
    for position, step in enumerate(view["steps"]):
        if step["exit_status"] != 0 or step["signal"]:
            return position
    return None


def ending(view: View) -> dict[str, Any] | None:
    """{"step", "name", "how", "fault", "reason"} of a job that has ended; None of one that has not."""
    if view["outcome"] is None:
        return None
    outcome = Outcome(view["outcome"])
    position = blamed_step(view)
    step = view["steps"][position] if position is not None else None
    if outcome is Outcome.FAILED:
        whose = "tests" if step is not None and _TESTS.search(step["name"]) else "sources"
        fault = f"the {whose}' fault, not the farm's"
    else:
        fault = FAULTS[outcome]
    return {
        "step": position,
        "name": step["name"] if step is not None else None,
        "how": how(step) if step is not None else "",
        "fault": fault,
        "reason": view["reason"],
    }


def how(step: View) -> str:
    """`exit 2`, `killed by SIGSEGV`, `time limit of 5 s`."""
    if step["note"]:
        return str(step["note"])
    if step["signal"]:
        try:
            return f"killed by {signal.Signals(step['signal']).name}"
        except ValueError:
            return f"killed by signal {step['signal']}"
    return "did not end" if step["exit_status"] is None else f"exit {step['exit_status']}"
