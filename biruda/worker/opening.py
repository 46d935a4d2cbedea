"""What a spawner tells a worker about itself at birth. Everything else comes over the stream."""

from dataclasses import dataclass

from biruda.model import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A worker's birth certificate."""

    worker: str  # its id, unique for this coordinator
    nonce: str  # echoed in WorkerHello: proves that the process which was spawned is the one that answers
    kind: Kind
    work: str  # absolute path inside the environment; made for each attempt, the steps' work directory
    lease_s: float = 60.0  # how long an idle or unattached worker waits before Attach says otherwise
    room_path: str = ""  # file for unsent log bytes, opened anew for each attempt; "" when room_fd or none
    room_fd: int = -1  # the same, already open (an environment that cannot see the host's files)
    owns_pids: bool = False  # PID 1 of its own PID namespace: whatever else lives in it is the attempt's
    subreaper: bool = False  # orphans of the attempt come to this process, which must end and reap them
    cgroup: str = ""  # a cgroup v2 directory with this worker and its attempt only; "" where there is none
    reuse: bool = False  # serves attempt after attempt; else ends after the first was recorded
    guess: bool = False  # put executed guess-env facts into WorkerHello
    user: str = ""  # user name or uid to run steps as, resolved inside the environment
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
