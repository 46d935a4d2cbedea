"""Small working stand-ins, and values of any type of ours."""

import dataclasses
import hashlib
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from hypothesis import strategies as st

from biruda.messages import HostReport
from biruda.model import (
    Artifact,
    AttemptResult,
    EnvironmentReport,
    Facts,
    JobSpec,
    Kind,
    LogInfo,
    Outcome,
    Recipe,
    Step,
    StepResult,
    WorkerReport,
)

WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type annotation: of our dataclasses every field, also those with a default."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, typing.NewType):
        return values(kind.__supertype__)
    if origin is types.UnionType:
        return st.one_of([values(item) for item in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(item) for item in arguments))
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(st.text(max_size=8), values(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{item.name: values(hints[item.name]) for item in dataclasses.fields(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    simple = {str: st.text(max_size=12), int: WHOLE, float: NUMBER, bool: st.booleans(), types.NoneType: st.none()}
    return simple[kind]


# Values of the farm.


def environment(name: str = "bookworm", **fields: Any) -> EnvironmentReport:
    given = {"kind": Kind.PROCESS, "arch": "amd64", "platform": "debian12", "usable": True}
    return EnvironmentReport(name=name, **{**given, **fields})


def recipe(*words: str) -> Recipe:
    return Recipe(steps=(Step(name="main", argv=words or ("true",)),))


def worker(name: str, environment: str = "bookworm", **fields: Any) -> WorkerReport:
    given = {"arch": "amd64", "platform": "debian12", "recipe": recipe("run", name)}
    return WorkerReport(name=name, environment=environment, **{**given, **fields})


def host_report(host: str = "h1", slots: int = 2, **fields: Any) -> HostReport:
    given: dict[str, Any] = {"arch": "amd64", "platform": "debian12", "pid": 1, "version": "0"}
    given["environments"] = (environment(),)
    return HostReport(host=host, slots=slots, **{**given, **fields})


def job_spec(**requirements: str) -> JobSpec:
    return JobSpec(recipe=recipe(), name="job", requirements=requirements)


def log_info(data: bytes = b"", *, complete: bool = True) -> LogInfo:
    return LogInfo(bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), complete=complete)


def result(outcome: Outcome = Outcome.PASSED, log: bytes = b"", **fields: Any) -> AttemptResult:
    status = {Outcome.PASSED: 0, Outcome.FAILED: 1}.get(outcome)
    given: dict[str, Any] = {"steps": (), "log": log_info(log), "started_s": 1000.0, "finished_s": 1001.0}
    return AttemptResult(outcome=outcome, exit_status=status, **{**given, **fields})


def artifact(path: str, content: bytes = b"", **fields: Any) -> Artifact:
    given = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Artifact(path=path, **{**given, **fields})


def step_result(name: str = "main", exit_status: int | None = 0) -> StepResult:
    return StepResult(
        name=name, argv=("true",), exit_status=exit_status, signal=None, wall_s=0.1, cpu_s=0.1, peak_rss_bytes=1
    )


FACTS = Facts(arch="amd64", platform="debian12", libc="glibc 2.36", evidence=("etc/os-release",))
