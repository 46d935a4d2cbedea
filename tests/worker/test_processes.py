"""Nothing that an attempt started is left, whatever it did to get away."""

import gc
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from biruda.messages import AttemptEnded, StepStarted, WorkerIdle
from biruda.model import Kind, Outcome, Step
from biruda.worker.processes import Namespace
from tests.worker import namespaces
from tests.worker.peer import (
    Worker,
    is_dead,
    marked,
    python,
    recipe_of,
    shell,
    start_process,
    start_thread,
    wait_until,
)


def start_init(**fields: Any) -> Worker:
    """A worker that is PID 1 in its own PID namespace, as in the `chroot` kind."""
    namespaces.need_root()
    return start_process(in_child=namespaces.become_init, subreaper=False, owns_pids=True, kind=Kind.CHROOT, **fields)


@contextmanager
def start_in_cgroup(**fields: Any) -> Iterator[Worker]:
    """A worker with a cgroup of its own."""
    with ExitStack() as stack:
        cgroup = stack.enter_context(new_cgroup(cgroup2_or_skip()))
        yield stack.enter_context(start_process(in_child=lambda: join(cgroup), cgroup=str(cgroup), **fields))


def cgroup2_or_skip() -> Path:
    namespaces.need_root()
    for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (path / "cgroup.controllers").exists():
            return path
    pytest.skip("no cgroup v2 is mounted here")


@contextmanager
def new_cgroup(root: Path) -> Iterator[Path]:
    cgroup = root / f"biruda-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {root}: {error}")
    try:
        yield cgroup
    finally:
        assert wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), 5)
        cgroup.rmdir()


