"""Logs and artifacts of attempts that have ended here and are not yet recorded by the master.

Their results stand in the ledger, one line each; so an attempt that printed nothing and left no artifact is no file.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from biruda.model import LogInfo


class Outbox:
    """JOB.ATTEMPT.log, and JOB.ATTEMPT.d/ with the artifacts by channel."""

    def __init__(self, directory: Path) -> None:
        self._directory = os.fspath(directory)
        directory.mkdir(parents=True, exist_ok=True)

    def log(self, job: int, attempt: int) -> str:
        return f"{self._directory}/{job}.{attempt}.log"

    def artifacts(self, job: int, attempt: int) -> str:
        return f"{self._directory}/{job}.{attempt}.d"

    def artifact(self, job: int, attempt: int, channel: int) -> str:
        return f"{self._directory}/{job}.{attempt}.d/{channel}"

    def begin_artifacts(self, job: int, attempt: int) -> None:
        """Make the directory of an attempt's artifacts."""
        os.makedirs(self.artifacts(job, attempt), exist_ok=True)

    def take_log(self, job: int, attempt: int, path: str) -> str:
        """Move a worker's log here and give its new path; an open descriptor of it stays good. An empty one stays."""
        final = self.log(job, attempt)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_size:
                os.replace(path, final)
        return final

    def forget(self, job: int, attempt: int, *, artifacts: bool = True) -> None:
        """Remove everything of an attempt."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log(job, attempt))
        if artifacts:
            shutil.rmtree(self.artifacts(job, attempt), ignore_errors=True)

    def sweep(self, held: Collection[tuple[int, int]]) -> None:
        """Remove what is of no attempt that is held."""
        for entry in os.scandir(self._directory):
            job, _, rest = entry.name.partition(".")
            attempt = rest.partition(".")[0]
            if not (job.isdigit() and attempt.isdigit() and (int(job), int(attempt)) in held):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def log_info(path: str, *, complete: bool) -> LogInfo:
    """Size and digest of what is in a log file; no file is an empty log. Blocking."""
    digest = hashlib.sha256()
    size = 0
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return LogInfo(bytes=size, sha256=digest.hexdigest(), complete=complete)
