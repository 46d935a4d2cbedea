"""What a step is started with and what comes of it: real workers, as a process and as a thread."""

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from biruda.messages import StepEnded, StepStarted
from biruda.model import Outcome, Step
from tests.worker.peer import Worker, python, recipe_of, shell, start_process, start_thread, step

Start = Callable[..., Worker]
both = pytest.mark.parametrize("start", [start_process, start_thread], ids=["process", "thread"])


@both
def test_a_passing_job_and_nothing_left_of_it(start: Start) -> None:
    with start() as worker:
        result = worker.peer.run(("/bin/echo", "hello"))
        assert (result.outcome, result.exit_status, result.reason) == (Outcome.PASSED, 0, "")
        assert bytes(worker.peer.log.head) == b"hello\n"
        assert result.log.complete
        (only,) = result.steps
        assert (only.name, only.argv, only.exit_status, only.signal) == ("check", ("/bin/echo", "hello"), 0, None)
        assert 0 < only.wall_s < 10
        assert only.peak_rss_bytes > 0
        assert 0 < result.finished_s - result.started_s < 10
        worker.peer.record()
        worker.wait_ended()
        worker.peer.wait_closed()
        assert not worker.work.exists()


@both
def test_the_first_failing_step_ends_the_recipe(start: Start) -> None:
    with start() as worker:
        result = worker.peer.run(
            shell("echo one", name="one"),
            shell("exit 3", name="two"),
            shell("echo three", name="three"),
            shell("echo four; exit 4", name="four", always=True),
        )
        assert (result.outcome, result.exit_status) == (Outcome.FAILED, 3)
        assert [(s.name, s.exit_status) for s in result.steps] == [("one", 0), ("two", 3), ("four", 4)]
        assert [s.log_start for s in result.steps] == [0, 4, 4]
        assert bytes(worker.peer.log.head) == b"one\nfour\n"
        for kind in (StepStarted, StepEnded):  # the last of them may be in the result alone
            told = [m.index for m in worker.peer.of(kind)]
            assert told == [0, 1, 3][: len(told)]


def test_a_step_that_takes_its_time_is_told_at_its_begin_and_its_end() -> None:
    with start_process() as worker:
        worker.peer.run(shell("sleep 0.1", name="one"), shell("sleep 0.1", name="two"))
        assert [m.index for m in worker.peer.of(StepStarted)] == [0, 1]
        assert [m.index for m in worker.peer.of(StepEnded)][:1] == [0]


def test_of_a_short_attempt_the_result_is_all_that_is_told() -> None:
    """At least once: a slow machine may take longer than it waits."""
    for _ in range(20):
        with start_process() as worker:
            worker.peer.run(step("true"))
            if not worker.peer.of(StepStarted):
                return
    pytest.fail("each of 20 short attempts was told step by step")


def test_an_always_step_that_fails_fails_the_job() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell("true"), shell("exit 5", name="last", always=True))
        assert (result.outcome, result.exit_status) == (Outcome.FAILED, 5)


@both
def test_a_signal_is_told_apart_from_a_status(start: Start) -> None:
    with start() as worker:
        result = worker.peer.run(shell("kill -SEGV $$"))
        assert (result.outcome, result.exit_status) == (Outcome.FAILED, 128 + 11)
        assert (result.steps[0].exit_status, result.steps[0].signal) == (None, 11)


@both
def test_a_command_that_is_not_there(start: Start) -> None:
    with start() as worker:
        result = worker.peer.run(shell("printf no-newline"), step("./configure", name="build"))
        assert (result.outcome, result.exit_status) == (Outcome.FAILED, 127)
        assert result.steps[1].note == "./configure: not found"
        assert bytes(worker.peer.log.head) == b"no-newline\nbiruda: step 2 build: ./configure: not found\n"


