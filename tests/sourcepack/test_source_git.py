"""What belongs to a tree, compared with what git itself says."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sourcetrees import make_tree

from biruda.sourcepack.entry import EntryKind
from biruda.sourcepack.tree import walk

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed: nothing to compare with")

ENVIRONMENT = {**os.environ, "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

NAMES = [
    "a",
    "b",
    "ab",
    "foo",
    "foo.o",
    "bar.c",
    "x y",
    "build",
    "#h",
    "!n",
    "[z]",
    "\\b",
    "foo ",
    "é",
    "a\nb",
    "a]",
    "-",
]
SPACED = (
    r"a b foo * ** ? / / [ab] [!a] [a-f] [^b] \* \ [[:alpha:]] []-a] [a-] *.o .c build # ! [ ] *** **/ /** [[:no:]] "
    r"[[:] [\]] [a é \/ [z] + ( . [--0] [b-a]"
)
FRAGMENTS = SPACED.split()


def git(top: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(top), "--literal-pathspecs", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True).stdout


def listed_by_git(top: Path) -> set[bytes]:
    listing = git(top, "ls-files", "-co", "-z", "--exclude-standard").split(b"\0")
    return {name for name in listing if name and os.path.lexists(os.path.join(os.fsencode(top), name))}


def names_in(top: Path) -> set[bytes]:
    return {found.path for found in walk(top).found if found.kind is not EntryKind.DIRECTORY}


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    top.mkdir()
    git(top, "init", "-q", "--template=")
    return top


def fill(chance: random.Random, directory: Path, depth: int) -> list[Path]:
    made: list[Path] = []
    for name in chance.sample(NAMES, chance.randint(1, 5)):
        path = directory / name
        if depth < 3 and chance.random() < 0.45:
            path.mkdir()
            made += fill(chance, path, depth + 1)
            continue
        if chance.random() < 0.1:
            path.symlink_to("nowhere")
        else:
            path.write_text("x")
        made.append(path)
    if depth == 0 or chance.random() < 0.4:
        rules = "\n".join(pattern(chance) for _ in range(chance.randint(1, 5)))
        (directory / ".gitignore").write_text(rules, newline="")
    return made


def pattern(chance: random.Random) -> str:
    text = "".join(chance.choice(FRAGMENTS) for _ in range(chance.randint(1, 4)))
    text = chance.choice(["", "", "", "!"]) + chance.choice(["", "", "", "/"]) + text
    return text + chance.choice(["", "", "", "/", "  ", "\\ ", "\r"])


@settings(max_examples=60, deadline=None, database=None)
@given(seed=st.integers(0, 2**32))
def test_any_tree_has_what_git_lists(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(seed)
    top = tmp_path_factory.mktemp("tree")
    git(top, "init", "-q", "--template=")
    made = fill(chance, top, 0)
    if chance.random() < 0.3:
        make_tree(top, {".git/info/exclude": pattern(chance) + "\n" + pattern(chance)})
    if chance.random() < 0.5:
        tracked = chance.sample(made, min(len(made), 3))
        git(top, "add", "-f", "--", *(str(path.relative_to(top)) for path in tracked))
        git(top, "update-index", "--index-version", chance.choice("234"))
    assert names_in(top) == listed_by_git(top)
    shutil.rmtree(top)


def test_untracked_and_changed_files_belong_and_ignored_ones_do_not(work_tree: Path) -> None:
    make_tree(work_tree, {".gitignore": "*.o\nbuild/\n", "main.c": "1", "main.o": "", "build/x": "", "sub/new.c": ""})
    git(work_tree, "add", "main.c")
    (work_tree / "main.c").write_text("2")
    assert names_in(work_tree) == {b".gitignore", b"main.c", b"sub/new.c"} == listed_by_git(work_tree)


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_tracked_files_belong_although_a_rule_ignores_them(work_tree: Path, version: str) -> None:
    long_name = "n" * 250 + "/" + "m" * 250
    files = ["deep/er/kept.o", "deep/er/other.o", "deep/kept.c", long_name]
    make_tree(work_tree, {**dict.fromkeys(files, ""), "deep/er/left.o": "", ".gitignore": "deep/\n*.o\nn*\n"})
    git(work_tree, "add", "-f", *files)
    if version == "3":
        git(work_tree, "add", "-f", "-N", ".gitignore")  # an entry with extended flags
    git(work_tree, "update-index", "--index-version", version)
    assert names_in(work_tree) == {name.encode() for name in [*files, ".gitignore"]} == listed_by_git(work_tree)


def test_index_of_sha256_objects_is_read(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--template=", "--object-format=sha256")
    make_tree(tmp_path, {".gitignore": "*.o\n", "a.o": "", "b.o": ""})
    git(tmp_path, "add", "-f", "a.o")
    assert names_in(tmp_path) == {b".gitignore", b"a.o"} == listed_by_git(tmp_path)


@pytest.mark.parametrize("damage", ["split", "short", "version"])
def test_index_that_cannot_be_read_is_named_and_the_rules_decide(work_tree: Path, damage: str) -> None:
    make_tree(work_tree, {".gitignore": "*.o\n", "a.o": "", "b.c": ""})
    git(work_tree, "add", "-f", "a.o")
    index = work_tree / ".git" / "index"
    data = index.read_bytes()
    if damage == "split":
        git(work_tree, "update-index", "--split-index")
    else:
        index.write_bytes(data[:40] if damage == "short" else data[:7] + b"\x09" + data[8:])
    tree = walk(work_tree)
    assert {found.path for found in tree.found} == {b".gitignore", b"b.c"}
    assert len(tree.skipped) == 1
    assert str(index) in tree.skipped[0]


def test_part_of_a_work_tree_follows_the_rules_above_it(work_tree: Path) -> None:
    make_tree(
        work_tree,
        {
            ".gitignore": "*.o\n/part/anchored\nkept.o\n",
            ".birudaignore": "*.big\n",
            "part/.gitignore": "!b.o\n",
            "part/a.o": "",
            "part/b.o": "",
            "part/c.big": "",
            "part/anchored": "",
            "part/sub/anchored": "",
            "part/sub/kept.o": "",
        },
    )
    git(work_tree, "add", "-f", "part/sub/kept.o")
    assert names_in(work_tree / "part") == {b".gitignore", b"b.o", b"sub/anchored", b"sub/kept.o"}


def test_directory_that_the_tree_around_it_ignores_stands_alone(work_tree: Path) -> None:
    make_tree(work_tree, {".gitignore": "*\n", "project/main.c": "", "project/.gitignore": "*.o\n", "project/x.o": ""})
    assert names_in(work_tree / "project") == {b"main.c", b".gitignore"}


def test_repository_inside_has_rules_of_its_own(work_tree: Path) -> None:
    make_tree(
        work_tree, {".gitignore": "*.o\n", ".birudaignore": "*.big\n", "a.o": "", "inner/a.o": "", "inner/x.big": ""}
    )
    git(work_tree / "inner", "init", "-q", "--template=")
    make_tree(work_tree, {"inner/.gitignore": "*.c\n", "inner/a.c": "", "inner/b.c": ""})
    git(work_tree / "inner", "add", "-f", "b.c")
    assert names_in(work_tree) == {b".gitignore", b".birudaignore", b"inner/.gitignore", b"inner/a.o", b"inner/b.c"}


def test_linked_work_tree_finds_its_index_and_the_shared_excludes(work_tree: Path, tmp_path: Path) -> None:
    make_tree(work_tree, {"kept.o": "", "main.c": ""})
    git(work_tree, "add", "-f", ".")
    who = ("-c", "user.name=n", "-c", "user.email=e")
    git(work_tree, *who, "commit", "-q", "-m", "first")
    linked = tmp_path / "linked"
    git(work_tree, "worktree", "add", "-q", str(linked))
    make_tree(work_tree, {".git/info/exclude": "*.o\n"})
    make_tree(linked, {"left.o": ""})
    assert names_in(linked) == {b"kept.o", b"main.c"} == listed_by_git(linked)
