"""Does an environment of a host fit what a job asks for, and if not, which clause fails. Pure."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from biruda.model import EnvironmentReport, WorkerReport

KEYS = ("arch", "platform", "host", "env", "kind")
"""What `requirements` may name."""


WORKER = "worker"
"""A start of a named worker requires it under this key, so that any host that has it may run it."""


def misfits(
    requirements: Mapping[str, str], host: str, environment: EnvironmentReport, workers: Iterable[WorkerReport] = ()
) -> list[str]:
    """One clause for each requirement that does not hold; none: it fits. workers: those that the host offers."""
    offered = {
        "arch": environment.arch,
        "platform": environment.platform,
        "host": host,
        "env": environment.name,
        "kind": environment.kind.value,
    }
    return [
        f"{key} = {offered[key]}, not {wanted}"
        for key, wanted in requirements.items()
        if key != WORKER and not fnmatchcase(offered[key], wanted)
    ] + [
        f"{environment.name} has no worker {wanted}"
        for key, wanted in requirements.items()
        if key == WORKER and (wanted, environment.name) not in {(item.name, item.environment) for item in workers}
    ]


def in_words(requirements: Mapping[str, str]) -> str:
    """`arch=amd64,platform=debian*`, or "anything"."""
    return ",".join(f"{key}={value}" for key, value in requirements.items()) or "anything"
