"""Where git keeps its own files for a work tree; read without git."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GitDirectory:
    """The git directory of one work tree; a linked work tree shares `common` with others."""

    top: Path  # of the work tree
    path: Path
    common: Path


def git_directory_of(top: Path) -> GitDirectory | None:
    """The git directory of the work tree that begins here, None where none does."""
    path = top / ".git"
    try:
        if path.is_file():
            path = top / _pointer(path, "gitdir: ")
        if not (path / "HEAD").is_file() and not (path / "HEAD").is_symlink():
            return None
        pointer = path / "commondir"
        common = path / _pointer(pointer, "") if pointer.is_file() else path
        return GitDirectory(top, path, common) if (common / "objects").is_dir() else None
    except (OSError, ValueError):
        return None


def surrounding_git_directory(directory: Path) -> GitDirectory | None:
    """The git directory of the work tree that this directory lies in."""
    for top in (directory, *directory.parents):
        found = git_directory_of(top)
        if found is not None:
            return found
    return None


def _pointer(path: Path, prefix: str) -> str:
    text = path.read_text("utf-8", "surrogateescape").rstrip("\n")
    if not text.startswith(prefix):
        raise ValueError(f"{path}: does not begin with {prefix!r}")
    return text.removeprefix(prefix)
