"""What a spawner tells a worker about itself at birth. Everything else comes over the stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from biruda.model import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A worker's birth certificate."""

    worker: str  # its id, unique for this coordinator
    nonce: str  # echoed in WorkerHello: proves that the process which was spawned is the one that answers
    kind: Kind
    work: str  # absolute path inside the environment; made for each attempt, the steps' work directory
    lease_s: float = 60.0  # how long an idle or unattached worker waits before Attach says otherwise
    room_path: str = ""  # of the files for logs, one for each attempt: log_path(); "" when room_fd or none
    room_fd: int = -1  # the same, already open (an environment that cannot see the host's files)
    room_bytes: int = 8 << 30  # how much of that may be unacknowledged before the job is slowed down
    memory_room_bytes: int = 4 << 20  # how much of it is kept where there is neither
    owns_pids: bool = False  # PID 1 of its own PID namespace: whatever else lives in it is the attempt's
    subreaper: bool = False  # orphans of the attempt come to this process, which must end and reap them
    cgroup: str = ""  # a cgroup v2 directory with this worker and its attempt only; "" where there is none
    reuse: bool = False  # serves attempt after attempt; else ends after the first was recorded
    guess: bool = False  # put executed guess-env facts into WorkerHello
    personality32: bool = False  # a 32-bit root under a 64-bit kernel: what runs here shall see a 32-bit machine
    user: str = ""  # user name or uid to run steps as, resolved inside the environment
    variables: Mapping[str, str] = field(default_factory=dict)  # of every step, where nothing else says otherwise
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def log_path(room_path: str, job: int, attempt: int) -> str:
    """The file in which the coordinator finds an attempt's log; there is none where nothing was printed."""
    return f"{room_path}.{job}.{attempt}"


def is_log(name: str) -> bool:
    """Whether a file of a worker's directory is an attempt's log: the one of room_fd, or of log_path()."""
    return name == "log" or name.startswith("log.")
