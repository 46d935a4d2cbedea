"""A worker executable, spoken to over its standard streams as a coordinator does."""

import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biruda.convert import encode
from biruda.messages import WorkerHello
from biruda.model import Kind
from biruda.wire import CONNECTION_BYTES, ECHO_BYTES, echo_of, mark_of, opening_line
from biruda.worker.opening import Opening
from tests.worker.peer import NONCE, Peer

LIMIT_S = 60.0  # an emulated one starts a hundred times slower
_CONNECTION = b"c" * CONNECTION_BYTES


@dataclass
class Started:
    """A worker that runs, and what it is spoken to with."""

    peer: Peer
    hello: WorkerHello
    hello_after_s: float
    process: "subprocess.Popen[bytes]"


@contextmanager
def started(argv: Sequence[str | Path], **opening: Any) -> Iterator[Started]:
    """Start `argv --worker`, connect, take its hello. It has ended, with status 0, when this returns."""
    # A worker in a place of its own may empty its work directory: it must never be one of this machine's.
    scratch = tempfile.mkdtemp(prefix="biruda-hello-")
    values = Opening(worker="w", nonce=NONCE, kind=Kind.DOCKER, **{"work": f"{scratch}/work", **opening})
    ours, theirs = socket.socketpair()
    began = time.monotonic()
    words = [*map(str, argv), "--worker"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True)
    with process, ours:
        theirs.close()
        try:
            ours.sendall(opening_line(encode(values)) + mark_of(NONCE, _CONNECTION))
            _expect_echo(ours, process)
            peer = Peer(ours)
            peer.until(lambda: peer.of(WorkerHello), LIMIT_S)
            yield Started(peer, peer.of(WorkerHello)[0], time.monotonic() - began, process)
            ours.close()
            process.wait(LIMIT_S)
        finally:
            process.kill()
            shutil.rmtree(scratch, ignore_errors=True)
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read().decode()


def _expect_echo(ours: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    seen = b""
    while len(seen) < ECHO_BYTES:
        ready = select.select([ours], [], [], LIMIT_S)[0]
        piece = ours.recv(ECHO_BYTES - len(seen)) if ready else b""
        if not piece:
            process.kill()
            assert process.stderr is not None
            raise AssertionError(f"the worker did not answer: {process.stderr.read().decode()}")
        seen += piece
    assert seen == echo_of(NONCE, _CONNECTION)
