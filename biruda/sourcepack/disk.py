"""Files that appear under their name only when they are whole; what the disk refuses is an EnvironmentFault."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from biruda.errors import EnvironmentFault

TEMPORARY_PREFIX = ".tmp-"

_BUFFER_BYTES = 1 << 20


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into an EnvironmentFault that names the path."""
    try:
        yield
    except OSError as error:
        raise _fault(path, error) from error


class Temporary:
    """A new file in a directory, removed at the end of the block unless it was given a name. A crash leaves it."""

    def __init__(self, directory: Path) -> None:
        with on_disk(directory):
            descriptor, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=directory)
            self._file = open(descriptor, "w+b", buffering=_BUFFER_BYTES)  # noqa: SIM115 - closed by __exit__
        self._path = Path(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # what was not written by then is not wanted either
            self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Adds data at the end."""
        try:
            self._file.write(data)
        except OSError as error:  # on_disk() would take longer than the write
            raise _fault(self._path, error) from error

    def read_back(self, length: int, offset: int) -> bytes:
        """What was written there."""
        with on_disk(self._path):
            self._file.flush()
            return os.pread(self._file.fileno(), length, offset)

    def sync(self) -> None:
        """Returns when all of it would survive a power cut."""
        with on_disk(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def become(self, path: Path) -> None:
        """Gives the file, as far as it is written, this name; a file that had it before is gone."""
        with on_disk(path):
            self._file.flush()
            self._path.replace(path)


def _fault(path: Path, error: OSError) -> EnvironmentFault:
    hint = "the disk must work and have room, and the directory must be writable"
    return EnvironmentFault(f"{path}: {error.strerror}", hint=hint)
