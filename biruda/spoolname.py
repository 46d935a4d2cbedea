"""Names of spool files, <arch>-<platform>-<host>-<job>[.<attempt>]: they always parse, whatever the host is called."""

import re
from dataclasses import dataclass

from biruda.model import AttemptNumber, JobId

_UNSAFE = re.compile(r"[^A-Za-z0-9._]")
_UNSAFE_IN_HOST = re.compile(r"[^A-Za-z0-9._-]")
_NAME = re.compile(
    r"(?P<arch>[A-Za-z0-9._]+)-(?P<platform>[A-Za-z0-9._]+)-(?P<host>[A-Za-z0-9._-]+)-(?P<job>[1-9][0-9]*)(\.(?P<attempt>[1-9][0-9]*))?"
)


@dataclass(frozen=True, slots=True)
class SpoolName:
    """The parts of a spool name."""

    arch: str
    platform: str
    host: str
    job: JobId
    attempt: AttemptNumber  # not written when it is the first

    def __str__(self) -> str:
        arch, platform = (_UNSAFE.sub("_", part) or "_" for part in (self.arch, self.platform))
        host = _UNSAFE_IN_HOST.sub("_", self.host) or "_"
        number = str(self.job) if self.attempt == 1 else f"{self.job}.{self.attempt}"
        return f"{arch}-{platform}-{host}-{number}"


def parse(name: str) -> SpoolName:
    """The parts of a spool name without its extension; ValueError where it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a spool name (arch-platform-host-job)")
    return SpoolName(
        arch=match["arch"],
        platform=match["platform"],
        host=match["host"],
        job=JobId(int(match["job"])),
        attempt=AttemptNumber(int(match["attempt"] or 1)),
    )
