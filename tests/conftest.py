"""Which tests start real daemons, workers or namespaces: `make fast` leaves them out."""

import signal

import pytest

from biruda.process import ignore_alone
from tests.machines import machine_cache, machine_files

__all__ = ["machine_cache", "machine_files"]  # one template for the tests of every directory

REAL = (
    "tests/system/",
    "tests/web/",
    "tests/coordinator/spawners/",
    "tests/worker/",
    "tests/cli/test_cli_daemon.py",
    "tests/cli/test_cli_joining.py",
    "tests/cli/test_cli_run.py",
    "tests/cli/test_cli_terminal.py",
)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
ignore_alone()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(REAL):
            item.add_marker(pytest.mark.system)
