"""What is said when something is wrong: one sentence, what to do, and the right exit status; never a traceback."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_master import FakeMaster

Run = Callable[..., "subprocess.CompletedProcess[str]"]

ASKING = [
    ("jobs",),
    ("status",),
    ("show", "1"),
    ("log", "1"),
    ("get", "1"),
    ("cancel", "1"),
    ("retry", "1"),
    ("why", "1"),
    ("farm",),
    ("env", "list"),
    ("env", "show", "x"),
    ("env", "probe", "x"),
    ("env", "remove", "x"),
    ("start", "x"),
    ("stop", "x"),
    ("down",),
    ("run", "--no-source", "--detach", "--", "x"),
    ("run", "--source", ".", "--", "x"),
]


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_no_master(biruda: Run, home: Path, arguments: tuple[str, ...]) -> None:
    done = biruda(*arguments)
    assert done.stderr == (
        f"biruda: no master answers at {home}/master.sock: there is no such socket\nhint: start one with: biruda up\n"
    )
    assert done.stdout == ""
    assert done.returncode == 3


def test_the_hint_names_the_home_that_was_asked_for(biruda: Run, tmp_path: Path) -> None:
    for arguments in (("--home", "other", "jobs"), ("jobs", "--home", "other")):
        done = biruda(*arguments)
        assert f"{tmp_path}/other/master.sock" in done.stderr
        assert "hint: start one with: biruda --home other up\n" in done.stderr


def test_a_socket_that_nobody_listens_on(biruda: Run, home: Path) -> None:
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "master.sock"))
    done = biruda("jobs")
    assert "nobody listens there" in done.stderr
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "7"), "biruda: there is no job 7\nhint: biruda jobs lists them\n"),
        (("log", "7"), "biruda: there is no job 7\nhint: biruda jobs lists them\n"),
        (("log", "7", "-f"), "biruda: there is no job 7\nhint: biruda jobs lists them\n"),
        (("get", "7"), "biruda: there is no job 7\nhint: biruda jobs lists them\n"),
        (("retry", "7"), "biruda: there is no job 7\nhint: biruda jobs lists them\n"),
        (("why", "7"), "biruda: there is no job 7\nhint: biruda jobs lists them\n"),
        (("stop", "7"), "biruda: there is no job 7\nhint: biruda jobs lists them\n"),
        (("env", "show", "x"), "biruda: there is no environment 'x'\nhint: there are none\n"),
    ],
    ids=str,
)
def test_not_found(master: FakeMaster, biruda: Run, arguments: tuple[str, ...], said: str) -> None:
    done = biruda(*arguments)
    assert (done.stdout, done.stderr, done.returncode) == ("", said, 1)


def test_a_refused_job_names_its_selector(master: FakeMaster, biruda: Run) -> None:
    more = {"hint": "there are amd64 debian12 (host on alder); --queue waits until one comes"}
    master.refusals["POST jobs"] = (422, "jobs[1]: no environment fits arch=vax", more)
    done = biruda("run", "--no-source", "--on", "arch=amd64", "--on", "arch=vax", "--", "x")
    assert done.stderr.splitlines()[0] == "biruda: --on arch=vax: no environment fits arch=vax"
    assert done.stderr.splitlines()[1].startswith("hint: there are amd64 debian12")
    assert done.returncode == 1


def test_a_refused_cancel_does_not_keep_the_others(master: FakeMaster, biruda: Run) -> None:
    master.set_job(2)
    done = biruda("cancel", "1", "2")
    assert done.stdout == "job 2: is being cancelled\n"
    assert done.stderr.startswith("biruda: there is no job 1\n")
    assert done.returncode == 1


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_an_ambiguous_worker_lists_the_candidates(master: FakeMaster, biruda: Run, verb: str) -> None:
    systems = [("amd64", "debian12"), ("i386", "debian12"), ("amd64", "debian12")]
    candidates = [{"name": "hello", "arch": arch, "platform": platform, "host": "alder"} for arch, platform in systems]
    master.refusals[f"POST workers/hello/{verb}"] = (409, "ambiguous", {"candidates": candidates})
    done = biruda(verb, "hello")
    assert done.stderr.splitlines() == [
        "NAME   ARCH   PLATFORM  HOST",
        "hello  amd64  debian12  alder",
        "hello  i386   debian12  alder",
        "hello  amd64  debian12  alder",
        "biruda: 'hello' names workers on 2 systems: say which with --arch or --platform",
        f"hint: biruda {verb} hello --arch amd64 --platform debian12, or --all",
    ]
    assert (done.stdout, done.returncode) == ("", 1)


def test_a_fault_of_the_master_is_no_traceback_here(master: FakeMaster, biruda: Run) -> None:
    master.refusals["GET jobs"] = (500, "GET /api/v1/jobs hit a fault of biruda", {"hint": "the log has more"})
    done = biruda("jobs")
    assert done.stderr == "biruda: GET /api/v1/jobs hit a fault of biruda\nhint: the log has more\n"
    assert done.returncode == 1


def test_hostile_words_of_a_master_are_shown_not_obeyed(master: FakeMaster, biruda: Run) -> None:
    master.refusals["GET jobs"] = (404, "gone \x1b[2J\nbiruda: all is well", {"hint": "\x9b31m"})
    assert biruda("jobs").stderr == "biruda: gone \\x1b[2J\\nbiruda: all is well\nhint: \\x9b31m\n"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("job", "one", "GET jobs.jobs[0].job must be a whole number, not str"),
        ("name", 7, "GET jobs.jobs[0].name must be a string, not int"),
        ("steps", [7], "GET jobs.jobs[0].steps[0] must be an object, not int"),
        ("submitted", "yesterday", "GET jobs.jobs[0].submitted is no time: yesterday"),
        ("log", [], "GET jobs.jobs[0].log must be an object, not list"),
        ("artifacts", {}, "GET jobs.jobs[0].artifacts must be a list, not dict"),
    ],
)
def test_an_answer_that_makes_no_sense(master: FakeMaster, biruda: Run, field: str, value: object, said: str) -> None:
    master.set_job(1, **{field: value})
    done = biruda("jobs")
    assert done.stderr.splitlines()[0] == f"biruda: the master's answer makes no sense: {said}"
    assert done.returncode == 1


def answering(home: Path, answer: bytes) -> threading.Thread:
    """Something on the home's socket that is no master."""
    home.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home / "master.sock"))
    listener.listen()

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_something_else_answers(home: Path, biruda: Run) -> None:
    thread = answering(home, b"220 mail.example ESMTP\r\n")
    done = biruda("jobs")
    thread.join()
    assert done.stderr == (
        f"biruda: what answers at {home}/master.sock is no biruda master: it sent '220 mail.example ESMTP\\r\\n'\n"
        "hint: check --url and $BIRUDA_URL\n"
    ).replace("ESMTP\\r\\n", "ESM")
    assert done.returncode == 1


