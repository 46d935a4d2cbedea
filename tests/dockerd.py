"""A Docker daemon of the tests' own: its data, its socket and its cgroups are in places that go with it."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
START_S = 60.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=START_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(START_S)
        self.sock.connect(self._path)


@dataclass
class Dockerd:
    """The daemon, which can be stopped and started again over the same data."""

    directory: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> str:
        return f"{self.directory}/sock"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def cgroup(self) -> str:
        return f"/biruda-test-{self.directory.name}"

    def start(self) -> Self:
        """It answers on return; skips the test where no daemon can run."""
        argv = [
            *("setpriv", "--pdeathsig", "TERM"),  # a session that is killed leaves no daemon
            *("dockerd", "--data-root", f"{self.directory}/data", "--exec-root", f"{self.directory}/exec"),
            *("--pidfile", f"{self.directory}/pid", "--host", f"unix://{self.socket}", "--log-level", "warn"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", self.cgroup),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self.process.poll() is None:
            with suppress(OSError):
                self.request("GET", "/_ping")
                return self
            time.sleep(0.05)
        self.stop()
        pytest.skip(f"dockerd does not run here: {self.log.read_text(errors='replace')[-500:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """It has ended on return, and with it its containers."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(START_S)
            self.process = None

    def remove(self) -> None:
        """Nothing of it is left."""
        self.stop()
        for top in Path("/sys/fs/cgroup").glob("*/"):
            base = top / self.cgroup.lstrip("/")
            if base.exists():
                for path in sorted(base.rglob("*/"), reverse=True):
                    with suppress(OSError):
                        path.rmdir()
                with suppress(OSError):
                    base.rmdir()
        shutil.rmtree(self.directory)

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The answer's body; AssertionError for a refusal."""
        connection = _Connection(self.socket)
        try:
            headers = {"Content-Type": "application/x-tar"} if body is not None else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        assert answer.status < 400, f"{method} {path}: {answer.status} {text!r}"
        return text

    def import_tree(self, root: Path | None, name: str, *changes: str) -> str:
        """An image of that name with the files of a tree, or with none; its id."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            if root is not None:
                archive.add(root, ".")
        more = "".join(f"&changes={change.replace(' ', '%20').replace('=', '%3D')}" for change in changes)
        self.request("POST", f"/images/create?fromSrc=-&repo={name}{more}", packed.getvalue())
        number: str = json.loads(self.request("GET", f"/images/{name}/json"))["Id"]
        return number

    def containers(self) -> list[dict[str, Any]]:
        """All that there are, whatever their state."""
        found: list[dict[str, Any]] = json.loads(self.request("GET", "/containers/json?all=1"))
        return found


@contextmanager
def docker_daemon() -> Iterator[Dockerd]:
    """A running daemon; skips the test where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("only root runs a Docker daemon here")
    if shutil.which("dockerd") is None or shutil.which("setpriv") is None:
        pytest.skip("no dockerd or setpriv: apt-get install docker.io util-linux")
    daemon = Dockerd(Path(tempfile.mkdtemp(prefix="biruda-dockerd-")))
    try:
        yield daemon.start()
    finally:
        daemon.remove()


def need_worker(arch: str = "amd64") -> Path:
    """The static worker of an architecture; skips the test where it was not made."""
    directory = os.environ.get("BIRUDA_WORKERS") or CHECKOUT / "dist" / "workers"
    path = Path(directory, arch)
    if not path.exists():
        pytest.skip(f"no {path}: ./build-static.sh --workers --arch {arch}")
    return path