def join(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("0")


@contextmanager
def start_thread_in_cgroup(**fields: Any) -> Iterator[Worker]:
    """A thread whose attempts have a cgroup of their own; the thread is not in it."""
    with new_cgroup(cgroup2_or_skip()) as cgroup, start_thread(cgroup=str(cgroup), **fields) as worker:
        yield worker


@contextmanager
def start_thread_block(**fields: Any) -> Iterator[Worker]:
    with start_thread(**fields) as worker:
        yield worker


every_kind = pytest.mark.parametrize(
    "start",
    [start_process, start_in_cgroup, start_init, start_thread_block, start_thread_in_cgroup],
    ids=["subreaper", "cgroup", "init", "thread", "thread in a cgroup"],
)

DAEMON = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        for fd in {closed}: os.close(fd)
        open({path!r}, "w").write("up")
        time.sleep(600)  # {mark}
    os._exit(0)
while not os.path.exists({path!r}): time.sleep(0.005)
"""


def daemon(worker: Worker, closed: str = "(0, 1, 2)") -> tuple[Step, str]:
    """A step that leaves a daemon behind, and the mark by which it is found."""
    mark = f"mark-{time.monotonic_ns()}"
    return python(DAEMON.format(path=str(worker.directory / "up"), mark=mark, closed=closed)), mark


@every_kind
@pytest.mark.parametrize("closed", ["(0, 1, 2)", "()"], ids=["closed", "holds the log"])
def test_a_daemon_is_dead_when_the_attempt_has_ended(start: Callable[..., Worker], closed: str) -> None:
    with start() as worker:
        item, mark = daemon(worker, closed)
        began = time.monotonic()
        result = worker.peer.run(item)
        assert time.monotonic() - began < 1.5
        assert (result.outcome, result.log.complete) == (Outcome.PASSED, True)
        assert not marked(mark)
        worker.peer.record()
        worker.wait_ended()


@every_kind
def test_nothing_is_left_when_the_lease_is_over(start: Callable[..., Worker]) -> None:
    with start() as worker:
        item, mark = daemon(worker)
        worker.peer.attach(lease_s=0.3)
        worker.peer.assign(recipe_of(item, shell("sleep 600")), lease_s=0.3)
        assert wait_until(lambda: marked(mark))
        worker.peer.close()
        began = time.monotonic()
        worker.wait_ended()
        assert time.monotonic() - began < 1.5
        assert not marked(mark)
        assert not worker.work.exists()


def test_the_lease_begins_again_with_each_connection() -> None:
    with start_process() as worker:
        fifo = worker.directory / "go"
        os.mkfifo(fifo)
        worker.peer.attach(lease_s=1.0)
        worker.peer.assign(recipe_of(shell(f"read x < {fifo}")), lease_s=1.0)
        worker.peer.next(StepStarted)
        peer = worker.peer
        for _ in range(3):
            peer.close()
            select.select([], [], [], 0.4)  # nobody is there, in all for longer than the lease
            peer = worker.connect()
            peer.attach(lease_s=1.0)
            peer.until_acknowledged()
        fifo.write_text("\n")
        assert peer.next(AttemptEnded).result.outcome is Outcome.PASSED


@every_kind
def test_orphans_are_reaped_while_a_step_runs(start: Callable[..., Worker]) -> None:
    text = "for i in 1 2 3 4 5 6 7 8; do (true & true); done; sleep 0.2; echo done"
    with start() as worker:
        result = worker.peer.run(shell(text))
        assert (result.outcome, bytes(worker.peer.log.head)) == (Outcome.PASSED, b"done\n")
        if worker.pid:
            children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
            inner = [int(pid) for pid in children.read_text().split()]
            assert all(not is_dead(pid) for pid in inner)


BOMB = """
import os
os.close(1); os.close(2)
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass
"""


@pytest.mark.parametrize("kind", ["subreaper", "cgroup", "init"])
def test_a_fork_bomb_dies(kind: str) -> None:
    namespaces.need_root()
    pids = Path("/sys/fs/cgroup/pids")
    if not (pids / "cgroup.procs").exists():
        pytest.skip("no cgroup with a limit of processes: no bomb without one")
    starts: dict[str, Callable[..., Any]] = {"subreaper": start_process, "cgroup": start_in_cgroup, "init": start_init}
    start = starts[kind]
    with new_cgroup(pids) as limited:
        (limited / "pids.max").write_text("64")
        with limited_children(limited), start(reuse=True) as worker:
            before = int((limited / "pids.current").read_text())
            worker.peer.attach()
            worker.peer.assign(recipe_of(python(BOMB), grace_s=0.0))
            assert wait_until(lambda: int((limited / "pids.current").read_text()) >= 60)
            began = time.monotonic()
            worker.peer.cancel()
            assert worker.peer.result().outcome is Outcome.CANCELLED
            assert time.monotonic() - began < 2
            assert int((limited / "pids.current").read_text()) <= before + 1
            worker.peer.record()
            worker.peer.next(WorkerIdle)


@contextmanager
def limited_children(cgroup: Path) -> Iterator[None]:
    """What is forked inside belongs to the cgroup."""
    own = next(line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":pids:" in line)
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        Path(f"/sys/fs/cgroup/pids{own}/cgroup.procs").write_text(str(os.getpid()))


def test_a_thread_leaves_the_other_children_of_its_process_alone() -> None:
    other = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    try:
        with start_thread() as worker:
            worker.peer.run(shell("sleep 600 & (setsid sleep 600 &) ; true"))
            worker.peer.record()
            worker.wait_ended()
            assert not is_dead(other)
    finally:
        os.kill(other, 9)
        os.waitpid(other, 0)


def test_the_steps_of_a_thread_join_its_cgroup() -> None:
    text = "sleep 600 & sleep 0.1; cat /proc/self/cgroup /proc/$!/cgroup"
    with start_thread_in_cgroup() as worker:
        worker.peer.run(shell(text))
        name = Path(worker.opening.cgroup).name
        assert bytes(worker.peer.log.head).count(f"0::/{name}\n".encode()) == 2


def test_threads_of_one_process_leave_each_other_alone() -> None:
    with start_thread() as one, start_thread() as two:
        for worker in (one, two):
            worker.peer.attach()
            worker.peer.assign(recipe_of(shell("setsid sleep 600 & echo $!; sleep 600"), grace_s=1.0))
            worker.peer.until_size(3)
        first, second = (int(bytes(worker.peer.log.head)) for worker in (one, two))
        one.peer.cancel()
        one.peer.result()
        assert is_dead(first)
        assert not is_dead(second)
        two.peer.cancel()
        two.peer.result()
        assert is_dead(second)


def test_a_thread_changes_nothing_of_its_process() -> None:
    def state() -> tuple[object, ...]:
        gc.collect()
        mask = os.umask(0o27)
        os.umask(mask)
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        return (
            os.getcwd(),
            mask,
            handlers,
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            len(os.listdir("/proc/self/fd")),
        )

    before = state()
    with start_thread() as worker:
        worker.peer.run(shell("umask; cd /; exit 1"))
        worker.peer.record()
        worker.wait_ended()
    assert state() == before


def test_a_worker_that_is_not_init_never_kills_everything() -> None:
    assert os.getpid() != 1
    with pytest.raises(RuntimeError, match="only PID 1"):
        Namespace().sweep(0)


def test_without_pidfd_the_end_of_a_step_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    for start in (start_process, start_thread):
        with start() as worker:
            assert worker.peer.run(("/bin/sleep", "0.05"), ("/bin/echo", "x")).outcome is Outcome.PASSED


def test_a_fault_of_the_worker_is_an_infra_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug of the test's")

    monkeypatch.setattr("biruda.worker.steps.RunningStep.note_exit", broken)
    with start_process() as worker:
        mark = f"mark-{time.monotonic_ns()}"
        result = worker.peer.run(python(f"import time; time.sleep(600)  # {mark}"))
        assert (result.outcome, result.exit_status) == (Outcome.INFRA, None)
        assert wait_until(lambda: not marked(mark))
        assert result.reason.startswith("the worker failed: ZeroDivisionError: a bug of the test's (test_processes.py:")
        assert "Traceback" in worker.stderr
        worker.peer.record()
        worker.wait_ended()
