"""Whatever is wrong, the answer is one clear sentence; nothing is lost, nothing hangs, no traceback is shown."""

import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.farm import ApiError, RealFarm, farm, until


def sentence(result: "subprocess.CompletedProcess[str]") -> str:
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stderr.startswith("biruda: "), result.stderr
    return result.stderr


def test_config_problems_come_all_at_once(tmp_path: Path) -> None:
    real = RealFarm(tmp_path / "h", '[master]\nlistn = "x"\nlease_s = "long"\n\n[[environment]]\nkind = "chrot"\n')
    result = real.command("up", "--foreground")
    assert result.returncode == 1
    said = sentence(result)
    for words in ("biruda.conf:2", "listn", "listen", "biruda.conf:3", "lease_s", "chroot", "name"):
        assert words in said


def test_second_up_is_refused(up: RealFarm) -> None:
    result = up.command("up")
    assert result.returncode == 1
    assert "already running" in sentence(result)
    result = up.command("up", "--foreground")
    assert result.returncode == 1
    assert "already running" in sentence(result)


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        real = RealFarm(tmp_path / "h", f'[master]\nlisten = "127.0.0.1:{port}"\n')
        result = real.command("up", "--foreground")
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in sentence(result)


def test_no_master(tmp_path: Path) -> None:
    real = RealFarm(tmp_path / "h")
    for command in (("jobs",), ("run", "--no-source", "--", "true"), ("why", "1")):
        result = real.command(*command)
        assert result.returncode == 3
        assert "no master" in sentence(result)


def test_environment_that_does_not_exist(up: RealFarm) -> None:
    result = up.command("run", "--no-source", "--on", "env=tyny", "--", "true")
    assert result.returncode == 1
    said = sentence(result)
    assert "tyny" in said
    assert "tiny" in said
    with pytest.raises(ApiError, match="422"):
        up.submit("true", env="nowhere")


def test_root_trees_that_cannot_be_used(tmp_path: Path, busybox_root: Path) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    shutil.copytree(busybox_root, foreign, symlinks=True)
    head = bytearray((foreign / "bin" / "busybox").read_bytes()[:4096])
    head[18:20] = (22).to_bytes(2, "little")  # e_machine: S/390
    (foreign / "bin" / "busybox").write_bytes(head)
    config = "".join(
        f'[[environment]]\nname = "{name}"\nkind = "chroot"\nroot = "{root}"\n'
        for name, root in (("missing", tmp_path / "nothing"), ("empty", empty), ("foreign", foreign))
    )
    with farm(tmp_path / "h", config + '[[environment]]\nname = "host"\n') as real:
        offers = {item["name"]: item for item in real.get("/api/v1/environments")["environments"]}
        assert offers["host"]["usable"]
        for name in ("missing", "empty", "foreign"):
            assert not offers[name]["usable"]
            assert offers[name]["problem"]
        assert "nothing" in offers["missing"]["problem"]
        why = real.get(f"/api/v1/jobs/{real.submit('true', env='empty', queue=True)}/why")
        assert any("empty" in row["reason"] for row in why["environments"] if row["fits"])


