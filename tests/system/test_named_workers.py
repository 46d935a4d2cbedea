"""Named workers on several systems of one host: what `biruda start` takes and refuses, as a user types it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.farm import RealFarm, farm

CONFIG = """
[[environment]]
name = "big"
kind = "chroot"
root = "{root}"

[[environment]]
name = "small"
kind = "chroot"
root = "{root}"
arch = "i386"

[[environment]]
name = "other"
kind = "chroot"
root = "{other}"

[[worker]]
name = "hello"
environment = ["big", "small"]
steps = ["echo hello on {{arch}}"]

[[worker]]
name = "single"
environment = "other"
steps = ["echo {{platform}}", ["sh", "-c", "exit 7"]]
"""


@pytest.fixture
def named(tmp_path: Path, busybox_root: Path) -> Iterator[RealFarm]:
    other = tmp_path / "other"
    shutil.copytree(busybox_root, other, symlinks=True)
    (other / "etc" / "os-release").write_text("ID=other\nVERSION_ID=2\n")
    with farm(tmp_path / "h", CONFIG.format(root=busybox_root, other=other)) as real:
        yield real


def test_start_that_fits_two_architectures_is_refused_with_candidates(named: RealFarm) -> None:
    result = named.command("start", "hello")
    assert result.returncode == 1
    for words in ("hello", "amd64", "i386", "--arch"):
        assert words in result.stderr
    assert named.get("/api/v1/jobs")["jobs"] == []


def test_start_with_arch_runs_and_waits(named: RealFarm) -> None:
    result = named.command("start", "hello", "--arch", "i386", "--wait")
    assert (result.returncode, result.stdout) == (0, "hello on i386\n"), result.stderr
    job = named.get("/api/v1/jobs")["jobs"][0]
    assert (job["arch"], job["worker"]) == ("i386", "hello")
    assert job["spool"].startswith("i386-busybox1.35-")


def test_start_gives_the_status_of_the_failing_step(named: RealFarm) -> None:
    result = named.command("start", "single", "--wait")
    assert (result.returncode, result.stdout) == (7, "other2\n"), result.stderr


def test_start_of_nothing_is_refused_with_a_suggestion(named: RealFarm) -> None:
    result = named.command("start", "helo")
    assert result.returncode == 1
    assert "hello" in result.stderr
    result = named.command("start", "hello", "--arch", "arm64")
    assert result.returncode == 1
    assert "amd64" in result.stderr


def test_declared_value_wins_and_its_contradiction_is_shown(named: RealFarm) -> None:
    shown = named.get("/api/v1/environments/small")
    assert (shown["arch"], shown["guessed"]["arch"]) == ("i386", "amd64")
    assert any("i386" in warning for warning in shown["warnings"])
