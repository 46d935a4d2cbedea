"""What listings and pages show, and that their JSON is the API's own."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_master import PASSED, PLACED, RUNNING, FakeMaster

Run = Callable[..., "subprocess.CompletedProcess[str]"]

STEP = {"name": "check", "argv": ["make", "a b"], "exit_status": 2, "signal": None, "wall_s": 72.0, "cpu_s": 60.5}
FAILED = {
    **PLACED,
    "state": "finished",
    "finished": "2025-01-01T00:01:13Z",
    "outcome": "failed",
    "exit_status": 2,
    "steps": [{**STEP, "peak_rss_bytes": 412 << 20, "note": ""}],
    "log": {"bytes": 2_000_000, "sha256": "5f3a" * 16, "complete": True},
    "spool": "amd64-debian12-alder-3",
    "facts": {"libc": "glibc 2.36", "emulated": False},
}
EVIL = "evil\x1b[2J\n"


def environment_json(name: str, **more: Any) -> dict[str, Any]:
    """An environment as the API gives it."""
    plain = {"kind": "chroot", "arch": "amd64", "platform": "debian12", "host": "alder", "usable": True, "problem": ""}
    empty = {"warnings": [], "evidence": [], "declared": {}, "guessed": {}, "slots": 4, "spares": 1, "running": []}
    return {"name": name, **plain, **empty, "emulated": False, **more}


def test_jobs(master: FakeMaster, biruda: Run) -> None:
    master.set_job(1, **PASSED, name="curl")
    master.set_job(2, name=EVIL, requirements={"arch": "arm64"})
    master.set_job(3, **FAILED, name="zlib")
    done = biruda("jobs")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0].split() == ["JOB", "STATE", "NAME", "ARCH", "PLATFORM", "HOST", "WHEN", "TOOK", "NOTE"]
    assert lines[1].split("  ")[:3] == ["3  ", "✖ failed", "zlib"] or lines[1].startswith("3    ✖ failed   zlib")
    assert lines[1].endswith("1m 12s  exit 2, step 1 check")
    assert lines[2].startswith("2    ○ waiting  evil\\x1b[2J\\n  arm64")
    assert lines[3].startswith("1    ● passed   curl")
    assert len(lines) == 4
    assert "\x1b" not in done.stdout


def test_jobs_as_json_is_a_list_of_what_show_gives(master: FakeMaster, biruda: Run) -> None:
    master.set_job(1, **PASSED, later="kept")
    master.set_job(2)
    assert json.loads(biruda("jobs", "--json").stdout) == [master.jobs[2], master.jobs[1]]
    assert json.loads(biruda("show", "1", "--json").stdout) == master.jobs[1]
    assert json.loads(biruda("jobs", "--json", "--limit", "1").stdout) == [master.jobs[2]]
    assert json.loads(biruda("jobs", "--json", "--state", "finished").stdout) == [master.jobs[1]]


def test_more_jobs_than_a_page_has(master: FakeMaster, biruda: Run) -> None:
    for number in range(1, 1103):
        master.jobs[number] = {"job": number, "state": "waiting"}
    done = biruda("jobs", "--json", "--limit", "0")
    assert [job["job"] for job in json.loads(done.stdout)] == list(range(1102, 0, -1))


def test_no_jobs(master: FakeMaster, biruda: Run) -> None:
    done = biruda("jobs")
    assert (done.stdout, done.stderr, done.returncode) == ("", "biruda: no jobs yet\nhint: biruda run -- CMD\n", 0)
    assert biruda("jobs", "--json").stdout == "[]\n"


def test_show(master: FakeMaster, biruda: Run) -> None:
    lost = {"attempt": 1, "host": "birch", "outcome": "infra", "reason": "the worker died"}
    artifacts = [{"path": "out/a.deb", "bytes": 1234, "sha256": "ab" * 32, "report": False}]
    master.set_job(3, **{**FAILED, "attempt": 2, "attempts": [lost], "artifacts": artifacts})
    lines = biruda("show", "3").stdout.splitlines()
    assert lines[0] == (
        "✖ 3 check · amd64 debian12 · alder · failed in step 1 check: exit 2 after 1m 12s "
        "· the sources' fault, not the farm's"
    )
    assert lines[2:4] == [
        "STEP     RESULT    TOOK    CPU     PEAK MEM   COMMAND",
        "1 check  ✖ exit 2  1m 12s  1m 00s  412.0 MiB  make 'a b'",
    ]
    assert "log         complete, 1.9 MiB, sha256 5f3a5f3a… · biruda log 3" in lines
    assert "spool       home/spool/amd64-debian12-alder-3.log" in lines
    assert "environment bookworm: chroot, amd64, debian12, glibc 2.36" in lines
    assert "out/a.deb  1.2 KiB  abababababababab" in lines
    assert lines[-2:] == ["earlier attempts", "  1 ▲ infra on birch: the worker died"]


def test_show_of_a_job_about_which_nothing_is_known_yet(master: FakeMaster, biruda: Run) -> None:
    master.set_job(1, requirements={"arch": "vax"}, cancelling=True)
    lines = biruda("show", "1").stdout.splitlines()
    assert lines[0] == "○ 1 check · waiting, being cancelled"
    assert "wants       arch=vax" in lines


def test_ascii_where_the_terminal_has_no_more(master: FakeMaster, biruda: Run) -> None:
    master.set_job(3, **{**FAILED, "name": "zlib-é"})
    done = biruda("show", "3", LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert done.stdout.splitlines()[0].startswith("x 3 zlib-\\xe9 - amd64 debian12 - alder - failed in step 1")
    assert done.stdout.isascii()
    assert done.stderr == ""


def test_why(master: FakeMaster, biruda: Run) -> None:
    master.set_job(1)
    lines = biruda("why", "1").stdout.splitlines()
    assert lines[0] == "job 1: every slot of alder is held by job 1"
    assert lines[3].split() == ["bookworm", "alder", "amd64", "debian12", "yes", *lines[0].split()[2:]]
    assert json.loads(biruda("why", "1", "--json").stdout)["state"] == "waiting"


def test_farm(master: FakeMaster, biruda: Run) -> None:
    system = {"arch": "amd64", "platform": "debian12", "version": "0.1.0", "last_contact": "2025-01-01T00:00:00Z"}
    master.lists["coordinators"] = [
        {"host": "alder", "connected": True, "slots": 4, "running": [1], **system},
        {"host": EVIL, "connected": False, "slots": 2, "running": [7, 8], **system},
    ]
    master.lists["environments"] = [
        environment_json("bookworm", running=[1]),
        environment_json(EVIL, usable=False, problem=f"no root\n{EVIL}", warnings=["declared i386"]),
    ]
    worker = {"name": "hello", "arch": "amd64", "platform": "debian12", "host": "alder", "environment": "bookworm"}
    master.lists["workers"] = [{**worker, "usable": True, "running": [1]}]
    done = biruda("farm")
    text = done.stdout
    assert "alder          ● connected" in text
    assert "2 jobs go on" in text
    assert "bookworm       ◌ 1 running   1/4" in text
    assert "evil\\x1b[2J\\n  ◆ not usable  0/4" in text
    assert "◆ evil\\x1b[2J\\n: no root\\nevil\\x1b[2J\\n\n" in text
    assert "▲ evil\\x1b[2J\\n: declared i386\n" in text
    assert "hello   ◌ job 1  alder  bookworm     amd64  debian12" in text
    assert "\x1b" not in text
    assert json.loads(biruda("farm", "--json").stdout) == master.lists


def test_an_empty_farm_says_what_fills_it(master: FakeMaster, biruda: Run) -> None:
    assert biruda("farm").stdout == "no coordinator has connected yet: start one with biruda up or biruda coordinator\n"


def test_environments(master: FakeMaster, biruda: Run) -> None:
    evidence = ["/etc/os-release: debian 12"]
    master.lists["environments"] = [
        environment_json("bookworm", evidence=evidence, guessed={"arch": "amd64"}),
        environment_json("broken", usable=False, problem="the root tree is empty"),
    ]
    assert "bookworm     ● usable      0/4" in biruda("env", "list").stdout
    assert json.loads(biruda("env", "list", "--json").stdout) == master.lists["environments"]
    assert biruda("env", "show", "bookworm").stdout.splitlines() == [
        "● usable · bookworm · chroot · amd64 debian12 · alder",
        "slots      0/4, 1 spare",
        "jobs       none",
        "guessed    arch=amd64",
        "  - /etc/os-release: debian 12",
    ]
    assert biruda("env", "probe", "bookworm").returncode == 0
    broken = biruda("env", "probe", "broken")
    assert "the root tree is empty" in broken.stdout
    assert broken.returncode == 1


def test_status_loses_nothing(master: FakeMaster, biruda: Run) -> None:
    status = json.loads(biruda("status", "--json").stdout)
    assert status["pids"] == {"master": 1, "coordinator": 1}
    assert status["later"] == {"kept": True}
    assert "jobs          0 running, 0 waiting" in biruda("status").stdout


def test_log_and_offsets(master: FakeMaster, biruda: Run) -> None:
    master.set_job(1, **PASSED, log={"bytes": 16, "sha256": "", "complete": True})
    master.add_log(1, b"0123456789abcdef", end=True)
    assert biruda("log", "1").stdout == "0123456789abcdef"
    assert biruda("log", "1", "--offset", "10").stdout == "abcdef"
    assert biruda("log", "1", "--offset", "-3").stdout == "def"
    assert biruda("log", "1", "--attempt", "1", "-f").stdout == "0123456789abcdef"
    missing = biruda("log", "1", "--attempt", "2")
    assert (missing.stderr, missing.returncode) == ("biruda: job 1 has no log\n", 1)


def test_log_follows_to_the_end_of_the_job(master: FakeMaster, start: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    master.set_job(1, **RUNNING)
    master.add_log(1, b"before\n")
    process = start("log", "1", "-f")
    assert process.stdout is not None
    assert process.stdout.readline() == b"before\n"
    master.add_log(1, b"after", end=True)
    master.set_job(1, **{**PASSED, "outcome": "failed", "exit_status": 3})
    stdout, stderr = process.communicate(timeout=30)
    assert (stdout, stderr) == (b"after", b"")
    assert process.returncode == 0  # the log's, not the job's


def artifact(master: FakeMaster, path: str, content: bytes) -> dict[str, Any]:
    master.files[path] = content
    return {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "report": False}


def test_get(master: FakeMaster, biruda: Run, tmp_path: Path) -> None:
    found = [artifact(master, "out/a.deb", b"deb"), artifact(master, "report.xml", b"<x/>")]
    master.set_job(1, **PASSED, artifacts=found)
    done = biruda("get", "1", "--to", "all")
    assert done.stdout == "all/out/a.deb  3 B\nall/report.xml  4 B\n"
    assert (tmp_path / "all/out/a.deb").read_bytes() == b"deb"
    assert biruda("get", "1", "*.deb", "--to", "some").stdout == "some/out/a.deb  3 B\n"
    assert sorted(path.name for path in (tmp_path / "some").rglob("*")) == ["a.deb", "out"]
    assert biruda("get", "1", "report.xml", "--to", "-").stdout == "<x/>"
    again = biruda("get", "1", "--to", "all")
    assert (again.stdout, again.returncode) == ("", 0)
    assert again.stderr == "biruda: all/out/a.deb is here already, and equal\n" * 1 + (
        "biruda: all/report.xml is here already, and equal\n"
    )
    none = biruda("get", "1", "*.rpm")
    assert (none.stderr, none.returncode) == (
        "biruda: no artifact of job 1 is called '*.rpm'\nhint: biruda show 1\n",
        1,
    )


def test_get_keeps_what_is_there(master: FakeMaster, biruda: Run, tmp_path: Path) -> None:
    master.set_job(1, **PASSED, artifacts=[artifact(master, "a", b"new")])
    (tmp_path / "a").write_bytes(b"old")
    done = biruda("get", "1")
    assert (done.stderr, done.returncode) == (
        "biruda: a is here and differs\nhint: choose another --to DIR, or --force\n",
        1,
    )
    assert (tmp_path / "a").read_bytes() == b"old"
    assert biruda("get", "1", "--force").returncode == 0
    assert (tmp_path / "a").read_bytes() == b"new"


def test_get_finds_damage_and_leaves_nothing(master: FakeMaster, biruda: Run, tmp_path: Path) -> None:
    master.set_job(1, **PASSED, artifacts=[artifact(master, "a", b"right")])
    master.files["a"] = b"wrong"
    done = biruda("get", "1", "--to", "got")
    assert "artifact a of job 1 is damaged" in done.stderr
    assert done.returncode == 1
    assert list((tmp_path / "got").iterdir()) == []


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "a//x", "./x", "a\0x"])
def test_get_writes_nowhere_else(master: FakeMaster, biruda: Run, tmp_path: Path, path: str) -> None:
    master.set_job(1, **PASSED, artifacts=[{"path": path, "bytes": 1, "sha256": "", "report": False}])
    done = biruda("get", "1", "--to", "got")
    assert "leads out of the target directory" in done.stderr
    assert done.returncode == 1
    assert not (tmp_path / "got").exists()


def test_start_and_stop(master: FakeMaster, biruda: Run) -> None:
    assert biruda("start", "hello").stdout == "job 1: hello starts; biruda log 1 -f shows it\n"
    assert biruda("stop", "hello").stdout == "job 2: is being cancelled\n"
    assert biruda("stop", "1").stdout == "job 1: is being cancelled\n"


def test_start_and_wait(master: FakeMaster, biruda: Run) -> None:
    def on_submit(number: int) -> None:
        master.logs[number, 1] = b"hello\n"
        master.ended.add((number, 1))
        master.jobs[number].update({**PASSED, "outcome": "failed", "exit_status": 5})

    master.on_submit = on_submit
    done = biruda("start", "hello", "--wait")
    assert (done.stdout, done.returncode) == ("hello\n", 5)


def test_retry_and_wait(master: FakeMaster, start: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    master.set_job(1, **PASSED)
    master.add_log(1, b"old\n", end=True)
    process = start("retry", "1", "--wait")
    while "POST jobs/1/retry" not in master.requests:
        assert process.poll() is None
    master.add_log(1, b"new\n", attempt=2, end=True)
    master.set_job(1, **{**PASSED, "attempt": 2})
    stdout, _ = process.communicate(timeout=30)
    assert (stdout, process.returncode) == (b"new\n", 0)
