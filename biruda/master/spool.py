"""The spool: what came out, under names that say where. A file appears under its name only when it is whole."""

import contextlib
import ctypes
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from biruda.errors import ConfigError
from biruda.model import LogInfo

PARTIAL = ".partial"
INDEX = ".index"

SMALL_LOG_BYTES = 64 * 1024
"""A log of so many bytes waits in the store for its fsync, many at once; a larger one has its own."""


class Spool:
    """A directory of finished attempts, and below .partial what is still coming in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = os.fspath(directory)
        self._partial = f"{self._path}/{PARTIAL}"
        try:
            (directory / PARTIAL).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{directory}: the spool cannot be made: {error.strerror}",
                hint="set [master] spool to a directory on a disk with room",
            ) from error

    def partial_log(self, job: int, attempt: int) -> Path:
        return self.directory / PARTIAL / f"{job}.{attempt}.log"

    def partial_artifacts(self, job: int, attempt: int) -> Path:
        return self.directory / PARTIAL / f"{job}.{attempt}.d"

    def times(self, job: int, attempt: int) -> Path:
        """When the log's lines came. It is written while the attempt runs, and stays."""
        return self.directory / INDEX / f"{job}.{attempt}.times"

    def index(self, job: int, attempt: int) -> Path:
        """Where the lines of a large log are. A cache."""
        return self.directory / INDEX / f"{job}.{attempt}.lines"

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def artifacts(self, name: str) -> Path:
        return self.directory / f"{name}.d"

    def log_info(self, job: int, attempt: int, name: str) -> LogInfo:
        """What is there of a log whose attempt was lost: never complete."""
        path = self.partial_log(job, attempt)
        if not path.exists():
            path = self.log(name)  # it was published before, and could not be recorded then
        digest = hashlib.sha256()
        size = 0
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
        return LogInfo(bytes=size, sha256=digest.hexdigest(), complete=False)

    def publish(self, record: Mapping[str, Any]) -> bytes | None:
        """Give an attempt's files their names. May be repeated.

        Gives the whole log if it is small: what was published is not yet sure to be on disk, and the caller keeps the
        bytes until sync() has returned. A large log, and every artifact, is on disk on return; the names of its files
        are when sync_names() has returned.
        """
        name, job, attempt = record["spool"], record["job"], record["attempt"]
        partial, final = f"{self._partial}/{job}.{attempt}.log", f"{self._path}/{name}.log"
        log = self._publish_log(partial, final) if record["log"]["bytes"] else _publish_nothing(final)
        if record["artifacts"]:
            self._publish_artifacts(self.partial_artifacts(job, attempt), self.artifacts(name))
        elif os.path.lexists(unwanted := f"{self._partial}/{job}.{attempt}.d"):  # the attempt was lost while they came
            shutil.rmtree(unwanted, ignore_errors=True)
        self._write_whole(f"{name}.json", _json(record))
        return log

    def _publish_log(self, partial: str, final: str) -> bytes | None:
        try:
            fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # nothing was printed, or this was done before
            fd = os.open(final, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            partial = final
        try:
            log = os.pread(fd, SMALL_LOG_BYTES + 1, 0)
            if len(log) > SMALL_LOG_BYTES:
                os.fsync(fd)
        finally:
            os.close(fd)
        if partial != final:
            os.replace(partial, final)
        return log if len(log) <= SMALL_LOG_BYTES else None

    def _publish_artifacts(self, partial: Path, final: Path) -> None:
        if not partial.exists():
            return  # this was done before
        for directory, _, files in os.walk(partial):
            for path in (directory, *(os.path.join(directory, name) for name in files)):
                _fsync(path)
        if final.exists():  # published before and not recorded: it goes as a whole
            aside = partial.with_suffix(".old")
            shutil.rmtree(aside, ignore_errors=True)
            final.replace(aside)
            partial.replace(final)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            partial.replace(final)

    def _write_whole(self, name: str, data: bytes) -> None:
        temporary = f"{self._partial}/{name}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.replace(temporary, f"{self._path}/{name}")

    def restore(self, record: Mapping[str, Any], log: bytes) -> None:
        """Write the files of an attempt that were published and perhaps lost by a power cut. At start."""
        name = record["spool"]
        self._write_whole(f"{name}.log", log)
        self._write_whole(f"{name}.json", _json(record))

    def sync_names(self) -> None:
        """What was published before has its name on disk on return."""
        _fsync(self._path)

    def sync(self) -> None:
        """All that was published before is on disk on return. Blocking, for as long as the disk needs.

        One syncfs(2): cheaper than two fsyncs for each of thousands of small files.
        """
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), self._path)
        finally:
            os.close(fd)

    def drop(self, job: int, attempt: int) -> None:
        """Forget what came in of an attempt that is none."""
        self.partial_log(job, attempt).unlink(missing_ok=True)
        self.times(job, attempt).unlink(missing_ok=True)
        shutil.rmtree(self.partial_artifacts(job, attempt), ignore_errors=True)

    def sweep(self, is_live: Callable[[int, int], bool]) -> None:
        """Remove leftovers of attempts that are not out any more. At start."""
        for entry in os.scandir(self.directory / PARTIAL):
            number, _, rest = entry.name.partition(".")
            attempt = rest.partition(".")[0]
            if not (number.isdigit() and attempt.isdigit() and is_live(int(number), int(attempt))):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _publish_nothing(final: str) -> bytes:
    """The log of an attempt that printed nothing."""
    os.close(os.open(final, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644))
    return b""


def _json(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _fsync(path: "str | os.PathLike[str]") -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
