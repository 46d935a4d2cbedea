"""A daemon without rights: what works, and that the rest is refused by name."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from biruda.model import Kind
from tests.coordinator.spawners.support import run_as_nobody


@pytest.fixture
def nobodys_root(tiny_root: Path) -> Iterator[Path]:
    """The tiny root, where every user can read it and one without rights owns it."""
    with tempfile.TemporaryDirectory(prefix="biruda-test-") as directory:
        os.chmod(directory, 0o755)
        root = Path(directory, "root")
        shutil.copytree(tiny_root, root, symlinks=True)
        for path, _, names in os.walk(root):
            for name in (".", *names):
                if os.geteuid() == 0:
                    os.lchown(Path(path, name), 65534, 65534)
        yield root


def report(kind: Kind, root: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run_as_nobody("tests.coordinator.spawners.nobody", kind, root))
    return said


@pytest.mark.parametrize("kind", [Kind.THREAD, Kind.PROCESS])
def test_jobs_run_and_are_killed_without_rights(kind: Kind) -> None:
    said = report(kind, "")
    assert said["usable"]
    assert "cgroup" in said["reason"]
    assert (said["outcome"], said["output"].split()[:2]) == ("passed", ["65534", "x"])
    assert (said["daemons"], said["left"], said["directories"]) == (True, [], [])
    assert any("needs a daemon that runs as root" in fault for fault in said["faults"])
    assert sum("limit on" in fault for fault in said["faults"]) == 2


def test_a_root_tree_without_rights(nobodys_root: Path) -> None:
    said = report(Kind.CHROOT, str(nobodys_root))
    if not said["usable"]:
        assert said["reason"]
        pytest.skip(said["reason"])
    assert "without root" in said["reason"]
    assert (said["outcome"], said["output"].split()[:2]) == ("passed", ["0", "x"])
    assert "null" in said["output"]
    assert (said["daemons"], said["left"], said["directories"]) == (True, [], [])
    assert any('network "bridge" needs root' in fault for fault in said["faults"])
    assert not (nobodys_root / "etc/new").exists()
