"""What a recipe's patterns find, and what they can never reach."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biruda.model import Artifact, Outcome
from biruda.worker.artifacts import Collection, collect, match, open_inside
from biruda.worker.verdict import that_fit
from tests.worker.peer import recipe_of, shell, start_process


def found(work: Path, *patterns: str, reports: tuple[str, ...] = (), limit: int = 10_000) -> Collection:
    collection = Collection()
    for _ in collect(str(work), patterns, reports, collection, limit):
        pass
    return collection


def paths(work: Path, *patterns: str) -> list[str]:
    return [artifact.path for artifact in found(work, *patterns).artifacts]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    for name in ("a.deb", "b.deb", "src/x.c", "src/deep/y.c", "src/deep/.hidden.c", ".git/z.c", "odd [1].c", "src/ä.c"):
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return work


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.deb", ["a.deb", "b.deb"]),
        ("./a.deb", ["a.deb"]),
        ("[ab].deb", ["a.deb", "b.deb"]),
        ("?.deb", ["a.deb", "b.deb"]),
        ("src/*.c", ["src/x.c", "src/ä.c"]),
        ("**/*.c", ["odd [1].c", "src/deep/y.c", "src/x.c", "src/ä.c"]),
        ("src/**", ["src/deep/y.c", "src/x.c", "src/ä.c"]),
        ("**/deep/**/*.c", ["src/deep/y.c"]),
        ("**/**/y.c", ["src/deep/y.c"]),
        ("**/.hidden.c", ["src/deep/.hidden.c"]),
        (".git/*", [".git/z.c"]),
        ("odd [[]1].c", ["odd [1].c"]),
        ("src", []),
        ("none/*", []),
    ],
)
def test_patterns(tree: Path, pattern: str, expected: list[str]) -> None:
    assert paths(tree, pattern) == expected


def test_each_file_is_taken_once_and_hashed(tree: Path) -> None:
    collection = found(tree, "*.deb", "a.*", reports=("b.deb", "src/x.c"))
    digest = hashlib.sha256(b"a.deb").hexdigest()
    assert collection.artifacts[0] == Artifact(path="a.deb", bytes=5, sha256=digest)
    assert [(a.path, a.report) for a in collection.artifacts] == [("a.deb", False), ("b.deb", True), ("src/x.c", True)]
    assert collection.remarks == []


def test_what_matches_nothing_is_remarked(tree: Path) -> None:
    assert found(tree, "*.rpm", "../x", "/etc/passwd", "src").remarks == [
        "no file matches '*.rpm'",
        "'../x' is outside the work directory",
        "'/etc/passwd' is outside the work directory",
        "'src' is a directory: src/** are the files in it",
    ]


def test_too_many_files_are_cut_and_remarked(tree: Path) -> None:
    collection = found(tree, "**/*.c", limit=2)
    assert [a.path for a in collection.artifacts] == ["odd [1].c", "src/deep/y.c"]
    assert collection.remarks == ["4 files match, 2 are the limit: the first by name were taken"]


def test_links_and_devices_lead_nowhere(tmp_path: Path, tree: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (tree / "file").symlink_to(secret / "key")
    (tree / "directory").symlink_to(secret)
    (tree / "up").symlink_to("..")
    (tree / "self").symlink_to(".")
    (tree / "loop").symlink_to("loop")
    (tree / "inside").symlink_to("src/deep")
    os.mkfifo(tree / "fifo")
    everything = paths(tree, "*", "**", "*/*", "**/key", "directory/*", "up/secret/*", "*/secret/key", "loop/*", "file")
    assert all((tree / path).resolve().is_relative_to(tree) for path in everything)
    assert not [path for path in everything if "key" in path or path in ("fifo", "file")]
    assert paths(tree, "inside/*.c") == ["inside/y.c"]
    assert paths(tree, "i*/*.c") == []


@pytest.mark.parametrize(
    "path", ["file", "directory/key", "fifo", "../secret/key", "src", "..", "", "src/../../secret/key"]
)
def test_nothing_outside_is_ever_opened(tmp_path: Path, tree: Path, path: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (tree / "file").symlink_to(tmp_path / "secret" / "key")
    (tree / "directory").symlink_to(tmp_path / "secret")
    os.mkfifo(tree / "fifo")
    with pytest.raises(OSError, match=r"Errno"):
        open_inside(str(tree), path)


@given(st.text(alphabet="ab*?[]!/.", max_size=12))
def test_no_pattern_leaves_the_directory(pattern: str) -> None:
    for path in match("/usr/share/doc/base-files", pattern):
        assert path is None or not path.startswith(("/", ".."))


def test_as_many_artifacts_as_fit_into_the_message() -> None:
    artifacts = [Artifact(path=f"build/{n:08}" + "x" * 100, bytes=1 << 40, sha256="0" * 64) for n in range(9000)]
    fitting = that_fit(artifacts, 10_000)
    assert 3000 < len(fitting) < 9000
    assert fitting == tuple(artifacts[: len(fitting)])


def test_artifacts_are_sent_when_they_are_wanted() -> None:
    text = "printf one > 1.txt; : > 2.txt; head -c 700000 /dev/zero > 3.txt; echo '<testsuite/>' > r.xml"
    with start_process() as worker:
        result = worker.peer.run(shell(text), artifacts=("*.txt", "*.xml"), reports=("*.xml",))
        assert [(a.path, a.bytes, a.report) for a in result.artifacts] == [
            ("1.txt", 3, False),
            ("2.txt", 0, False),
            ("3.txt", 700_000, False),
            ("r.xml", 13, True),
        ]
        for number, artifact in enumerate(result.artifacts, 1):
            data = worker.peer.fetch(number, artifact.bytes)
            assert hashlib.sha256(data).hexdigest() == artifact.sha256
        worker.peer.channels.clear()
        worker.peer.want((3, 600_000), (1, 1), (0, 0), (9, 0))
        worker.peer.until(lambda: worker.peer.channels[1].ended_at is not None)
        assert worker.peer.channels[3].ended_at == 700_000
        assert bytes(worker.peer.channels[1].head) == b"ne"
        worker.peer.record()
        worker.wait_ended()


def test_artifacts_of_a_failed_job_are_collected_too() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell("echo x > log.txt; exit 1"), artifacts=("*.txt", "*.deb"))
        assert (result.outcome, result.reason) == (Outcome.FAILED, "")
        assert [a.path for a in result.artifacts] == ["log.txt"]
        assert "no file matches '*.deb'" in worker.peer.notices()


def test_a_pattern_that_matches_nothing_is_no_failure() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell("true"), artifacts=("*.deb",))
        assert (result.outcome, result.reason) == (Outcome.PASSED, "no file matches '*.deb'")


def test_an_artifact_that_changed_meanwhile_is_said() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell("echo 12345 > a; echo 12345 > b"), artifacts=("*",))
        assert len(result.artifacts) == 2
        (worker.work / "a").write_text("123")
        (worker.work / "b").unlink()
        worker.peer.want((1, 0), (2, 0))
        worker.peer.until(lambda: worker.peer.channels[2].ended_at is not None)
        assert (worker.peer.channels[1].ended_at, worker.peer.channels[2].ended_at) == (3, 0)
        assert "artifact a of job 7: has shrunk from 6 to 3 bytes" in worker.peer.notices()
        assert "artifact b of job 7: can no longer be read: No such file" in worker.peer.notices()


def test_the_worker_answers_while_it_collects() -> None:
    with start_process() as worker:
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell("for i in 1 2 3 4; do truncate -s 300M $i; done"), artifacts=("*",)))
        worker.peer.until(lambda: worker.peer.step_ends())
        worker.peer.cancel()
        result = worker.peer.result(2)
        assert (result.outcome, result.artifacts) == (Outcome.CANCELLED, ())


def test_a_large_artifact_comes_whole_to_a_peer_that_acknowledges_seldom() -> None:
    """What finds the socket full goes on when it has room, and not only when something else comes."""
    size = 40 << 20
    with start_process() as worker:
        worker.peer.is_lazy = True
        result = worker.peer.run(shell(f"head -c {size} /dev/zero > big"), artifacts=("big",))
        (artifact,) = result.artifacts
        worker.peer.fetch(1, artifact.bytes)
        assert worker.peer.channels[1].sha256.hexdigest() == artifact.sha256
        worker.peer.record()
