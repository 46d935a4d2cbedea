"""A home whose daemon is a coordinator of another master: there is no API here, only a process and a lock."""

import fcntl
import os
from pathlib import Path
from typing import Any, NamedTuple


class Elsewhere(NamedTuple):
    """The coordinator that runs here, and for whom."""

    host: str
    pid: int
    master: str  # its URL; "" where it waits to be dialled

    def as_json(self) -> dict[str, Any]:
        return {"host": self.host, "pids": {"coordinator": self.pid}, "master": self.master or None}


def holder(home: Path, role: str) -> int:
    """The process that has this role in a home, 0 for none."""
    try:
        fd = os.open(home / f"{role}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
    return 0


def elsewhere(home: Path, config_path: Path | None = None) -> Elsewhere | None:
    """The coordinator of this home, where there is one and no master. Raises ConfigError."""
    pid = holder(home, "coordinator")
    if not pid or holder(home, "master"):
        return None
    from biruda.cli.roles import as_joined, host_name, works_elsewhere
    from biruda.config import find_config, load

    config = as_joined(home, load(find_config(home, config_path), home=home))
    if not works_elsewhere(config):
        return None
    master = "" if config.coordinator.listen is not None else config.coordinator.master
    return Elsewhere(host_name(config), pid, master)
