"""A real farm for tests: the real commands, real daemons, and what they leave behind."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("biruda", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(os.fspath(self._path))


class ApiError(Exception):
    """A problem document."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body


def until(what: str, holds: Callable[[], Any], limit_s: float = DEADLINE_S) -> Any:
    """The first true value; AssertionError that names what did not come true in time."""
    deadline = time.monotonic() + limit_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.01)  # outside processes give no event to wait for


@dataclass
class Daemon:
    """One `biruda` role in the foreground."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)


@dataclass
class RealFarm:
    """A home directory with its daemons. prefix: what each command runs behind (a network namespace, faketime)."""

    home: Path
    config: str = ""
    daemons: dict[str, Daemon] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    api: Path | None = None  # the home of its master, where that is another

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "biruda.conf").write_text(self.config)

    def argv(self, *args: str) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "biruda", "--home", os.fspath(self.home), *args]

    def command(self, *args: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """A command line, run to its end."""
        env = {**os.environ, "PYTHONPATH": os.fspath(SOURCE), "NO_COLOR": "1"}
        return subprocess.run(
            self.argv(*args),
            env=env,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=120,
            check=False,
            **options,
        )

    def join(self, master: "RealFarm", url: str, name: str) -> None:
        """Become a host of another's farm."""
        token = json.loads(master.command("token", "--json").stdout)["token"]
        joined = self.command("join", url, "--token", token, "--name", name)
        assert joined.returncode == 0, joined.stderr

    def start(self, role: str = "up", *, linked: bool = True) -> Daemon:
        """Start `up`, `master` or `coordinator` and wait until it is ready."""
        read_fd, write_fd = os.pipe()
        os.set_inheritable(write_fd, True)
        args = ("up", "--foreground") if role == "up" else (role,)
        log = self.home / f"{role}.log"
        env = {**os.environ, "PYTHONPATH": os.fspath(SOURCE), "BIRUDA_READY_FD": str(write_fd)}
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.argv(*args), env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=(write_fd,)
            )
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as ready:
            said = ready.readline()
        assert said == b"ready\n", f"{role} did not start: {said!r} {log.read_text()[-2000:]}"
        self.daemons[role] = Daemon(process, log)
        if role == "coordinator" and linked:
            until("the coordinator is linked", lambda: process.pid in self._linked_pids())
        return self.daemons[role]

    def stop(self) -> None:
        """End all daemons; every attempt ends too."""
        if self.api is None:
            self.cancel_all()
        for daemon in self.daemons.values():
            if daemon.process.poll() is None:
                daemon.process.terminate()
        for daemon in self.daemons.values():
            daemon.process.wait(DEADLINE_S)

    def cancel_all(self) -> None:
        """Every job has ended on return."""
        with contextlib.suppress(OSError, ApiError):
            while jobs := self.get("/api/v1/jobs?state=unfinished&limit=1000&brief=1")["jobs"]:
                self.post("/api/v1/jobs/cancel", {"jobs": [job["job"] for job in jobs]})
                for job in jobs:
                    if job["attempt"] is not None:
                        self.get(f"/api/v1/jobs/{job['job']}?wait_s=20")

    # The API.

    def _linked_pids(self) -> set[int]:
        return {item["pid"] for item in self.get("/api/v1/coordinators")["coordinators"] if item["connected"]}

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        connection = Unix((self.api or self.home) / "master.sock")
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise ApiError(response.status, json.loads(data))
        return data

    def get(self, path: str) -> Any:
        return json.loads(self.request("GET", path))

    def post(self, path: str, body: Any) -> Any:
        return json.loads(self.request("POST", path, body))

    def submit(self, *scripts: str, env: str = "", **more: Any) -> int:
        """One job of shell steps; its number."""
        steps = [
            {"name": f"step {index}", "argv": ["/bin/sh", "-c", script]}
            for index, script in enumerate(scripts, start=1)
        ]
        recipe = {"steps": steps, **more.pop("recipe", {})}
        requirements = {"env": env} if env else {}
        job = {"recipe": recipe, "requirements": requirements, **more}
        number: int = self.post("/api/v1/jobs", {"jobs": [job]})["jobs"][0]
        return number

    def job(self, number: int) -> Any:
        return self.get(f"/api/v1/jobs/{number}")

    def finished(self, number: int, limit_s: float = DEADLINE_S) -> Any:
        """The job when it has ended."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            job = self.get(f"/api/v1/jobs/{number}?wait_s=10")
            if job["state"] == "finished":
                return job
        raise AssertionError(f"job {number} has not ended within {limit_s:g} s: {self.job(number)}")

    def started(self, number: int) -> Any:
        """The job when its attempt has begun."""
        return until(f"job {number} runs", lambda: (job := self.job(number))["started"] and job)

    def log(self, number: int, attempt: int | None = None) -> bytes:
        return self.request("GET", f"/api/v1/jobs/{number}/log" + (f"?attempt={attempt}" if attempt else ""))

    def log_has(self, number: int, text: bytes) -> None:
        """Wait until a job has printed something."""

        def holds() -> bool:
            try:
                return text in self.log(number)
            except ApiError:
                return False

        until(f"job {number} prints {text!r}", holds)

    # What is there.

    @property
    def instance(self) -> str:
        return (self.home / "instance").read_text().strip()

    def worker_pids(self) -> list[int]:
        """The processes of this farm that are neither daemons nor their zygotes: in its cgroups, or of its ledger."""
        pids: set[int] = set()
        for directory in self.cgroups():
            with contextlib.suppress(OSError):
                pids |= {int(pid) for pid in (directory / "cgroup.procs").read_text().split()}
        return sorted(pids)

    def cgroups(self) -> list[Path]:
        """Every directory below this instance's in any hierarchy."""
        found: list[Path] = []
        for top, names, _ in os.walk("/sys/fs/cgroup"):  # which does not mind what goes meanwhile
            if "biruda" not in names:
                continue
            base = Path(top, "biruda", self.instance)
            with contextlib.suppress(FileNotFoundError):
                found += [path for path in base.iterdir() if path.is_dir()]
        return found

    def leftovers(self) -> list[str]:
        """Whatever of ended attempts is still there; spares that wait are none."""
        idle = self._idle_workers()
        cgroups = [path for path in self.cgroups() if "-probe-" not in path.name]  # a self-test may be going on
        left = [f"cgroup {path}" for path in cgroups if not any(worker in path.name for worker in idle)]
        workers = self.home / "coordinator" / "workers"
        left += [f"directory {path}" for path in workers.iterdir() if path.name not in idle]
        left += [f"outbox {path}" for path in (self.home / "coordinator" / "outbox").iterdir()]
        left += [
            f"mount {line}"
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if os.fspath(self.home) in line
        ]
        left += [f"partial {path}" for path in (self.home / "spool" / ".partial").iterdir()]
        return left

    def _idle_workers(self) -> set[str]:
        """Workers in the ledger that have no attempt."""
        idle: dict[str, bool] = {}
        for line in (self.home / "coordinator" / "ledger").read_text().splitlines():
            record = json.loads(line)
            if record["is"] == "planned":
                idle[record["worker"]] = True
            elif record["is"] == "given":
                idle[record["worker"]] = record["given"] is None
            elif record["is"] == "gone":
                idle.pop(record["worker"], None)
        return {worker for worker, is_idle in idle.items() if is_idle}

    def nothing_left(self) -> None:
        """Wait until nothing of ended attempts is there."""
        try:
            until("nothing is left", lambda: not self.leftovers(), 15)
        except AssertionError:
            raise AssertionError(f"left behind: {self.leftovers()}") from None


@contextlib.contextmanager
def farm(home: Path, config: str = "", *roles: str, prefix: Sequence[str] = ()) -> Iterator[RealFarm]:
    """A running farm; when the block ends nothing of it is left running."""
    real = RealFarm(home, config, prefix=prefix)
    try:
        for role in roles or ("up",):
            real.start(role)
        yield real
    finally:
        real.stop()
        for daemon in real.daemons.values():
            if daemon.process.poll() is None:
                daemon.process.kill()
