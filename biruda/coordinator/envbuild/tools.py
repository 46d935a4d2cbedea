"""Programs of the host that build trees: found on a fixed path, run with a built environment, ended with their kin."""

import os
import pwd
import select
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from biruda import process
from biruda.errors import UserError

Run = Callable[[Sequence[str], Mapping[str, str], Callable[[str], None]], int]
"""argv, environment, what is called with each line of output -> exit status, 128+N for signal N."""

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE_S: Final = 10.0
# ends with the thread that started it, which waits for it: also when this process is killed
_DIES_WITH_US: Final = ("setpriv", "--pdeathsig", "KILL")
# mounts of a tool are never seen on the host, and killing unshare kills all it started
_APART: Final = (
    *("unshare", "--mount", "--propagation", "private", "--mount-proc"),
    *("--pid", "--fork", "--kill-child=KILL"),
)


def run_tool(argv: Sequence[str], env: Mapping[str, str], line: Callable[[str], None]) -> int:
    """Run a program to its end, its output line by line. It has ended when this returns or raises."""
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8", errors="replace") as output, open(os.devnull, "rb") as nothing:
        try:
            child = process.start(argv, env=env, cwd="/", stdin=nothing.fileno(), stdout=writer)
        except OSError as error:
            raise UserError(f"{argv[0]}: cannot be started: {error.strerror}") from None
        finally:
            os.close(writer)
        try:
            for text in output:
                line(text)
            return _status(_wait(child))
        except BaseException:
            _end(child)
            raise


def _wait(child: process.Child) -> process.Exit:
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    ended = child.poll()
    assert ended is not None
    return ended


def _end(child: process.Child) -> None:
    """SIGTERM, and SIGKILL to what is still there after the grace."""
    try:
        child.signal_group(signal.SIGTERM)
        if child.pidfd < 0 or not select.select([child.pidfd], [], [], _GRACE_S)[0]:
            child.signal_group(signal.SIGKILL)
        _wait(child)
    except ChildProcessError:
        pass


def _status(ended: process.Exit) -> int:
    return 128 + (ended.signal or 0) if ended.exit_status is None else ended.exit_status


@dataclass(slots=True)
class Tools:
    """How tools are found and run."""

    run_with: Run = run_tool
    search_path: str = SEARCH_PATH
    proxies: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str | None:
        """Where a program is, None where it is not installed."""
        return shutil.which(name, path=self.search_path)

    def run(self, argv: Sequence[str], env: Mapping[str, str], line: Callable[[str], None]) -> int:
        """Run a program with a small, fixed environment and these variables."""
        common = {"PATH": self.search_path, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", **self.proxies}
        return self.run_with(argv, {**common, **env}, line)

    def run_apart(self, argv: Sequence[str], env: Mapping[str, str], line: Callable[[str], None]) -> int:
        """The same, ended when this process is killed, and as root in namespaces of its own, where the host can."""
        prefix: list[str] = []
        for wrapper in (_DIES_WITH_US, _APART if os.geteuid() == 0 else ()):
            if wrapper and self.find(wrapper[0]) and self.run([*prefix, *wrapper, "true"], {}, lambda _: None) == 0:
                prefix += wrapper
        return self.run([*prefix, *argv], env, line)

    def check_unshare_mode(self, subuid: Path = Path("/etc/subuid"), sysctl: Path = Path("/proc/sys")) -> None:
        """UserError where a user that is not root cannot build in a user namespace."""
        reason = ""
        user = _user_name()
        if not self.find("newuidmap"):
            reason = "newuidmap is not installed"
        elif not any(_has_range(subuid.with_name(name), user) for name in ("subuid", "subgid")):
            reason = f"{subuid} has no range of user numbers for {user}"
        elif (
            _number(sysctl / "kernel/unprivileged_userns_clone") == 0
            or _number(sysctl / "user/max_user_namespaces") == 0
        ):
            reason = "the kernel's settings forbid user namespaces"
        if reason:
            raise UserError(
                f"building a suite without being root takes user namespaces: {reason}",
                hint=f"be root; or apt-get install uidmap and usermod --add-subuids 100000-165535 "
                f"--add-subgids 100000-165535 {user}",
            )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _has_range(path: Path, user: str) -> bool:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in (user, str(os.geteuid())) and line.count(":") == 2 for line in lines)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
