"""What Docker is told to make for one worker: pure, and as JSON what can be printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from biruda.config import Environment, Network
from biruda.coordinator.spawners.injected import WORK
from biruda.coordinator.spawners.limits import Bounds
from biruda.guessenv import canonical_arch

EXECUTABLE: Final = "/.biruda"
INSTANCE: Final = "biruda.instance"
WORKER: Final = "biruda.worker"

_NANO: Final = 1_000_000_000
_SCRATCH: Final = (WORK, "/tmp", "/var/tmp", "/run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as it was when its name was looked up."""

    id: str  # "sha256:..."
    arch: str  # that its metadata name; "unknown"
    env: Mapping[str, str]  # variables that it declares

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Image":
        """From the daemon's description. Raises KeyError, TypeError for what is none."""
        arch, variant = str(answer.get("Architecture", "")), str(answer.get("Variant") or "")
        declared = (answer.get("Config") or {}).get("Env") or []
        return cls(
            id=str(answer["Id"]),
            arch=canonical_arch(f"{arch}/{variant}" if variant else arch) or canonical_arch(arch) or "unknown",
            env=dict(item.split("=", 1) for item in declared if isinstance(item, str) and "=" in item),
        )


def container_name(instance: str, worker: str) -> str:
    """What the container of a worker is called, known before it is made."""
    return f"biruda-{instance}-{worker}"


def work_of(environment: Environment) -> str:
    """Where steps run. What a worker puts beside that must find room too where the root is read-only."""
    return f"{WORK}/work" if environment.disk_bytes else WORK


def specification(
    environment: Environment, worker: str, image: Image, instance: str, executable: Path | None
) -> dict[str, Any]:
    """The body of the request that makes a worker's container. Without an executable it has to be brought in later."""
    assert environment.network is not None
    is_bounded = bool(environment.disk_bytes)
    mounts = [_bind(str(executable), EXECUTABLE, read_only=True)] if executable is not None else []
    mounts += [_bind(bind.host, bind.inside, read_only=bind.read_only) for bind in environment.binds]
    return {
        "Image": image.id,
        "Entrypoint": [],
        "Cmd": [EXECUTABLE, "--worker"],
        "User": "0:0",
        "WorkingDir": "/",
        "OpenStdin": True,
        "StdinOnce": False,  # it can be attached to again
        "Tty": False,
        "NetworkDisabled": environment.network is Network.NONE,
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {INSTANCE: instance, WORKER: worker, "biruda.environment": environment.name},
        **({} if environment.network is Network.HOST else {"Hostname": environment.hostname or environment.name[:63]}),
        "HostConfig": {
            "NetworkMode": environment.network.value,
            "Mounts": mounts,
            "LogConfig": {"Type": "none", "Config": {}},  # else the daemon keeps every frame in a file
            "SecurityOpt": ["no-new-privileges"],
            "AutoRemove": True,  # when the worker ends by itself and no coordinator is there
            "Init": False,
            "ReadonlyRootfs": is_bounded,
            "Tmpfs": {path: _tmpfs(path, environment.disk_bytes) for path in _SCRATCH} if is_bounded else {},
            **limits_of(
                Bounds(
                    memory_bytes=environment.memory_bytes or None,
                    pids=environment.pids or None,
                    cpus=environment.cpus or None,
                )
            ),
        },
    }


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}


def _tmpfs(path: str, size_bytes: int) -> str:
    mode = "0755" if path in (WORK, "/run") else "1777"
    return f"exec,size={size_bytes},mode={mode}"


def limits_of(bounds: Bounds) -> dict[str, int]:
    """The bounds, in the daemon's words."""
    said: dict[str, int] = {}
    if bounds.memory_bytes:
        said |= {"Memory": bounds.memory_bytes, "MemorySwap": bounds.memory_bytes}
    if bounds.pids:
        said["PidsLimit"] = bounds.pids
    if bounds.cpus:
        said["NanoCpus"] = round(bounds.cpus * _NANO)
    return said


def narrowed(now: Mapping[str, Any], wanted: Bounds) -> dict[str, int]:
    """The change that lowers the limits of a container to what is wanted, and raises none."""
    return {
        name: value
        for name, value in limits_of(wanted).items()
        if not 0 < int(now.get(name) or 0) <= value  # 0, or below: there is no limit yet
    }
