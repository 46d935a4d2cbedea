"""Which tests start real daemons, workers or namespaces: `make fast` leaves them out."""

import pytest

SLOW = (  # boot machines, emulated ones where there is no KVM; start a Docker daemon and many containers
    "tests/coordinator/spawners/test_qemu.py",
    "tests/system/test_qemu.py",
    "tests/system/test_docker.py",
)

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(REAL):
            item.add_marker(pytest.mark.system)
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
