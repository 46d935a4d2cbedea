"""The worker: one poll loop that serves a coordinator, whichever is there, and runs one attempt at a time.

It starts on a connection. When that ends, an attempt goes on and a new connection is accepted; without an attempt the
worker ends. On a wire, which shows no end of a connection, it is also the end of one when nothing was heard for the
length of the lease. It trusts the coordinator with what to do, but no byte of what it says to be well-formed.

    serve.py    the loop, the connection, the lease     conversation.py   what goes over one connection
    orders.py   what the coordinator wants              link.py           frames in and out of a socket
    attempt.py  one attempt: source, steps, ending      streams.py        how far the log and the artifacts are sent
    steps.py    one step and its limits                 log.py, room.py   what was printed and is not yet acknowledged
    ending.py   kill, drain, collect                    processes.py, artifacts.py, cleanup.py, verdict.py   its parts
    wire.py     connections where there is no socket    entry.py          an injected worker's start
"""

import hashlib
import math
import os
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace

from biruda import process
from biruda.convert import decode as convert_decode
from biruda.errors import PeerError
from biruda.frames import Session
from biruda.messages import (
    PROTOCOL,
    Assign,
    Assignment,
    Attach,
    AttemptEnded,
    AttemptRecorded,
    Cancel,
    Notice,
    StepEnded,
    StepStarted,
    StreamsWanted,
    WorkerHello,
    WorkerIdle,
    decode_to_worker,
    encode,
)
from biruda.model import Artifact, AttemptResult, Facts, Kind, LogInfo, Outcome, Recipe, Step, StepResult
from biruda.process import own_process
from biruda.wire import CONNECTION_BYTES, mark_of
from biruda.worker.attempt import Attempt
from biruda.worker.cleanup import WorkDirectory
from biruda.worker.conversation import Conversation
from biruda.worker.ending import KILL_S
from biruda.worker.identity import Identity, identity
from biruda.worker.link import Stream
from biruda.worker.opening import Opening
from biruda.worker.orders import Orders
from biruda.worker.processes import reap_orphans
from biruda.worker.signals import own_signals
from biruda.worker.wire import Wire

_ABANDON_POLL_MS = 2
_LONGEST_S = 3600.0
_FRESH_MS = 5  # a worker that nobody asked for anything until then is a spare
_REHEARSAL_S = 5.0
_FRESH_MACHINE_MS = 250  # its processor may be emulated, and what it is asked for first take that long to come


def preload() -> None:
    """Do once what would be done at the first attempt. For a zygote: after its forks the root may be another.

    An injected worker says hello first, and imports what only an attempt needs when it comes to it.
    """
    import biruda.guessenv.here
    import biruda.sourcepack.unpack  # noqa: F401

    process.prepare()
    recipe = Recipe(steps=(Step(name="", argv=()),))
    for message in (
        Attach(protocol=PROTOCOL, nonce="", lease_s=1.0),
        Assign(assignments=(Assignment(job=1, attempt=1, environment="", recipe=recipe),)),
        Cancel(job=1, attempt=1, outcome="", reason=""),
        StreamsWanted(job=1, attempt=1, streams=((0, 0),)),
        AttemptRecorded(job=1, attempt=1),
    ):
        decode_to_worker(encode(message))
    step = StepResult(name="", argv=(), exit_status=0, signal=None, wall_s=0.0, cpu_s=0.0, peak_rss_bytes=0)
    artifact = Artifact(path="", bytes=0, sha256="")
    result = AttemptResult(
        outcome=Outcome.PASSED,
        exit_status=0,
        steps=(step,),
        log=LogInfo(bytes=0, sha256="", complete=True),
        artifacts=(artifact,),
    )
    for said in (
        WorkerHello(protocol=PROTOCOL, worker="", nonce="", pid=1, facts=Facts(arch="", platform=""), steps=(step,)),
        WorkerIdle(worker=""),
        StepStarted(job=1, attempt=1, index=0, at_s=0.0),
        StepEnded(job=1, attempt=1, index=0, result=step),
        AttemptEnded(job=1, attempt=1, result=result),
        Notice(text=""),
    ):
        encode(said)
    hashlib.sha256(b"").hexdigest()