def test_commands_that_cannot_be_started_say_why() -> None:
    files = (
        "printf '#!/no/such/interpreter -x\\n' > script; chmod +x script; echo hi > plain; "
        "printf '\\177ELF nonsense' > foreign; chmod +x foreign; mkdir directory"
    )
    cases = [
        (step("./script"), 127, "./script: its interpreter /no/such/interpreter is not there"),
        (step("./plain"), 126, "./plain: not executable (permission denied)"),
        (step("./foreign"), 126, "./foreign: not a program for this system (exec format error)"),
        (step("./directory"), 126, "./directory: not executable (permission denied)"),
        (step("no-such-command", env={"PATH": "/opt"}), 127, "no-such-command: not found in /opt"),
        (step(), 127, "no command is given"),
        (step("/bin/echo", "a\0b"), 126, "embedded null byte"),
        (step("/bin/echo", "x" * 200_000), 126, "/bin/echo: arguments and variables are too long"),
        (step("/bin/echo", env={"A=B": "x"}), 126, "illegal environment variable name"),
    ]
    with start_process() as worker:
        recipe = (shell(files), *(s for s, _, _ in cases))
        worker.peer.attach()
        recipe = tuple(s if i == 0 else _always(s) for i, s in enumerate(recipe))
        worker.peer.assign(recipe_of(*recipe))
        result = worker.peer.result()
        assert result.exit_status == 127
        got = [(s.exit_status, s.note) for s in result.steps[1:]]
        assert got == [(status, note) for _, status, note in cases]


def _always(item: Step) -> Step:

    return replace(item, always=True)


SHOW_ENVIRONMENT = "import os; print(sorted(os.environ.items())); print(os.getcwd())"


@both
def test_the_environment_is_built_and_nothing_is_inherited(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    with start(path="/usr/bin:/bin") as worker:
        work = str(worker.work)
        worker.peer.attach(BIRUDA_ARCH="amd64", FROM_ATTACH="1", OVER="attach")
        worker.peer.assign(
            recipe_of(
                shell("mkdir sub"),
                python(SHOW_ENVIRONMENT, name="show", cwd="sub", env={"STEP": "1", "OVER": "step", "HOME": "/h"}),
                env={"RECIPE": "1", "OVER": "recipe"},
            ),
            attempt=3,
        )
        worker.peer.result()
        lines = bytes(worker.peer.log.head).decode().splitlines()
        assert eval(lines[0]) == sorted(
            {
                "PATH": "/usr/bin:/bin",
                "HOME": "/h",
                "LANG": "C.UTF-8",
                "PWD": f"{work}/sub",
                "BIRUDA_JOB": "7",
                "BIRUDA_ATTEMPT": "3",
                "BIRUDA_STEP": "show",
                "BIRUDA_ARCH": "amd64",
                "FROM_ATTACH": "1",
                "RECIPE": "1",
                "STEP": "1",
                "OVER": "step",
            }.items()
        )
        assert lines[1] == f"{work}/sub"


SHOW_PROCESS = """
import os, signal
print(os.readlink("/proc/self/fd/0"), os.getsid(0) == os.getpid())
print([n for n in range(1, 32) if signal.getsignal(n) is signal.SIG_IGN], signal.pthread_sigmask(0, ()), os.umask(0))
print(len(os.listdir("/proc/self/fd")))
"""


@both
def test_a_step_has_clean_descriptors_signals_and_umask(start: Start) -> None:
    with start() as worker:
        worker.peer.run(step(sys.executable, "-S", "-c", SHOW_PROCESS))
        lines = bytes(worker.peer.log.head).decode().splitlines()
        assert lines[0] == "/dev/null True"
        # CPython ignores SIGPIPE and SIGXFSZ by itself
        assert lines[1] == "[13, 25] set() 18"
        assert lines[2] == "4"


@both
@pytest.mark.parametrize("cwd", ["..", "/etc", "link", "sub/../../x"])
def test_a_step_cannot_be_put_outside_the_work_directory(start: Start, cwd: str) -> None:
    with start() as worker:
        result = worker.peer.run(shell("ln -s /etc link; mkdir sub"), shell("pwd", name="escape", cwd=cwd))
        assert (result.outcome, result.exit_status) == (Outcome.FAILED, 126)
        assert result.steps[1].note == f"{cwd}: outside the work directory"
        assert bytes(worker.peer.log.head) == f"biruda: step 2 escape: {cwd}: outside the work directory\n".encode()


def test_a_directory_that_is_missing_or_a_file() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell("echo > file"), shell("pwd", cwd="none"), shell("pwd", cwd="file", always=True))
        assert [s.note for s in result.steps] == ["", "none: no such directory", "file: not a directory"]


def test_a_job_that_removes_its_own_work_directory() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell('cd /; rm -rf "$HOME"'), shell("pwd"))
        assert (result.outcome, result.steps[1].note) == (Outcome.FAILED, "the work directory: no such directory")


