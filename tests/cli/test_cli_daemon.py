"""`up`, `down` and the roles, as far as the command line makes them: a daemon that starts, and one that cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import environment
from fake_master import RUNNING, FakeMaster

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ending(biruda: Run) -> Iterator[None]:
    """No daemon is left behind."""
    yield
    biruda("down", "--cancel")


@pytest.mark.system
@pytest.mark.usefixtures("ending")
def test_up_and_down(biruda: Run, home: Path) -> None:
    up = biruda("up")
    assert up.returncode == 0, up.stderr
    status = json.loads(biruda("status", "--json").stdout)
    pid = status["pids"]["master"]
    assert up.stdout.splitlines()[0] == f"biruda is up on {status['host']}, pid {pid}"
    assert f"  home          {home}" in up.stdout.splitlines()
    assert f"  socket        {home}/master.sock" in up.stdout.splitlines()
    assert "environments  host (process, " in up.stdout
    assert "next: biruda run -- CMD" in up.stdout
    assert os.getsid(pid) == pid
    assert home.stat().st_mode & 0o777 == 0o700
    assert Path(f"/proc/{pid}/cwd").readlink() == home
    again = biruda("up")
    assert (again.stdout, again.returncode) == ("", 1)
    assert again.stderr.startswith("biruda: biruda is already running here")
    assert str(pid) in again.stderr
    down = biruda("down")
    assert (down.stdout, down.stderr, down.returncode) == ("biruda is down\n", "", 0)
    stat = Path(f"/proc/{pid}/stat")  # whoever has taken its parent's place may not have waited for it yet
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    assert biruda("status").returncode == 3


def test_up_says_what_is_wrong_with_the_configuration(biruda: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.conf").write_text("[master]\nlisten = 5\n[coordinator]\nslotz = 1\n")
    done = biruda("up", "--config", "bad.conf")
    assert done.returncode == 1
    assert "bad.conf" in done.stderr
    assert "slotz" in done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith(("biruda: ", "hint: ")) for line in done.stderr.splitlines())
    assert not (home / "master.sock").exists()


def test_up_where_nothing_can_be_written(biruda: Run) -> None:
    done = biruda("--home", "/dev/null/x", "up")
    assert done.returncode == 1
    assert done.stderr.startswith("biruda: /dev/null/x")
    assert "hint: name a directory of yours with --home DIR\n" in done.stderr


def test_a_daemon_that_dies_is_quoted(home: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from biruda.cli import detach\n"
        "from biruda.errors import BirudaError\n"
        "import sys\n"
        "detach._program = lambda: [sys.executable, '-c', 'import sys; print(chr(27) + \"oh no\"); sys.exit(9)']\n"
        f"try:\n    detach.start_detached(Path({str(home)!r}), [])\n"
        "except BirudaError as error:\n    print(error, error.hint, sep='|')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(home), capture_output=True, text=True, timeout=30
    )
    assert done.stdout == (
        f"the daemon ended before it was ready; its last words:\n\x1boh no|see {home}/log/daemon.log\n"
    )


@pytest.mark.parametrize("environ", [{}, {"SECRET": "1", "BIRUDA_URL": "http://x", "BIRUDA_TOKEN": "t"}])
def test_a_daemon_does_not_see_this_shell(home: Path, environ: dict[str, str]) -> None:
    code = (
        "from pathlib import Path\n"
        "from biruda.cli import detach\n"
        "import sys\n"
        "detach._program = lambda: [sys.executable, '-c', 'import os; print(sorted(os.environ)); "
        'os.write(int(os.environ["BIRUDA_READY_FD"]), b"ready\\\\n")\']\n'
        f"detach.start_detached(Path({str(home)!r}), [])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(home, **environ), capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
    names = (home / "log/daemon.log").read_text()
    assert "SECRET" not in names
    assert "BIRUDA_READY_FD" in names
    assert names.count("BIRUDA") == 1


def sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1)


def test_down_ends_the_processes_and_says_what_goes_on(master: FakeMaster, biruda: Run) -> None:
    with sleeper() as one, sleeper() as two:
        master.pids = {"master": one.pid, "coordinator": two.pid, "other": os.getpid()}
        master.set_job(1, **RUNNING)
        master.set_job(2)
        master.set_job(3)
        done = biruda("down")
        assert (one.wait(10), two.wait(10)) == (-signal.SIGTERM, -signal.SIGTERM)
    assert done.stdout == "biruda is down: 1 job goes on without it, 2 jobs are kept waiting\n"
    assert done.returncode == 0


def test_down_can_cancel_first(master: FakeMaster, biruda: Run) -> None:
    master.set_job(1, **RUNNING)
    master.on_cancel = lambda number: master.jobs[number].update(state="finished", outcome="cancelled")
    with sleeper() as one:
        master.pids = {"master": one.pid}
        done = biruda("down", "--cancel")
        assert one.wait(10) == -signal.SIGTERM
    assert done.stdout == "cancelled 1 job\nbiruda is down\n"


def test_down_of_what_has_gone_already(master: FakeMaster, biruda: Run) -> None:
    with sleeper() as one:
        one.kill()
        one.wait(10)
    master.pids = {"master": one.pid}
    assert biruda("down").returncode == 0


@pytest.mark.parametrize("role", ["master", "coordinator"])
def test_a_role_in_the_foreground_says_why_it_cannot(biruda: Run, role: str) -> None:
    done = biruda(role, "--config", "/nonexistent.conf")
    assert done.stderr.startswith("biruda: /nonexistent.conf: there is no such file\n")
    assert done.returncode == 1


def test_interrupting_a_wait_is_no_traceback(home: Path, start: Callable[..., "subprocess.Popen[bytes]"]) -> None:
    import socket

    home.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(home / "master.sock"))
        silent.listen()
        process = start("jobs")
        connection, _ = silent.accept()
        connection.recv(4096)
        time.sleep(0)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        connection.close()
    assert (stderr, process.returncode) == (b"", 130)