def rehearse(opening: Opening) -> None:
    """Go once through an attempt that starts nothing and leaves nothing.

    A fork shares its memory with the zygote until it writes to it, and Python writes wherever it looks: some 300 page
    faults, a millisecond, that a spare has taken before a job waits for it.
    """
    alone = replace(opening, room_path="", room_fd=-1, user="")
    assignment = Assignment(job=0, attempt=0, environment="", recipe=Recipe(steps=(Step(name="", argv=()),)))
    with suppress(Exception):  # what is wrong here is said by the first real attempt
        attempt = Attempt(
            alone, assignment, WorkDirectory(opening.work, keep=opening.reuse), {}, lambda message: None, wakes=True
        )
        attempt.advance(time.monotonic())
        attempt.clean_up()


def rehearse_in_machine(opening: Opening) -> None:
    """Go once through a whole attempt, from its assignment to the frames with what a shell printed.

    An emulated processor translates each piece of code when it first comes to it, the kernel's too: a fifth of a second
    and more that a spare has taken before a job waits for it. Nobody else may have processes here: an attempt's end
    kills them all.
    """
    alone = replace(opening, guess=False, user="", reuse=True)  # the work directory stays, as new
    session = Session()
    recipe = Recipe(steps=(Step(name="", argv=("/bin/sh", "-c", "echo; exit 0")),))
    assignment = Assignment(job=1, attempt=1, environment="", recipe=recipe, lease_s=_REHEARSAL_S)
    ours, theirs = socket.socketpair()
    with ours, theirs, suppress(Exception):  # what is wrong here is said by the first real attempt
        theirs.sendall(
            mark_of(opening.nonce, os.urandom(CONNECTION_BYTES))
            + session.message(encode(Attach(protocol=PROTOCOL, nonce=opening.nonce, lease_s=_REHEARSAL_S)))
            + session.message(encode(Assign(assignments=(assignment,))))
        )
        worker = Worker(None, Wire(ours.fileno(), ours.fileno(), opening.nonce), alone, -1)
        try:
            worker.run_until_ended(time.monotonic() + _REHEARSAL_S)
        finally:
            worker.close()


def serve(connection: socket.socket, listener: socket.socket | None, opening: Opening) -> None:
    """Serve until there is nothing more to do here; then nothing of an attempt is left, and the connection is closed.

    Without a listener nobody can come back: the end of the connection is the end of the attempt. The listener stays
    the caller's. Where the worker is not a thread, signal handlers are set, and set back at the end, and umask and
    working directory become what a step shall have.
    """
    if opening.kind is Kind.THREAD:
        _serve(connection, listener, opening, -1)
        return
    own_process()
    with own_signals() as child_fd:
        _serve(connection, listener, opening, child_fd)


def serve_over(read_fd: int, write_fd: int, opening: Opening, *, reopens: bool = False) -> None:
    """Serve on a wire (see biruda.wire) until there is nothing more to do here; then nothing of an attempt is left.

    The descriptors stay the caller's, and become non-blocking; they may be the same. Whoever is there has to say so by
    a mark, and to be heard within each lease. With `reopens`, as for a virtual machine's port, the end of read_fd is
    that of a connection; else it is that of the worker. Signal handlers are set, and set back at the end.
    """
    own_process()
    wire = Wire(read_fd, write_fd, opening.nonce, reopens=reopens)
    with own_signals() as child_fd:
        _serve(None, wire, opening, child_fd)


def _serve(
    connection: socket.socket | None, listener: socket.socket | Wire | None, opening: Opening, child_fd: int
) -> None:
    worker = Worker(connection, listener, opening, child_fd)
    try:
        worker.run()
    finally:
        worker.close()


