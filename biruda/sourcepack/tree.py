"""What belongs to a source tree: all of it but `.git` and what ignore files leave out (docs/source-packs.md)."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from biruda.errors import UserError
from biruda.sourcepack.entry import EntryKind
from biruda.sourcepack.gitdir import GitDirectory, git_directory_of, surrounding_git_directory
from biruda.sourcepack.gitindex import IndexTrouble, tracked_names
from biruda.sourcepack.ignore import Patterns
from biruda.sourcepack.names import shown

_SPECIAL_FILES = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a fifo",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Found(NamedTuple):
    """One thing that belongs to the tree."""

    path: bytes  # relative to the tree
    kind: EntryKind
    stat: os.stat_result


@dataclass(frozen=True, slots=True)
class Tree:
    """What a directory held when it was walked."""

    root: bytes
    found: tuple[Found, ...]  # sorted by path, as bytes: a directory comes before what lies in it
    skipped: tuple[str, ...]  # what cannot be packed, each with the reason


def walk(directory: Path, *, whole: bool = False) -> Tree:
    """Everything that belongs to the tree. UserError names what cannot be read.

    whole: whatever its ignore files say: of what was packed by somebody, nothing is left out.
    """
    root = os.fsencode(os.path.abspath(directory))
    if not os.path.isdir(root):
        raise UserError(f"{shown(root)}: not a directory, so it cannot be packed")
    walker = _Walker(root, whole=whole)
    walker.walk()
    walker.found.sort()
    return Tree(root, tuple(walker.found), tuple(sorted(walker.skipped)))


def unreadable(path: bytes, error: OSError) -> UserError:
    """What to say when a part of the tree cannot be read."""
    return UserError(
        f"{shown(path)}: cannot be packed: {error.strerror}",
        hint="make it readable, or leave it out with a line in .birudaignore",
    )


class _Level(NamedTuple):
    """One ignore file and where its paths begin."""

    patterns: Patterns
    base: int  # bytes of a path that stand before the part which the patterns see


@dataclass(slots=True)
class _Tracked:
    """The index of one work tree, read when the first ignored name asks for it."""

    git: GitDirectory
    base: int
    trouble: str = ""
    _names: set[bytes] | None = None
    _directories: set[bytes] = field(default_factory=set)

    def has(self, path: bytes, *, is_directory: bool) -> bool:
        """Whether the index has this file, or this directory or something below it."""
        if self._names is None:
            self._names = self._read()
        name = path[self.base :]
        return name in self._names or (is_directory and name in self._directories)

    def _read(self) -> set[bytes]:
        try:
            names = tracked_names(self.git.path, self.git.common)
        except IndexTrouble as error:
            where = shown(os.fsencode(self.git.path / "index"))
            self.trouble = f"{where}: {error}; files that git tracks although a rule ignores them are left out"
            return set()
        for name in names:
            while (name := name.rpartition(b"/")[0]) and name not in self._directories:
                self._directories.add(name)
        return names


class _Scope(NamedTuple):
    """The rules that hold in one directory, the strongest first."""

    own: tuple[_Level, ...]  # .birudaignore
    git: tuple[_Level, ...]  # .gitignore, and last .git/info/exclude
    tracked: _Tracked | None
    only_tracked: bool = False  # within an ignored directory that holds tracked files


class _Standing(Enum):
    """Whether something belongs to the tree."""

    IN = 1
    TRACKED = 2  # ignored, but in the index; of a directory: only what the index names within it
    OUT = 3


class _Walker:
    """Walks one tree. Rules see paths from the top of the outermost work tree, which may lie above the tree."""

    def __init__(self, root: bytes, *, whole: bool) -> None:
        self.found: list[Found] = []
        self.skipped: list[str] = []
        self._root = root
        self._whole = whole
        self._prefix, self._scope = _outer_scope(root)
        self._indexes = [self._scope.tracked] if self._scope.tracked else []

    def walk(self) -> None:
        """Fills `found` and `skipped`."""
        waiting = [(b"", self._scope)]
        while waiting:
            relative, outer = waiting.pop()
            inside = relative + b"/" if relative else b""
            scope, entries = self._enter(relative, inside, outer)
            for entry in entries:
                path = inside + entry.name
                is_directory = entry.is_dir(follow_symlinks=False)
                standing = self._standing_of(scope, entry.name, path, is_directory)
                found = self._look_at(entry, path, is_directory) if standing is not _Standing.OUT else None
                if found is not None:
                    self.found.append(found)
                    if is_directory:
                        waiting.append((path, scope._replace(only_tracked=standing is _Standing.TRACKED)))
        self.skipped += [tracked.trouble for tracked in self._indexes if tracked.trouble]

    def _standing_of(self, scope: _Scope, name: bytes, path: bytes, is_directory: bool) -> _Standing:
        if self._whole and name != b".git":
            return _Standing.IN
        return _standing(scope, name, self._prefix + path, is_directory)

    def _enter(self, relative: bytes, inside: bytes, outer: _Scope) -> tuple[_Scope, list[os.DirEntry[bytes]]]:
        """The rules that hold in the directory, and what is in it."""
        directory = os.path.join(self._root, relative)
        try:
            with os.scandir(directory) as listing:
                entries = list(listing)
        except OSError as error:
            raise unreadable(relative or directory, error) from error
        names = {entry.name for entry in entries}
        base = len(self._prefix) + len(inside)
        git = git_directory_of(Path(os.fsdecode(directory))) if relative and b".git" in names else None
        if git is not None:  # a repository of its own, say a submodule: the rules of the outer one end here
            self._indexes.append(_Tracked(git, base))
            outer = _Scope(outer.own, _exclude_level(git, base), self._indexes[-1])
        return _scope_in(directory, names, base, outer), entries

    def _look_at(self, entry: os.DirEntry[bytes], path: bytes, is_directory: bool) -> Found | None:
        """The entry as it is packed; None when it cannot be."""
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # removed since the directory was read: it is simply not there
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        file_type = stat.S_IFMT(status.st_mode)
        if file_type == stat.S_IFREG:
            return Found(path, EntryKind.FILE, status)
        if is_directory:
            return Found(path, EntryKind.DIRECTORY, status)
        if file_type == stat.S_IFLNK:
            return Found(path, EntryKind.LINK, status)
        self.skipped.append(f"{shown(path)}: {_SPECIAL_FILES.get(file_type, 'neither file nor link')}; left out")
        return None


def _standing(scope: _Scope, name: bytes, path: bytes, is_directory: bool) -> _Standing:
    """.birudaignore has the last word; what git tracks belongs to the tree, ignored or not."""
    if name == b".git":
        return _Standing.OUT
    own = _verdict(scope.own, name, path, is_directory)
    if own is not None:
        return _Standing.OUT if own else _Standing.IN
    if not scope.only_tracked and not _verdict(scope.git, name, path, is_directory):
        return _Standing.IN
    if scope.tracked is not None and scope.tracked.has(path, is_directory=is_directory):
        return _Standing.TRACKED
    return _Standing.OUT


def _verdict(levels: tuple[_Level, ...], name: bytes, path: bytes, is_directory: bool) -> bool | None:
    for patterns, base in levels:
        verdict = patterns.verdict(name, path[base:], is_directory=is_directory)
        if verdict is not None:
            return verdict
    return None


def _outer_scope(root: bytes) -> tuple[bytes, _Scope]:
    """The path from the top of the work tree to this directory, and the rules from there down to it."""
    directory = Path(os.fsdecode(os.path.realpath(root)))
    git = surrounding_git_directory(directory)
    if git is None:
        return b"", _Scope((), (), None)
    scope = _Scope((), _exclude_level(git, 0), _Tracked(git, 0))
    path, at = b"", os.fsencode(git.top)
    for name in map(os.fsencode, directory.relative_to(git.top).parts):
        base = len(path) + 1 if path else 0
        scope = _scope_in(at, {b".gitignore", b".birudaignore"}, base, scope)
        path, at = (path + b"/" + name if path else name), os.path.join(at, name)
        if _standing(scope, name, path, is_directory=True) is not _Standing.IN:
            return b"", _Scope((), (), None)  # asked for although the tree around it ignores it: it stands alone
    return (path + b"/" if path else b""), scope


def _scope_in(directory: bytes, names: set[bytes], base: int, outer: _Scope) -> _Scope:
    """The outer rules with those of this directory's own ignore files before them."""
    scope = outer
    if b".gitignore" in names and not outer.only_tracked:
        scope = scope._replace(git=(*_levels(os.path.join(directory, b".gitignore"), base), *scope.git))
    if b".birudaignore" in names:
        scope = scope._replace(own=(*_levels(os.path.join(directory, b".birudaignore"), base), *scope.own))
    return scope


def _exclude_level(git: GitDirectory, base: int) -> tuple[_Level, ...]:
    return tuple(_levels(os.fsencode(git.common / "info" / "exclude"), base))


def _levels(path: bytes, base: int) -> Iterator[_Level]:
    """The rules of one ignore file. A symlink is none, as for git: it could lead out of the tree."""
    try:
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
                patterns = Patterns(file.read())
            if patterns:
                yield _Level(patterns, base)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error) from error
