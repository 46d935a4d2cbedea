"""The one place that starts children."""

import os
import signal

import pytest

from biruda.errors import EnvironmentFault
from biruda.process import Account, Child, Exit, account_of, start
from tests.worker.peer import TIMEOUT_S, wait_until


def child(*argv: str, **fields: object) -> Child:
    values: dict[str, object] = {"env": {"PATH": "/usr/bin:/bin"}, "cwd": "/", "stdin": 0, "stdout": 1} | fields
    return start(argv, **values)  # type: ignore[arg-type]


def ended(one: Child) -> Exit:
    assert wait_until(lambda: one.poll() is not None, TIMEOUT_S)
    end = one.poll()
    assert end is not None
    return end


def test_status_and_signal() -> None:
    assert ended(child("sh", "-c", "exit 7")).exit_status == 7
    end = ended(child("sh", "-c", "kill -9 $$"))
    assert (end.exit_status, end.signal) == (None, 9)


def test_a_running_child_has_no_exit_and_its_group_can_be_told() -> None:
    one = child("sleep", "600")
    assert one.poll() is None
    assert os.getsid(one.pid) == one.pid
    one.signal_group(signal.SIGTERM)
    assert ended(one).signal == signal.SIGTERM
    one.signal_group(signal.SIGTERM)  # gone: no error
    one.close()


def test_what_cannot_be_started_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        child("no-such-command")
    with pytest.raises(PermissionError):
        child("/etc/passwd")


def test_somebody_else_waited_for_it() -> None:
    one = child("true")
    os.waitpid(one.pid, 0)
    with pytest.raises(ChildProcessError):
        one.poll()
    one.close()
    one._popen.returncode = 0


def test_accounts_are_read_from_the_files_of_this_root() -> None:
    root = account_of("root")
    assert (root.uid, root.gid) == (0, 0)
    assert account_of("0") == root
    assert account_of("4000000000") == Account(uid=4_000_000_000, gid=4_000_000_000)
    with pytest.raises(EnvironmentFault, match="no-such-user"):
        account_of("no-such-user")


def test_a_child_of_another_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    reader, writer = os.pipe()
    nobody = Account(uid=65534, gid=65534, groups=(65534, 100))
    one = child("sh", "-c", "id -u; id -G", stdout=writer, account=nobody)
    assert ended(one).exit_status == 0
    assert os.read(reader, 100) == b"65534\n65534 100\n"
    os.close(reader)
    os.close(writer)