class Worker:
    """What happens between one turn of poll and the next."""

    def __init__(
        self,
        connection: socket.socket | None,
        listener: socket.socket | Wire | None,
        opening: Opening,
        child_fd: int,
    ) -> None:
        self._opening = opening
        self._listener = listener
        self._wire = listener if isinstance(listener, Wire) else None
        self._child_fd = child_fd
        self._orders = Orders(opening, wakes=child_fd >= 0)
        self._facts = _facts() if opening.guess else None
        self._identity = identity() if self._wire is not None else Identity()
        self._alone_since_s = time.monotonic()  # counts while no coordinator is attached, or on a wire none is heard
        if connection is not None:
            self._connect(connection)
        if isinstance(listener, socket.socket):
            listener.setblocking(False)

    def run(self) -> None:
        """Turn until it is over."""
        polled: dict[int, int] = {}
        poll = select.poll()
        is_fresh = self._opening.kind is not Kind.THREAD
        is_machine = self._opening.kind is Kind.QEMU
        fresh_ms = _FRESH_MACHINE_MS if is_machine else _FRESH_MS
        while not self._is_over():
            wanted = self._descriptors()
            if wanted != polled:
                for fd in polled.keys() - wanted.keys():
                    poll.unregister(fd)
                for fd, mask in wanted.items():
                    poll.register(fd, mask)
                polled = wanted
            is_fresh = is_fresh and self._orders.attempt is None
            if is_fresh and not poll.poll(fresh_ms):
                rehearse_in_machine(self._opening) if is_machine else rehearse(self._opening)
                is_fresh = False
            self._turn({fd for fd, _ in poll.poll(self._timeout_ms())})

    def run_until_ended(self, give_up_s: float) -> None:
        """Turn until the attempt that it is given has ended, and all of that was said."""
        while time.monotonic() < give_up_s and (self._orders.attempt is None or self._orders.attempt.ended is None):
            poll = select.poll()
            for fd, mask in self._descriptors().items():
                poll.register(fd, mask)
            self._turn({fd for fd, _ in poll.poll(_ABANDON_POLL_MS)})

    def _descriptors(self) -> dict[int, int]:
        wanted: dict[int, int] = {}
        if self._wire is not None and time.monotonic() >= self._wire.rests_until_s:
            self._wire.rests_until_s = 0.0  # decided here alone: who does not poll it must not wait for ever either
        if self._listener is not None and not self._rests:
            wanted[self._listener.fileno()] = select.POLLIN
        if self._child_fd >= 0:
            wanted[self._child_fd] = select.POLLIN
        conversation, attempt = self._orders.conversation, self._orders.attempt
        if conversation is not None:
            link = conversation.link
            wanted[link.fileno()] = select.POLLIN
            if link.is_blocked:
                wanted[link.out_fileno()] = wanted.get(link.out_fileno(), 0) | select.POLLOUT
        if attempt is not None:
            if attempt.log.read_fd >= 0 and attempt.log.may_read:
                wanted[attempt.log.read_fd] = select.POLLIN
            if attempt.running is not None and attempt.running.child.pidfd >= 0:
                wanted[attempt.running.child.pidfd] = select.POLLIN
        return wanted

    @property
    def _rests(self) -> bool:
        return self._wire is not None and self._wire.rests_until_s > 0

    def _timeout_ms(self) -> int | None:
        now_s = time.monotonic()
        wanted_s = self._lease_end_s
        if self._rests and self._wire is not None:
            wanted_s = min(wanted_s, self._wire.rests_until_s)
        if self._orders.conversation is not None:
            wanted_s = min(wanted_s, self._orders.conversation.tells_at_s)
        if self._orders.attempt is not None:
            wanted_s = min(wanted_s, self._orders.attempt.next_s(now_s))
        if not wanted_s - now_s < _LONGEST_S:  # also what is no number: a limit that somebody set to NaN
            return None if wanted_s == math.inf else int(_LONGEST_S * 1000)
        return math.ceil(max(wanted_s - now_s, 0.0) * 1000)

    @property
    def _lease_end_s(self) -> float:
        conversation = self._orders.conversation
        if conversation is not None and conversation.attached and self._wire is None:
            return math.inf
        return self._alone_since_s + self._orders.lease_s

    def _is_over(self) -> bool:
        if self._orders.conversation is None:
            is_awaited = not self._orders.is_empty or (self._wire is not None and not self._wire.was_used)
            if self._listener is None or not is_awaited:
                return True
        return self._orders.is_done or (time.monotonic() >= self._lease_end_s and not self._is_spoken_to())

    def _is_spoken_to(self) -> bool:
        """Whether there is something on the wire that this worker was too busy to hear."""
        return self._wire is not None and not self._rests and self._wire.has_something()

    def _turn(self, ready: set[int]) -> None:
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener)
            if self._wire is not None:
                self._alone_since_s = max(self._alone_since_s, self._wire.heard_at_s)
        conversation = self._orders.conversation
        if conversation is not None and conversation.link.is_blocked:
            conversation.link.flush()  # before more is sent: else that would wait until something else happens
        if conversation is not None and conversation.link.fileno() in ready:
            self._listen(conversation)
        attempt = self._orders.attempt
        pidfd = attempt.running.child.pidfd if attempt is not None and attempt.running is not None else -1
        if self._child_fd in ready or (pidfd in ready and self._child_fd >= 0):  # what one tells the other tells too
            _empty(self._child_fd)
            ready.add(self._child_fd)
        if attempt is not None:
            self._drive(attempt, has_output=attempt.log.read_fd in ready)
        while self._orders.go_on() and self._orders.attempt is not None:
            self._drive(self._orders.attempt, has_output=False)
        if self._child_fd in ready:
            self._reap()  # after the step's own process was looked at
        conversation = self._orders.conversation
        if conversation is not None:
            conversation.tell_waiting(time.monotonic())
            if not conversation.link.is_blocked:  # else poll says when, and that turn sends more too
                conversation.link.flush()
            if conversation.link.lost:
                self._disconnect()

    def _drive(self, attempt: Attempt, *, has_output: bool) -> None:
        """Do what can be done now, and tell what came of it."""
        self._orders.guard(attempt, lambda: self._work(attempt, has_output))
        if not self._orders.guard(attempt, lambda: self._send(attempt)):
            self._orders.guard(attempt, lambda: self._send(attempt))  # what came of that

    def _work(self, attempt: Attempt, has_output: bool) -> None:
        conversation = self._orders.conversation
        if has_output:
            offset = attempt.log.end
            piece = attempt.log.read()
            if piece and conversation is not None:
                conversation.offer(offset, piece)
        attempt.advance(time.monotonic())

    def _send(self, attempt: Attempt) -> None:
        if self._orders.conversation is not None:
            self._orders.conversation.send(attempt, at_once=not self._orders.waiting)

    def _reap(self) -> None:
        if self._opening.owns_pids or self._opening.subreaper:
            running = self._orders.attempt.running if self._orders.attempt is not None else None
            reap_orphans(running.child.pid if running is not None and running.exit is None else 0)

    def _accept(self, listener: socket.socket | Wire) -> None:
        connection: socket.socket | Stream
        try:
            connection, _ = listener.accept()
        except OSError:  # it has gone again, or none has come
            return
        except EOFError:  # nobody can come any more
            self._listener = None
            return
        self._connect(connection)

    def _connect(self, connection: socket.socket | Stream) -> None:
        """Speak on a new connection from now on; an older one is closed."""
        self._disconnect()
        self._orders.conversation = Conversation(connection, self._opening)
        who = self._identity
        self._orders.conversation.greet(
            self._orders.attempt, self._facts, others=self._orders.others, arch=who.arch, boot_id=who.boot_id
        )
        self._orders.conversation.link.flush()

    def _disconnect(self) -> None:
        conversation = self._orders.conversation
        if conversation is not None:
            if conversation.attached:
                self._alone_since_s = time.monotonic()
            conversation.close()
            self._orders.conversation = None

    def _listen(self, conversation: Conversation) -> None:
        """Handle what came on the connection. Whatever is wrong with it ends it, and nothing else."""
        try:
            for item in conversation.link.receive():
                self._orders.take(conversation, item)
                if self._orders.is_done:
                    return
        except PeerError as error:
            sys.stderr.write(f"biruda: worker {self._opening.worker} closes its connection: {error}\n")
            conversation.link.lost = True
        except Exception:  # a bug of ours, found by a peer: the attempt shall not pay for it
            sys.excepthook(*sys.exc_info())
            conversation.link.lost = True

    def close(self) -> None:
        """End what runs, remove what was made, close the connection."""
        attempt = self._orders.attempt
        if attempt is not None:
            self._end(attempt)
            self._orders.remove(attempt)
        self._disconnect()

    def _end(self, attempt: Attempt) -> None:
        attempt.abandon("its lease is over and nobody asked for it")
        give_up_s = time.monotonic() + KILL_S
        try:
            while attempt.is_killing and time.monotonic() < give_up_s:
                attempt.advance(time.monotonic())
                select.poll().poll(_ABANDON_POLL_MS)
        except Exception:  # whatever it is, what can be removed shall be
            sys.excepthook(*sys.exc_info())


def _facts() -> Facts:
    from biruda.guessenv.here import guess_here  # here, so that who is not asked for a guess is there sooner

    guess = guess_here().as_dict()
    return convert_decode(Facts, {name: guess[name] for name in Facts.__dataclass_fields__ if name in guess})


def _empty(fd: int) -> None:
    """What is left of a full pipe is read in the next turn."""
    with suppress(BlockingIOError):
        os.read(fd, 65536)
