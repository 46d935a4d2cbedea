"""What may be asked for in the body of a request, and whether it makes sense. Hostile until checked here."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from biruda.convert import decode
from biruda.errors import UserError
from biruda.master.farm import Farm
from biruda.master.matching import KEYS, in_words
from biruda.model import JobSpec, Recipe, Step

T = TypeVar("T")

MAX_STEPS = 1000
MAX_JOBS = 1_000_000


class InvalidRequest(UserError):
    """The body is not what the API takes (HTTP 422)."""


class Ambiguous(UserError):
    """Several things fit a name (HTTP 409)."""

    def __init__(self, message: str, *, hint: str, candidates: list[dict[str, Any]]) -> None:
        super().__init__(message, hint=hint)
        self.candidates = candidates


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job to submit."""

    recipe: Recipe
    name: str = ""
    requirements: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    priority: int = 0
    retries: int | None = None  # None: [master] infra_retries
    queue: bool = False  # wait, although nothing known fits


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsRequest:
    jobs: tuple[JobRequest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSelection:
    """Which worker of a name is meant."""

    arch: str | None = None
    platform: str | None = None
    host: str | None = None
    all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonRequest:
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which jobs are meant: some by number, or all that a filter finds."""

    jobs: tuple[int, ...] = ()
    filter: Mapping[str, str] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainRequest:
    """Other requirements than the job's own; "" takes one away."""

    requirements: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRequest:
    host: str | None = None


class NotAllowed(UserError):
    """Who asks may not do that (HTTP 403)."""


def parse(kind: type[T], body: bytes) -> T:
    """The body as a value. Raises InvalidRequest that says where it does not fit; an empty body is an empty object."""
    try:
        return decode(kind, orjson.loads(body) if body else {}, "body")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"the request cannot be understood: {error}", hint="docs/api.md shows what it takes"
        ) from None


def parse_jobs(body: bytes) -> tuple[JobRequest, ...]:
    """The jobs of a JobsRequest, as parse() gives them; those that are equal are one value: many cost little."""
    try:
        builtins = orjson.loads(body)
        keys = [orjson.dumps(item) for item in builtins["jobs"]]
        first = dict(zip(reversed(keys), reversed(builtins["jobs"]), strict=True))
        distinct = parse(JobsRequest, orjson.dumps({**builtins, "jobs": list(first.values())})).jobs
    except (ValueError, TypeError, KeyError, RecursionError, InvalidRequest):
        return parse(JobsRequest, body).jobs  # which says what is wrong, and where
    by_key = dict(zip(first, distinct, strict=True))
    return tuple([by_key[key] for key in keys])


def job_spec(request: JobRequest, where: str, user: str, infra_retries: int) -> JobSpec:
    """A request lowered to what is kept. Raises InvalidRequest for what can never run."""
    _check_recipe(request.recipe, where)
    check_requirements(request.requirements, where)
    retries = infra_retries if request.retries is None else request.retries
    if not 0 <= retries <= 100:
        raise InvalidRequest(f"{where}: retries = {retries}: must be 0 to 100")
    if abs(request.priority) > 1_000_000:
        raise InvalidRequest(f"{where}: priority = {request.priority}: must be -1000000 to 1000000")
    return JobSpec(
        recipe=request.recipe,
        name=request.name[:200],
        requirements=dict(request.requirements),
        source=request.source,
        user=user,
        priority=request.priority,
        retries=retries,
    )


def check_requirements(requirements: Mapping[str, str], where: str) -> None:
    """Raise InvalidRequest for what no environment has."""
    for key in requirements:
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KEYS)}"
            raise InvalidRequest(f"{where}: unknown requirement {key!r}", hint=hint)


def _check_recipe(recipe: Recipe, where: str) -> None:
    if not 1 <= len(recipe.steps) <= MAX_STEPS:
        raise InvalidRequest(f"{where}: a recipe has 1 to {MAX_STEPS} steps, not {len(recipe.steps)}")
    _check_env(recipe.env, where)
    for index, step in enumerate(recipe.steps, start=1):
        _check_step(step, f"{where}: step {index}")
    for pattern in (*recipe.artifacts, *recipe.reports):
        if not pattern or pattern.startswith("/") or ".." in pattern.split("/") or "\0" in pattern:
            raise InvalidRequest(f"{where}: artifact pattern {pattern!r}: must stay below the work directory")
    limits = recipe.limits
    for name in ("total_s", "silence_s", "memory_bytes", "pids", "cpus", "disk_bytes"):
        value = getattr(limits, name)
        if value is not None and not value > 0:
            raise InvalidRequest(f"{where}: limit {name} = {value}: must be more than 0")
    if not 0 <= limits.grace_s <= 86400:
        raise InvalidRequest(f"{where}: limit grace_s = {limits.grace_s:g}: must be 0 to 86400")


def _check_step(step: Step, where: str) -> None:
    if not step.argv or not step.argv[0]:
        raise InvalidRequest(f"{where}: it has no program to run")
    if any("\0" in word for word in (*step.argv, step.cwd)):
        raise InvalidRequest(f"{where}: a NUL byte cannot be part of a command")
    if step.cwd.startswith("/") or ".." in step.cwd.split("/"):
        raise InvalidRequest(f"{where}: cwd {step.cwd!r}: must stay below the work directory")
    for name in ("limit_s", "silence_s"):
        value = getattr(step, name)
        if value is not None and not value > 0:
            raise InvalidRequest(f"{where}: {name} = {value}: must be more than 0")
    _check_env(step.env, where)


def _check_env(env: Mapping[str, str], where: str) -> None:
    for key, value in env.items():
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise InvalidRequest(f"{where}: env {key!r}: is no name and value that a process can have")


def refuse_unknown(farm: Farm, spec: JobSpec, where: str) -> None:
    """Raise InvalidRequest when nothing that the farm knows can ever run this."""
    if farm.can_ever_fit(spec):
        return
    offers = [(host.report.host, offer) for host, offer in farm.offers()]
    names = sorted({offer.name for _, offer in offers})
    wanted = spec.requirements.get("env")
    if wanted is not None and names and wanted not in names:
        close = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise InvalidRequest(f"{where}: there is no environment {wanted!r}", hint=hint)
    there_are = ", ".join(sorted({f"{offer.arch} {offer.platform} ({offer.name} on {host})" for host, offer in offers}))
    raise InvalidRequest(
        f"{where}: no environment fits {in_words(spec.requirements)}",
        hint=f"there are {there_are or 'none yet'}; --queue waits until one comes",
    )
