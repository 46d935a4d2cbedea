"""What a [[worker]] tells the worker to do, and the words that are replaced in it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from biruda.config.schema import Environment, Worker
from biruda.model import Limits, Recipe, Step

T = TypeVar("T", int, float)

WORDS: Final = ("arch", "platform", "host", "name", "job")

_WORD: Final = re.compile(r"(?<!\$)\{(" + "|".join(WORDS) + r")\}")


def recipe_of(worker: Worker) -> Recipe:
    """What the worker is to do, wherever it runs: its own steps, variables and limits."""
    limits = Limits(
        total_s=worker.limit_s or None,
        silence_s=worker.silence_s or None,
        memory_bytes=worker.memory_bytes or None,
        pids=worker.pids or None,
        cpus=worker.cpus or None,
        disk_bytes=worker.disk_bytes or None,
    )
    return Recipe(steps=worker.steps, env=worker.env, artifacts=worker.artifacts, reports=worker.reports, limits=limits)


def in_environment(recipe: Recipe, environment: Environment) -> Recipe:
    """The recipe as it runs in an environment: over its variables, within its limits, with its grace."""
    limits = replace(
        recipe.limits,
        grace_s=environment.grace_s,
        memory_bytes=_smaller(recipe.limits.memory_bytes, environment.memory_bytes),
        pids=_smaller(recipe.limits.pids, environment.pids),
        cpus=_smaller(recipe.limits.cpus, environment.cpus),
        disk_bytes=_smaller(recipe.limits.disk_bytes, environment.disk_bytes),
    )
    return replace(recipe, env={**environment.env, **recipe.env}, limits=limits)


def _smaller(wanted: T | None, bound: T) -> T | None:
    """The smaller of two limits; None and 0 are no limit."""
    return min((limit for limit in (wanted, bound) if limit), default=None)


def expand(recipe: Recipe, variables: Mapping[str, str]) -> Recipe:
    """The recipe with {arch} {platform} {host} {name} {job} replaced in every string but the names of variables.

    Only exactly these words in single braces, and only those that `variables` has, are replaced; everything else
    stays: {}, {a,b}, {unknown}, and ${name}, which is the shell's.
    """
    return replace(
        recipe,
        steps=tuple(_expand_step(step, variables) for step in recipe.steps),
        env=_expand_values(recipe.env, variables),
        artifacts=tuple(expand_text(pattern, variables) for pattern in recipe.artifacts),
        reports=tuple(expand_text(pattern, variables) for pattern in recipe.reports),
    )


def expand_text(text: str, variables: Mapping[str, str]) -> str:
    """One string, as `expand` does it."""
    return _WORD.sub(lambda match: variables.get(match[1], match[0]), text)


def _expand_values(env: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    return {name: expand_text(value, variables) for name, value in env.items()}


def _expand_step(step: Step, variables: Mapping[str, str]) -> Step:
    return replace(
        step,
        name=expand_text(step.name, variables),
        argv=tuple(expand_text(word, variables) for word in step.argv),
        script=None if step.script is None else expand_text(step.script, variables),
        env=_expand_values(step.env, variables),
        cwd=expand_text(step.cwd, variables),
    )
