"""Which executable is brought to another host."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from biruda.cli.text import escape
from biruda.errors import UserError
from biruda.guessenv import guess_here
from biruda.guessenv.programs import read_program
from biruda.guessenv.tree import File

PIECE_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """The whole of biruda in one file."""

    path: Path
    arch: str  # "" where the file does not say
    size_bytes: int
    sha256: str

    def pieces(self) -> Iterator[bytes]:
        """Its bytes."""
        with self.path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece


def find_executable(given: Path | None, arches: Sequence[str]) -> Executable:
    """The executable for a host that runs programs of these architectures. Raises UserError: how to get one."""
    if given is not None:
        found = _read(given)
        if found.arch not in ("", *arches):
            raise UserError(
                f"{escape(str(given))} is for {found.arch}, and that host is {arches[0]}", hint=_how_to_make(arches[0])
            )
        return found
    candidates = [path for path in (_own(), _built()) if path is not None]
    for path in candidates:
        found = _read(path)
        if found.arch in arches:
            return found
    if arches[0] == guess_here().arch and not candidates:
        raise UserError("there is no executable of biruda yet: it runs from source", hint="./build-static.sh makes it")
    raise UserError(f"there is no executable of biruda for {arches[0]} here", hint=_how_to_make(arches[0]))


def _how_to_make(arch: str) -> str:
    return (
        f"./build-static.sh, run on a host of architecture {arch}, makes dist/biruda for it; bring that one with "
        "--executable FILE"
    )


def _own() -> Path | None:
    """The file that this program was started from, where it is the frozen one."""
    if not getattr(sys, "frozen", False):
        return None
    named = os.environ.get("BIRUDA_EXECUTABLE", "")
    return Path(named or sys.executable)


def _built() -> Path | None:
    """What build-static.sh made in this checkout."""
    path = Path(__file__).resolve().parents[2] / "dist" / "biruda"
    return path if path.is_file() else None


def _read(path: Path) -> Executable:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = os.fstat(file.fileno()).st_size
        return Executable(path=path, arch=_arch_of(path), size_bytes=size, sha256=digest)
    except OSError as error:
        raise UserError(f"{escape(str(path))}: {(error.strerror or 'cannot be read').lower()}") from None


def _arch_of(path: Path) -> str:
    with File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), os.fspath(path)) as file:
        program = read_program(file)
    return program.arch if program is not None else ""