def test_a_master_that_goes_away_after_the_submit(home: Path, biruda: Run) -> None:
    thread = answering(home, b"")
    done = biruda("run", "--no-source", "--", "x")
    thread.join()
    assert "stopped answering: it closed the connection" in done.stderr
    assert "hint: see with biruda jobs whether the job was accepted\n" in done.stderr
    assert done.returncode == 125


def test_a_log_that_breaks_off(master: FakeMaster, biruda: Run) -> None:
    master.set_job(1, attempt=1, state="finished", outcome="passed")
    master.add_log(1, b"0123456789abcdef", end=True)
    master.cut_at = 10
    done = biruda("log", "1")
    assert done.stdout == "0123456789"
    assert "stopped answering" in done.stderr
    assert "hint: the rest begins at byte 10: biruda log 1 --offset 10\n" in done.stderr
    assert done.returncode == 3
    assert biruda("log", "1", "--offset", "10").stdout == "abcdef"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jbos",), "biruda: no such command 'jbos'. Did you mean 'jobs'?\nhint: biruda --help\n"),
        (("jobs", "--jsn"), "biruda: jobs: no such option '--jsn'. Did you mean '--json'?\nhint: biruda jobs --help\n"),
        (("show",), "biruda: show: missing argument 'JOB'\nhint: biruda show --help\n"),
        (("show", "x1"), "'x1' is no job number; biruda jobs lists them\n"),
        (("show", "0"), "'0' is no job number"),
        (("cancel",), "biruda: cancel: missing argument 'JOB...'\n"),
        (("run",), "biruda: nothing to run\nhint: biruda run -- make check\n"),
        (("run", "--step", "a", "--", "b"), "biruda: give --step lines or a command after --, not both\n"),
        (("run", "--on", "arhc=amd64", "--", "x"), "there is no key 'arhc'; did you mean 'arch'?"),
        (("run", "--on", "colour=red", "--", "x"), "there are arch, platform, host, env, kind"),
        (("run", "--on", "amd64", "--", "x"), "'amd64' is no key=value pair"),
        (("run", "--on", "arch=a,arch=b", "--", "x"), "arch is there twice"),
        (("run", "--on", 'Arch == "x"', "--", "x"), "full ClassAd expressions come with matching; use key=value pairs"),
        (("run", "--on", "memory>5", "--", "x"), "full ClassAd expressions come with matching; use key=value pairs"),
        (("run", "--env", "A", "--", "x"), "'A' is no KEY=VALUE"),
        (("run", "--limit", "5x", "--", "x"), "'5x' is no duration; write 90s, 10m or 1h30m"),
        (("run", "--limit", "0", "--", "x"), "'0' is no time at all"),
        (("run", "--memory", "lots", "--", "x"), "'lots' is no size; write 512M or 2GiB"),
        (("run", "--source", ".", "--no-source", "--", "x"), "--source and --no-source exclude each other"),
        (("env", "build", "x"), "give one of --suite, --tarball and --directory"),
        (("env", "build", "x", "--image", "i", "--tarball", "t"), "one of --suite, --tarball, --directory and --image"),
        (("env", "build", "x", "--image", "i", "--kind", "chroot"), "--image goes with --kind docker, not chroot"),
        (("env", "build", "x", "--kind", "thread", "--suite", "s"), "chroot, docker and qemu, not thread"),
        (("--url", "ftp://x", "jobs"), "must be http://HOST:PORT"),
        (("--url", "http://x", "up"), "up works on this host only"),
        (("completion", "tcsh"), "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (("--guess-env", "--rot", "/"), "biruda: --guess-env: no such option or argument: '--rot'"),
        (("--guess-env", "--root"), "biruda: --guess-env: --root needs a directory"),
    ],
    ids=" ".join,
)
def test_usage(biruda: Run, arguments: tuple[str, ...], said: str) -> None:
    done = biruda(*arguments)
    assert said in done.stderr
    assert done.stderr.startswith("biruda: ")
    assert (done.stdout, done.returncode) == ("", 2)


