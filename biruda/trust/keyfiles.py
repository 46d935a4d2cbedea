"""Files that hold keys: never readable by others, never half written, not even for a moment."""

import os
from pathlib import Path

from biruda.errors import ConfigError


def make_directory(path: Path) -> None:
    """The directory is there on return, for its owner alone. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {(error.strerror or 'I/O error').lower()}") from None


def write(path: Path, text: str) -> None:
    """The file has this text and mode 0600, and is on disk, on return. Raises ConfigError."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.unlink(missing_ok=True)  # what a crash left might be readable by others
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {(error.strerror or 'I/O error').lower()}") from None


def read(path: Path) -> str:
    """The text of a file. Raises ConfigError."""
    try:
        return path.read_text("ascii")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or 'I/O error').lower()}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no key or certificate") from None
