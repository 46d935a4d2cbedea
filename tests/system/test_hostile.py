"""A real master among those who mean it no good: requests made from its schema, thousands of idle connections."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.system.farm import RealFarm, farm

pytestmark = pytest.mark.system

HERE = Path(__file__).resolve().parent
CONNECTIONS = 10_000
GROWTH_BYTES = 32 << 20
WORKER = '[[worker]]\nname = "hello"\nenvironment = "host"\nsteps = ["echo hi"]\n'


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[RealFarm]:
    """A farm that listens on TCP, with a limit of open files as a session of a user has it."""
    config = '[master]\nlisten = "127.0.0.1:0"\n' + WORKER
    with farm(tmp_path / "h", config, prefix=("prlimit", "--nofile=1024:4096")) as real:
        yield real


def test_every_answer_is_as_the_openapi_document_says(outside: RealFarm) -> None:
    number = outside.submit("echo hi; echo x > a", recipe={"artifacts": ["a"]})
    assert outside.finished(number)["outcome"] == "passed"
    token = (outside.home / "token").read_text().strip()
    argv = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", os.fspath(HERE / "schemathesis.toml")),
        *("run", f"{outside.get('/api/v1/status')['listen']}/api/v1/openapi.json"),
        *("--header", f"Authorization: Bearer {token}", "--checks", "all", "--max-examples", "10"),
        *("--exclude-path", "/api/v1/events", "--generation-deterministic", "--request-timeout", "30", "--no-color"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=outside.home)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert "Traceback" not in outside.daemons["up"].log.read_text()


def test_ten_thousand_idle_connections_change_nothing(outside: RealFarm) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + 100:
        pytest.skip(f"only {hard} files can be open")
    port = int(outside.get("/api/v1/status")["listen"].rpartition(":")[2])
    process = psutil.Process(outside.daemons["up"].process.pid)
    assert outside.finished(outside.submit("echo before"))["outcome"] == "passed"
    before_bytes = process.memory_info().rss
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CONNECTIONS + 100), hard))
    try:
        with ExitStack() as stack:
            for number in range(CONNECTIONS):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                if number % 2:
                    one.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: ")
                if number % 1000 == 0:
                    assert outside.finished(outside.submit(f"echo {number}"))["outcome"] == "passed"
            assert process.memory_info().rss - before_bytes < GROWTH_BYTES
            assert process.num_fds() < 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outside.finished(outside.submit("echo after"))["outcome"] == "passed"
    status = 0
    deadline = time.monotonic() + 30
    while status != 401 and time.monotonic() < deadline:  # without a token, but there is room again
        with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
            one.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = one.makefile("rb").read()
        status = int(answer.split()[1])
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status
    assert status == 401
    assert "Traceback" not in outside.daemons["up"].log.read_text()