def test_a_word_that_is_no_text(master: FakeMaster, biruda: Run) -> None:
    done = biruda("run", "--no-source", "--", "echo", b"\xff".decode("utf-8", "surrogateescape"))
    assert "is not UTF-8, so it cannot be sent" in done.stderr
    assert done.returncode == 2


def test_a_token_file_that_is_not_there(biruda: Run) -> None:
    done = biruda("--url", "http://127.0.0.1:1", "--token-file", "nope", "jobs")
    assert done.stderr == "biruda: cannot read --token-file nope: No such file or directory\n"
    assert done.returncode == 1


@pytest.mark.parametrize("token", ["two words", "a\r\nX-Evil: 1", "é"])
def test_a_token_that_is_none(biruda: Run, token: str) -> None:
    done = biruda("--url", "http://127.0.0.1:1", "jobs", BIRUDA_TOKEN=token)
    assert done.stderr.startswith("biruda: $BIRUDA_TOKEN holds no token\n")
    assert done.returncode == 1


def test_without_standard_output(master: FakeMaster, home: Path) -> None:
    code = f"exec {sys.executable} -m biruda --home {home} jobs --json >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", code], timeout=30).returncode == 0


def test_debug_shows_where_an_error_comes_from(biruda: Run) -> None:
    done = biruda("--debug", "jobs")
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("hint: start one with: biruda up\n")
    assert done.returncode == 3


def test_a_root_that_is_not_there(biruda: Run) -> None:
    done = biruda("--guess-env", "--root", "/nonexistent")
    assert done.stderr.startswith("biruda: --guess-env: /nonexistent: no such directory")
    assert done.returncode == 1