@both
def test_a_script_is_beside_the_source_tree_and_goes_with_it(start: Start) -> None:
    text = 'echo "$0 $1"; ls -A; stat -c %a "$0"; printf "\\303\\244\\n"\n'
    with start() as worker:
        result = worker.peer.run(
            step("/bin/sh", "-e", name="a", script=text), step("/bin/sh", name="b", script="exit 2")
        )
        script = f"{worker.work}.step-1"
        assert bytes(worker.peer.log.head) == f"{script} \n700\nä\n".encode()
        assert result.exit_status == 2
        worker.peer.record()
        worker.wait_ended()
        assert sorted(p.name for p in worker.directory.iterdir() if p.name.startswith("work")) == []


@both
def test_stdout_and_stderr_keep_their_order(start: Start) -> None:
    text = "import os\nfor n in range(2000): os.write(1 + n % 2, b'%d\\n' % n)\n"
    with start() as worker:
        worker.peer.run(python(text))
        assert bytes(worker.peer.log.head) == b"".join(b"%d\n" % n for n in range(2000))


def test_steps_share_one_log_and_background_output_is_kept() -> None:
    with start_process() as worker:
        fifo = f"{worker.directory}/go"
        result = worker.peer.run(
            shell(f"mkfifo {fifo}; (read x < {fifo}; echo from behind; echo > {fifo}.done) & echo one", name="one"),
            shell(f"echo go > {fifo}; while ! test -e {fifo}.done; do sleep 0.01; done; echo two", name="two"),
        )
        assert result.outcome is Outcome.PASSED
        assert bytes(worker.peer.log.head) == b"one\nfrom behind\ntwo\n"


def test_a_step_is_measured() -> None:
    text = "import time\nx = bytearray(80 << 20)\nt = time.process_time()\nwhile time.process_time() < t + 0.2: pass\n"
    with start_process() as worker:
        (only,) = worker.peer.run(python(text)).steps
        assert 0.2 <= only.cpu_s <= only.wall_s * 1.2
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the kernel carries it across fork and exec
        assert 80 << 20 <= only.peak_rss_bytes <= floor + (160 << 20)


def test_a_recipe_without_steps_passes() -> None:
    with start_process() as worker:
        result = worker.peer.run()
        assert (result.outcome, result.exit_status, result.steps) == (Outcome.PASSED, 0, ())


def test_steps_run_as_the_user_who_was_named() -> None:

    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    text = "id -u; id -g; id -G; touch mine; echo $HOME"
    with start_process(user="nobody") as worker:
        os.chmod(worker.directory, 0o755)
        result = worker.peer.run(shell(text), step("/bin/sh", script="id -un"))
        assert result.outcome is Outcome.PASSED, worker.peer.log.head
        assert bytes(worker.peer.log.head).decode() == f"65534\n65534\n65534\n{worker.work}\nnobody\n"


def test_a_user_who_is_not_there_is_the_environments_fault() -> None:
    with start_process(user="no-such-user") as worker:
        result = worker.peer.run(("/bin/true",))
        assert (result.outcome, result.exit_status) == (Outcome.ENVIRONMENT, None)
        assert "no-such-user" in result.reason


def test_names_and_arguments_that_would_crowd_the_result_are_cut() -> None:
    steps = [shell("true", name=f"{n}-" + "n" * 500) for n in range(500)]
    with start_process() as worker:
        result = worker.peer.run(*steps, step("/bin/true", "x" * 100_000), step("/bin/true", "y" * 100_000))
        assert result.outcome is Outcome.PASSED
        assert len(result.steps) == 502
        assert all(len(s.name) <= 100 for s in result.steps)
        peer = worker.connect()
        assert len(peer.attach().steps) == 502


def test_a_recipe_of_too_many_steps_is_refused() -> None:
    with start_process() as worker:
        result = worker.peer.run(*[step("/bin/true")] * 1001)
        assert (result.outcome, result.reason) == (Outcome.INFRA, "a recipe of 1001 steps: 1000 are the limit")
        worker.peer.record()
        worker.wait_ended()


def test_limits_that_are_never_reached() -> None:
    with start_process() as worker:
        result = worker.peer.run(shell("sleep 0.05; echo x", limit_s=1e9, silence_s=1e100), total_s=1e300)
        assert result.outcome is Outcome.PASSED


def test_what_a_killed_worker_left_is_no_hindrance() -> None:
    with start_process() as worker:
        worker.work.mkdir()
        (worker.work / "old").write_text("old")
        (worker.directory / "work.step-1").write_text("old")
        result = worker.peer.run(step("/bin/sh", script="ls -A; echo new"))
        assert (result.outcome, bytes(worker.peer.log.head)) == (Outcome.PASSED, b"new\n")
