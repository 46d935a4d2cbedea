"""The launcher and what it unpacks: where its files lie, who may have touched them, and that it starts itself again."""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from biruda import VERSION

Env = dict[str, str]


def run(executable: Path, *arguments: str, env: Env) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def tree_in(cache: Env) -> Path:
    """The directory that was unpacked."""
    (tree,) = (path for path in Path(cache["BIRUDA_CACHE"]).iterdir() if not path.name.startswith("."))
    return tree


def test_its_files_are_unpacked_once(executable: Path, cache: Env) -> None:
    first = run(executable, "--version", env=cache)
    assert (first.stdout, first.stderr, first.returncode) == (f"biruda {VERSION}\n", "", 0)
    tree = tree_in(cache)
    inode = (tree / "program").stat().st_ino
    assert run(executable, "--version", env=cache).returncode == 0
    assert (tree / "program").stat().st_ino == inode
    assert os.readlink(tree / "origin") == str(executable)
    others = [path for path in tree.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert others == [], "what other users may read or write"


def test_many_first_starts_at_once(executable: Path, cache: Env) -> None:
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda _: run(executable, "--version", env=cache), range(8)))
    assert {(each.stdout, each.stderr) for each in done} == {(f"biruda {VERSION}\n", "")}
    assert [path.name for path in tree_in(cache).parent.iterdir() if path.name.startswith(".making")] == []


def test_what_a_power_cut_emptied_is_made_anew(executable: Path, cache: Env) -> None:
    run(executable, "--version", env=cache)
    tree = tree_in(cache)
    (tree / "app" / "biruda" / "__main__.pyc").write_bytes(b"")
    (tree / ".boot").write_text("00000000-0000-0000-0000-000000000000")
    assert run(executable, "--version", env=cache).stdout == f"biruda {VERSION}\n"
    assert (tree_in(cache) / "app" / "biruda" / "__main__.pyc").stat().st_size > 0


def test_a_new_boot_keeps_what_is_whole(executable: Path, cache: Env) -> None:
    run(executable, "--version", env=cache)
    inode = (tree_in(cache) / "program").stat().st_ino
    (tree_in(cache) / ".boot").write_text("00000000-0000-0000-0000-000000000000")
    assert run(executable, "--version", env=cache).returncode == 0
    assert (tree_in(cache) / "program").stat().st_ino == inode
    assert (tree_in(cache) / ".boot").read_text() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_a_directory_that_others_can_write_to_is_refused(executable: Path, cache: Env) -> None:
    Path(cache["BIRUDA_CACHE"]).mkdir(mode=0o700)
    Path(cache["BIRUDA_CACHE"]).chmod(0o755)
    refused(executable, cache, "is not this user's own directory with mode 0700")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives a directory to another user")
def test_a_directory_of_another_user_is_refused(executable: Path, cache: Env) -> None:
    Path(cache["BIRUDA_CACHE"]).mkdir(mode=0o700)
    os.chown(cache["BIRUDA_CACHE"], 65534, 65534)
    refused(executable, cache, "is not this user's own directory with mode 0700")


def test_a_symbolic_link_is_not_followed(executable: Path, cache: Env, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    Path(cache["BIRUDA_CACHE"]).symlink_to(tmp_path / "elsewhere")
    refused(executable, cache, "cannot be made or opened as the directory of its files: Not a directory")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def refused(executable: Path, cache: Env, why: str) -> None:
    done = run(executable, "--version", env=cache)
    assert done.returncode == 125
    first, hint = done.stderr.splitlines()
    assert first == f"biruda: {cache['BIRUDA_CACHE']}: {why}"
    assert hint == "hint: name a directory of yours for its files with BIRUDA_CACHE"


def test_a_damaged_executable_says_so(executable: Path, cache: Env, tmp_path: Path) -> None:
    damaged = tmp_path / "biruda"
    data = bytearray(executable.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = bytes(4096)
    damaged.write_bytes(data)
    damaged.chmod(0o755)
    done = run(damaged, "--version", env=cache)
    assert done.returncode == 125
    assert "the executable is damaged" in done.stderr
    assert [path.name for path in Path(cache["BIRUDA_CACHE"]).iterdir()] == [".lock"]


def test_a_whole_farm_from_it(executable: Path, cache: Env, tmp_path: Path) -> None:
    """Detached daemon, zygote, workers, and the job's own environment; the file itself is gone meanwhile."""
    own = tmp_path / "somewhere" / "biruda"
    own.parent.mkdir()
    shutil.copy(executable, own)
    home = tmp_path / "home"
    home.mkdir()
    (home / "biruda.conf").write_text(
        '[master]\nlisten = "127.0.0.1:0"\n[coordinator]\nslots = 1\n[[environment]]\nname = "host"\n'
    )
    env = {**cache, "BIRUDA_HOME": str(home)}
    up = run(own, "up", env=env)
    assert up.returncode == 0, up.stderr
    try:
        stub = tree_in(cache) / "biruda"
        own.unlink()
        done = run(stub, "run", "--on", "env=host", "--no-source", "--", "sh", "-c", "env; apt-get --version", env=env)
        assert done.returncode == 0, done.stderr
        assert "_PYI" not in done.stdout
        assert "LD_LIBRARY_PATH" not in done.stdout
        assert "apt " in done.stdout
        pids = json.loads(run(stub, "status", "--json", env=env).stdout)["pids"]
        assert Path(f"/proc/{pids['master']}/comm").read_text() == "biruda\n"
    finally:
        assert run(tree_in(cache) / "biruda", "down", env=env).returncode == 0
