"""The static worker's own SHA-256 against hashlib's, by logs that end everywhere in a block and come in odd pieces."""

import hashlib
import socket
import subprocess
from pathlib import Path

import pytest

from biruda.coordinator.spawners.injected import birth, connect
from biruda.worker.digest import sha256
from tests.dockerd import need_worker
from tests.worker.peer import NONCE, Peer, opening_of, recipe_of, shell

PIECES = (1, 54, 55, 56, 63, 64, 65, 119, 128, 1000, 300_001)


def test_a_static_worker_hashes_as_everybody_does(tmp_path: Path) -> None:
    executable = need_worker()
    opening = opening_of(tmp_path, room_path="", memory_room_bytes=32 << 20, reuse=True)
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([executable, "--worker"], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    try:
        mark, incoming = connect(NONCE)
        ours.sendall(birth(opening) + mark)
        peer = Peer(ours, incoming)
        peer.attach()
        for job, size in enumerate((0, *PIECES), start=1):
            peer.channels.clear()
            steps = [shell(f"head -c {size} /dev/urandom; sleep 0.01; head -c {part} /dev/urandom") for part in (7, 70)]
            peer.assign(recipe_of(*steps), job=job)
            assert peer.result().log.bytes == 2 * size + 77  # it compares the digests
            peer.record(job=job)
    finally:
        process.kill()
        process.communicate()
        ours.close()


@pytest.mark.parametrize("size", PIECES)
def test_what_there_is_here_is_as_good(size: int) -> None:
    ours, theirs = sha256(), hashlib.sha256()
    for piece in (bytes(size), memoryview(b"x" * size)):
        ours.update(piece)
        theirs.update(piece)
        assert ours.hexdigest() == theirs.hexdigest()