def test_source_tree_with_everything_odd(up: RealFarm, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "plain").write_text("x\n")
    os.mkfifo(tree / "pipe")
    odd = os.fsencode(tree) + b"/caf\xe9\n"
    Path(os.fsdecode(odd)).write_text("odd\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tree / "sock"))
        result = up.command(
            "run", "--source", os.fspath(tree), "--on", "env=tiny", "--", "sh", "-c", "ls | wc -l; cat caf*"
        )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "2\nodd\n"
    assert "sock" in result.stderr
    assert "pipe" in result.stderr


@pytest.mark.slow
def test_source_tree_with_a_file_of_5_gb(up: RealFarm, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "big").open("wb") as file:
        file.truncate(5 << 30)
    result = up.command("run", "--source", os.fspath(tree), "--on", "env=host", "--", "sh", "-c", "wc -c < big")
    assert (result.returncode, result.stdout) == (0, f"{5 << 30}\n"), result.stderr


@pytest.mark.slow
def test_one_line_of_a_gigabyte(up: RealFarm) -> None:
    size = 1 << 30
    number = up.submit(f"head -c {size} /dev/zero | tr '\\0' x", env="host")
    job = up.finished(number, 100)
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(b"x" * (1 << 20))
    assert job["log"] == {"bytes": size, "sha256": digest.hexdigest(), "complete": True} | {
        "times": job["log"].get("times")
    } or (
        job["log"]["bytes"],
        job["log"]["sha256"],
        job["log"]["complete"],
    ) == (size, digest.hexdigest(), True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_full_spool_disk_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    config = f'[master]\nspool = "{small_disk}/spool"\n'
    with farm(tmp_path / "h", config) as real:
        filler.write_bytes(b"x" * (6 << 20))
        number = real.submit("head -c 4000000 /dev/zero | tr '\\0' y; echo; echo end", env="host")
        until("the log waits for room", lambda: "No space left" in real.daemons["up"].log.read_text())
        assert real.job(number)["state"] != "finished"
        filler.unlink()
        job = real.finished(number)
        expected = b"y" * 4_000_000 + b"\nend\n"
        assert (job["outcome"], job["log"]["bytes"], job["log"]["complete"]) == ("passed", len(expected), True)
        assert job["log"]["sha256"] == hashlib.sha256(expected).hexdigest()


def test_a_master_that_starts_on_a_full_disk_says_so(tmp_path: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    with farm(tmp_path / "h", f'[master]\nspool = "{small_disk}/spool"\n') as real:
        number = real.submit("head -c 20000 /dev/zero", env="host")
        assert real.finished(number)["outcome"] == "passed"
        real.daemons["up"].kill()
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        done = real.command("up", "--foreground")
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        filler.unlink()
        real.start()
        assert real.log(number) == bytes(20000)


def test_artifacts_wait_for_room_on_their_host(tmp_path: Path, small_disk: Path) -> None:
    filler, go = small_disk / "filler", tmp_path / "go"
    with farm(small_disk / "h", f'[master]\nspool = "{tmp_path}/spool"\n') as real:
        script = f"head -c 2000000 /dev/urandom > a; sha256sum < a; touch {go}.made; while [ ! -e {go} ]; do :; done"
        number = real.submit(script, env="host", recipe={"artifacts": ["a"]})
        until("the file is made", Path(f"{go}.made").exists)
        disk = os.statvfs(small_disk)
        filler.write_bytes(bytes(disk.f_bavail * disk.f_bsize - 1_000_000))
        go.touch()
        until("the artifacts wait", lambda: "no space left for the artifacts" in real.daemons["up"].log.read_text())
        filler.unlink()
        job = real.finished(number)
        assert (job["outcome"], job["attempt"]) == ("passed", 1)
        (kept,) = job["artifacts"]
        assert real.log(number).split()[0].decode() == kept["sha256"]
        assert (tmp_path / "spool" / f"{job['spool']}.d" / "a").stat().st_size == 2_000_000
        until("nothing is left in the outbox", lambda: not list((real.home / "coordinator" / "outbox").iterdir()))


def test_clock_that_is_set_back(tmp_path: Path) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("no faketime: apt-get install faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0 y")
    library = next(Path("/usr/lib").glob("**/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("no libfaketime.so.1")
    fake = [
        "env",
        f"LD_PRELOAD={library}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "DONT_FAKE_MONOTONIC=1",
    ]
    with farm(tmp_path / "h", "", prefix=fake) as real:
        assert real.finished(real.submit("echo one", env="host"))["outcome"] == "passed"
        number = real.submit("echo begun; sleep 1; echo done", env="host")
        real.log_has(number, b"begun")
        clock.write_text("-400d")
        assert real.finished(number)["outcome"] == "passed"
        later = real.finished(real.submit("echo two", env="host"))
        assert (later["outcome"], real.log(later["job"])) == ("passed", b"two\n")
        assert later["job"] > number


def test_hostile_requests_are_refused_in_words(up: RealFarm) -> None:
    bad: list[object] = [
        {"jobs": []},
        {"jobs": [{"recipe": {"steps": []}}]},
        {"jobs": [{"recipe": {"steps": [{"name": "x", "argv": ["true"], "cwd": "../.."}]}}]},
        {"jobs": [{"recipe": {"steps": [{"name": "x", "argv": ["true"]}], "artifacts": ["/etc/*"]}}]},
        {"jobs": [{"recipe": {"steps": [{"name": "x", "argv": ["true"]}]}, "requirements": {"archh": "amd64"}}]},
        {"jobs": [{"recipe": {"steps": [{"name": "x", "argv": ["true"]}]}, "source": "0" * 64}]},
        {"jobs": [{"recipe": {"steps": [{"name": "x", "argv": ["true"], "env": {"A=B": "c"}}]}}]},
        [],
        None,
    ]
    for body in bad:
        with pytest.raises(ApiError) as caught:
            up.post("/api/v1/jobs", body)
        assert caught.value.status == 422, caught.value
        assert caught.value.body["detail"]


def test_step_that_cannot_be_started_says_why(up: RealFarm) -> None:
    job = up.finished(
        up.post("/api/v1/jobs", {"jobs": [{"recipe": {"steps": [{"name": "x", "argv": ["no-such-program"]}]}}]})[
            "jobs"
        ][0]
    )
    assert (job["outcome"], job["exit_status"]) == ("failed", 127)
    assert "not found" in job["steps"][0]["note"]
