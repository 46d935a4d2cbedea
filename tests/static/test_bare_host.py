"""From nothing but the executable to a green job: a root tree with one file in it, and what a kernel gives."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from biruda import VERSION
from tests.static.conftest import OWN_ARCH
from tests.static.places import BareHost

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another root is entered")
EXECUTABLE = "/biruda"


@pytest.fixture
def bare(tmp_path: Path, executable: Path) -> Iterator[BareHost]:
    """A host that is one file."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(executable, root / EXECUTABLE.lstrip("/"))
    host = BareHost(root)
    yield host
    host.run(EXECUTABLE, "down")
    host.close()


def test_a_farm_and_a_green_job_from_one_file(bare: BareHost, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    up = bare.run(EXECUTABLE, "up")
    up_s = time.monotonic() - began
    assert (up.returncode, up.stderr) == (0, "")
    began = time.monotonic()
    done = bare.run(EXECUTABLE, "run", "--no-source", "--", EXECUTABLE, "--version")
    with capsys.disabled():
        print(f"\nfrom one file: up after {up_s:.2f} s, a green job {time.monotonic() - began:.2f} s later")
    assert (done.returncode, done.stdout) == (0, f"biruda {VERSION}\n")
    assert "1 passed" in done.stderr
    assert f" /var/lib/biruda/spool/{OWN_ARCH}-unknown-" in done.stderr
    assert bare.run(EXECUTABLE, "down").returncode == 0
    made = {path.name for path in bare.root.iterdir()}
    assert made == {"biruda", "dev", "proc", "tmp", "var"}
    assert {path.relative_to(bare.root / "var").as_posix() for path in (bare.root / "var").glob("*/*")} == {
        "cache/biruda",
        "lib/biruda",
    }


def test_each_kind_works_or_names_the_one_thing_that_is_missing(bare: BareHost) -> None:
    assert bare.run(EXECUTABLE, "up").returncode == 0
    assert bare.run(EXECUTABLE, "run", "--no-source", "--", EXECUTABLE, "--version").returncode == 0
    hosts = json.loads(bare.run(EXECUTABLE, "farm", "--json").stdout)["coordinators"]
    kinds = {each["kind"]: each for each in hosts[0]["kinds"]}
    assert {kind for kind, said in kinds.items() if said["usable"]} == {"thread", "process", "chroot"}
    assert "install docker.io and start it" in kinds["docker"]["reason"]
    assert "apt-get install openssh-client" in kinds["ssh"]["reason"]
    assert "qemu" in kinds["qemu"]["reason"] or "boots a machine" in kinds["qemu"]["reason"]
    for said in kinds.values():
        assert "Traceback" not in said["reason"]


def test_where_nothing_can_be_written_it_refuses_in_a_sentence(tmp_path: Path, executable: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(executable, root / "biruda")
    host = BareHost(root, is_read_only=True)
    try:
        done = host.run(EXECUTABLE, "up")
    finally:
        host.close()
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        "biruda: there is no directory for its files that is this user's own, writable and not mounted noexec",
        "hint: name a directory of yours for its files with BIRUDA_CACHE",
    ]
