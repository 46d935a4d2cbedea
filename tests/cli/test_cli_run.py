"""`biruda run`: what it prints, byte for byte, what it exits with, and what it survives."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_master import PASSED, PLACED, RUNNING, FakeMaster

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[bytes]"]

FINISHED = {**PLACED, "state": "finished", "finished": "2025-01-01T00:01:13Z"}


def ends(master: FakeMaster, log: bytes = b"", **fields: Any) -> Callable[[int], None]:
    """A job that has ended as soon as it is submitted."""

    def on_submit(number: int) -> None:
        master.logs[number, 1] = log
        master.ended.add((number, 1))
        whole = {"bytes": len(log), "sha256": "5f3a" * 16, "complete": True}
        spool = f"amd64-debian12-alder-{number}"
        master.jobs[number].update({**PASSED, "log": whole, "spool": spool, **fields})

    return on_submit


def starts(master: FakeMaster) -> Callable[[int], None]:
    """A job that runs as soon as it is submitted."""

    def on_submit(number: int) -> None:
        master.jobs[number].update(RUNNING)
        master.logs[number, 1] = b""

    return on_submit


def step(**fields: Any) -> dict[str, Any]:
    empty = {
        "name": "check",
        "argv": ["make"],
        "exit_status": 0,
        "signal": None,
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "note": "",
    }
    return {**empty, **fields}


def read_until(process: "subprocess.Popen[bytes]", end: bytes, stream: str = "stdout") -> bytes:
    """What a command printed, as soon as that ends so."""
    pipe = getattr(process, stream)
    got = b""
    while not got.endswith(end):
        piece = os.read(pipe.fileno(), 65536)
        assert piece, f"ended after {got!r}: {process.wait(9)} {process.stdout.read()!r}"
        got += piece
    return got


def test_the_log_comes_unmodified_and_the_rest_goes_to_stderr(master: FakeMaster, biruda: Run) -> None:
    log = bytes(range(256)) * 20 + b"no newline at the end"
    master.on_submit = ends(master, log)
    done = biruda("run", "--no-source", "--", "make", "check")
    assert done.stdout.encode("utf-8", "surrogateescape") == log
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "biruda: job 1",
        "● 1 passed on alder amd64 debian12 in 41.2s · log complete, 5.0 KiB, sha256 5f3a5f3a… · "
        "home/spool/amd64-debian12-alder-1.log",
    ]


def test_a_command_is_one_step_exactly_as_it_was_written(master: FakeMaster, biruda: Run) -> None:
    master.on_submit = ends(master)
    biruda(
        *("run", "--no-source", "--env", "A=b=c", "--env", "E=", "--on", "arch=amd64,platform=debian*"),
        *("--artifact", "*.deb", "--limit", "1h30m", "--silence", "90", "--memory", "2GiB", "--cpus", "1.5"),
        *("--pids", "100", "--disk", "512M", "--retries", "0", "--priority", "-5", "--queue", "--name", "n"),
        *("--", "/usr/bin/make", "a  b", "$HOME", "-n", "--json"),
    )
    assert master.submitted == [
        {
            "recipe": {
                "steps": [{"name": "make", "argv": ["/usr/bin/make", "a  b", "$HOME", "-n", "--json"]}],
                "env": {"A": "b=c", "E": ""},
                "artifacts": ["*.deb"],
                "limits": {
                    "total_s": 5400.0,
                    "silence_s": 90.0,
                    "memory_bytes": 2 << 30,
                    "cpus": 1.5,
                    "pids": 100,
                    "disk_bytes": 512 << 20,
                },
            },
            "requirements": {"arch": "amd64", "platform": "debian*"},
            "name": "n",
            "source": None,
            "priority": -5,
            "retries": 0,
            "queue": True,
        }
    ]


def test_a_step_line_is_a_script(master: FakeMaster, biruda: Run) -> None:
    from biruda.convert import decode
    from biruda.model import Recipe

    master.on_submit = ends(master)
    biruda("run", "--no-source", "--step", "./configure  --x", "--step", "make\nmake check")
    recipe = decode(Recipe, master.submitted[0]["recipe"])  # and it is a recipe
    assert [(step.name, step.argv, step.script) for step in recipe.steps] == [
        ("./configure --x", ("/bin/sh", "-e"), "./configure  --x\n"),
        ("make make check", ("/bin/sh", "-e"), "make\nmake check\n"),
    ]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"outcome": "passed"}, 0, "● 1 passed on alder amd64 debian12"),
        (
            {**FINISHED, "outcome": "failed", "exit_status": 2, "steps": [step(), step(), step(exit_status=2)]},
            2,
            "✖ 1 failed in step 3 check: exit 2 after 1m 12s",
        ),
        (
            {"outcome": "failed", "exit_status": 139, "steps": [step(exit_status=None, signal=11)]},
            139,
            "✖ 1 failed in step 1 check: killed by SIGSEGV",
        ),
        (
            {"outcome": "timeout", "exit_status": 137, "steps": [step(exit_status=None, note="time limit of 5 s")]},
            124,
            "◷ 1 timeout in step 1 check: time limit of 5 s",
        ),
        ({"outcome": "cancelled", "exit_status": 143, "reason": "by root"}, 130, "⊘ 1 cancelled after 41.2s: by root"),
        ({"outcome": "infra", "reason": "the worker died"}, 125, "▲ 1 infra after 41.2s: the worker died"),
        ({"outcome": "environment", "reason": "no root"}, 125, "◆ 1 environment after 41.2s: no root"),
        ({"outcome": "preempted", "reason": ""}, 125, "⇄ 1 preempted after 41.2s"),
        ({"outcome": "failed", "exit_status": None}, 1, "✖ 1 failed after 41.2s"),
    ],
)
def test_exit_statuses(master: FakeMaster, biruda: Run, fields: dict[str, Any], status: int, words: str) -> None:
    master.on_submit = ends(master, **fields)
    done = biruda("run", "--no-source", "--", "check")
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_of_several_jobs_the_first_that_is_not_0_counts(master: FakeMaster, biruda: Run) -> None:
    outcomes: dict[int, dict[str, Any]] = {
        1: {"outcome": "passed"},
        2: {"outcome": "failed", "exit_status": 7},
        3: {"outcome": "timeout"},
    }
    master.on_submit = lambda number: ends(master, **outcomes[number])(number)
    done = biruda("run", "--no-source", *(part for e in ("a", "b", "c") for part in ("--on", f"env={e}")), "--", "x")
    assert done.returncode == 7


def test_several_logs_have_aligned_prefixes(master: FakeMaster, biruda: Run) -> None:
    logs = {1: b"one\ntwo\r\n\npartial", 2: b"\xff\x00\n"}
    master.on_submit = lambda number: ends(master, logs[number])(number)
    done = biruda("run", "--no-source", "--on", "arch=amd64,platform=debian12", "--on", "env=old", "--", "x")
    lines = done.stdout.encode("utf-8", "surrogateescape").split(b"\n")
    assert [line for line in lines if line.startswith(b"[amd64 debian12] ")] == [
        b"[amd64 debian12] one",
        b"[amd64 debian12] two\r",
        b"[amd64 debian12] ",
        b"[amd64 debian12] partial",
    ]
    assert [line for line in lines if line.startswith(b"[old           ] ")] == [b"[old           ] \xff\x00"]
    assert len(lines) == 6
    assert "biruda: job 2 on old" in done.stderr


def test_a_log_goes_on_where_it_was_when_the_connection_breaks(master: FakeMaster, start: Start) -> None:
    master.on_submit = starts(master)
    master.cut_at = 10
    process = start("run", "--no-source", "--", "x")
    read_until(process, b"job 1\n", "stderr")
    master.add_log(1, b"0123456789abcdef", end=True)
    master.set_job(1, **PASSED)
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == b"0123456789abcdef"
    assert b"stopped answering" in stderr
    assert b"the master answers again after" in stderr
    assert process.returncode == 0


def test_a_log_goes_on_where_it_was_when_the_master_was_killed(master: FakeMaster, start: Start) -> None:
    master.on_submit = starts(master)
    process = start("run", "--no-source", "--", "x")
    read_until(process, b"job 1\n", "stderr")
    master.add_log(1, b"before\n")
    assert read_until(process, b"\n") == b"before\n"
    master.stop()
    read_until(process, b"trying again for 10m 00s\n", "stderr")
    master.logs[1, 1] += b"meanwhile\n"
    master.start()
    master.add_log(1, b"after\n", end=True)
    master.set_job(1, **PASSED)
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == b"meanwhile\nafter\n"
    assert stderr.count(b"answers again") == 1
    assert process.returncode == 0


def test_patience_ends(master: FakeMaster, start: Start) -> None:
    master.on_submit = starts(master)
    process = start("run", "--no-source", "--patience", "0.3s", "--", "x")
    read_until(process, b"job 1\n", "stderr")
    master.stop()
    try:
        _, stderr = process.communicate(timeout=30)
    finally:
        master.start()
    assert process.returncode == 125
    assert b"biruda: job 1: no master answers at " in stderr
    assert b"\nhint: start one with: biruda" in stderr


def test_an_attempt_that_ended_infra_is_followed_by_the_next(master: FakeMaster, start: Start) -> None:
    master.on_submit = starts(master)
    process = start("run", "--no-source", "--", "x")
    read_until(process, b"job 1\n", "stderr")
    master.add_log(1, b"first try\n", end=True)
    lost = {**FINISHED, "attempt": 1, "outcome": "infra", "reason": "the worker died"}
    master.set_job(1, state="waiting", attempt=None, attempts=[lost])
    assert read_until(process, b"running again as attempt 2\n", "stderr").endswith(
        b"biruda: attempt 1 ended: the worker died; running again as attempt 2\n"
    )
    master.add_log(1, b"second try\n", attempt=2, end=True)
    master.set_job(1, **{**PASSED, "attempt": 2})
    stdout, _ = process.communicate(timeout=30)
    assert stdout == b"first try\nsecond try\n"
    assert process.returncode == 0


def test_no_attempt_is_left_out(master: FakeMaster, biruda: Run) -> None:
    lost = [{**FINISHED, "attempt": n, "outcome": "infra", "reason": f"reason {n}"} for n in (1, 2)]

    def on_submit(number: int) -> None:
        for attempt in (1, 3):  # of the second nothing was ever heard
            master.logs[number, attempt] = b"attempt %d\n" % attempt
            master.ended.add((number, attempt))
        master.jobs[number].update({**PASSED, "attempt": 3, "attempts": lost})

    master.on_submit = on_submit
    done = biruda("run", "--no-source", "--", "x")
    assert done.stdout == "attempt 1\nattempt 3\n"
    assert done.stderr.splitlines()[1:3] == [
        "biruda: attempt 1 ended: reason 1; running again as attempt 2",
        "biruda: attempt 2 ended: reason 2; running again as attempt 3",
    ]
    assert done.returncode == 0


def test_why_it_waits_is_said_once_and_again_when_it_changes(master: FakeMaster, start: Start) -> None:
    process = start("run", "--no-source", "--", "x")
    said = read_until(process, b"held by job 1\n", "stderr")
    assert said.count(b"waits: every slot of alder is held by job 1") == 1
    asked = master.requests.count("GET jobs/1/why")
    while master.requests.count("GET jobs/1/why") == asked:
        time.sleep(0.01)
    master.why = "it is next\x1b[2J"
    assert read_until(process, b"[2J\n", "stderr") == b"biruda: job 1 waits: it is next\\x1b[2J\n"
    master.set_job(1, **RUNNING)
    master.add_log(1, b"", end=True)
    master.set_job(1, **PASSED)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_ctrl_c_cancels_and_waits(master: FakeMaster, start: Start) -> None:
    master.on_submit = starts(master)
    process = start("run", "--no-source", "--on", "env=a", "--on", "env=b", "--", "x")
    read_until(process, b"job 2 on b\n", "stderr")
    master.on_cancel = lambda number: ends(master, outcome="cancelled", reason="interrupted")(number)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert b"biruda: cancelling jobs 1, 2; press Ctrl-C again to leave at once\n" in stderr
    assert stderr.count("⊘".encode()) == 2
    assert process.returncode == 130


def test_a_second_ctrl_c_leaves(master: FakeMaster, start: Start) -> None:
    master.on_submit = starts(master)
    process = start("run", "--no-source", "--", "x")
    read_until(process, b"job 1\n", "stderr")
    process.send_signal(signal.SIGINT)
    read_until(process, b"leave at once\n", "stderr")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert stderr == b"biruda: left before the end of job 1: see biruda show 1\n"
    assert process.returncode == 130


def test_detach_prints_numbers(master: FakeMaster, biruda: Run) -> None:
    done = biruda("run", "--no-source", "--detach", "--on", "env=a", "--on", "env=b", "--", "x")
    assert (done.stdout, done.stderr, done.returncode) == ("1\n2\n", "", 0)
    done = biruda("run", "--no-source", "--detach", "--json", "--", "x")
    assert json.loads(done.stdout) == [master.jobs[3]]


def test_json_at_the_end_and_the_log_on_stderr(master: FakeMaster, biruda: Run) -> None:
    master.on_submit = ends(master, b"the log\n")
    done = biruda("run", "--no-source", "--json", "--", "x")
    assert json.loads(done.stdout) == [master.jobs[1]]
    assert "the log\n" in done.stderr


def test_a_working_tree_is_sent_once(master: FakeMaster, biruda: Run, tmp_path: Path) -> None:
    master.on_submit = ends(master)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.c").write_text("int x;")
    (tree / "skipped.o").write_text("x" * 100)
    (tree / ".birudaignore").write_text("*.o\n")
    done = biruda("run", "--", "x", cwd=tree)
    assert done.stderr.splitlines()[0].startswith("biruda: packed 2 files, 10 B; sent ")
    digest = master.submitted[0]["source"]
    assert master.packs == {digest}
    assert int.from_bytes(master.uploads[0][:4], "big") < len(master.uploads[0])
    again = biruda("run", "--source", str(tree), "--", "x")
    assert again.stderr.splitlines()[0] == "biruda: packed 2 files, 10 B; the master has all of it"
    assert master.submitted[1]["source"] == digest
    assert len(master.uploads) == 1


def test_the_home_directory_is_not_packed_by_chance(master: FakeMaster, biruda: Run, tmp_path: Path) -> None:
    done = biruda("run", "--", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "is no source tree" in done.stderr
    assert master.submitted == []


def test_a_large_log_comes_whole(master: FakeMaster, biruda: Run) -> None:
    log = os.urandom(1 << 20) * 16
    master.on_submit = ends(master, log)
    done = subprocess.run(
        [sys.executable, "-m", "biruda", "--home", str(master.home), "run", "--no-source", "--", "x"],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == log


def test_a_reader_that_has_seen_enough(master: FakeMaster, start: Start) -> None:
    master.on_submit = ends(master, b"x" * 1_000_000)
    process = start("run", "--no-source", "--", "x")
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b"biruda: job 1\n"
