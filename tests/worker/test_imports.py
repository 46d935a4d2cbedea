"""After the fork the root may be another one: nothing may be imported any more, and at start-up little."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os, socket, sys
from biruda.worker.serve import preload, serve
from biruda.worker.opening import Opening
from biruda.frames import DataHeader, Session
from biruda.messages import PROTOCOL, Assign, Assignment, Attach, Cancel, StreamsWanted, AttemptRecorded, encode
from biruda.model import Kind, Limits, Recipe, Step

for heavy in ("asyncio", "orjson", "msgspec", "aiohttp", "logging", "tarfile", "sqlite3", "ssl"):
    assert heavy not in sys.modules, heavy
preload()
ours, theirs = socket.socketpair()
pid = os.fork()
if pid == 0:
    ours.close()
    def hook(event, arguments):
        if event == "import":
            os.write(2, f"imports {arguments[0]}\\n".encode())
    sys.addaudithook(hook)
    opening = Opening(worker="w", nonce="n", kind=Kind.PROCESS, work=sys.argv[1], reuse=True, guess=True, user="root")
    serve(theirs, None, opening)
    os._exit(0)
theirs.close()
session = Session()
steps = (
    Step(name="a", argv=("/bin/echo", "x")),
    Step(name="b", argv=("/bin/sh",), script="echo > file; exit 1"),
    Step(name="c", argv=("no-such-command",), always=True),
    Step(name="d", argv=("/bin/sh", "-c", "trap '' TERM; sleep 9 & kill -9 $$"), always=True, limit_s=0.1),
)
recipe = Recipe(steps=steps, artifacts=("**/*", "none"), limits=Limits(grace_s=0.1))
def say(message):
    ours.sendall(session.message(encode(message)))
say(Attach(protocol=PROTOCOL, nonce="n", lease_s=9.0))
say(Assign(assignments=(Assignment(job=1, attempt=1, environment="", recipe=recipe, source="0" * 64),)))
for offset, payload in ((0, bytes(1024)), (1024, b"")):
    ours.sendall(session.data(DataHeader(1, 1, 0, offset), payload))
seen = b""
while b'"outcome"' not in seen:
    piece = ours.recv(1 << 16)
    assert piece, seen
    seen += piece
assert b'"outcome":"failed"' in seen, seen
say(StreamsWanted(job=1, attempt=1, streams=((1, 0), (0, 0))))
say(AttemptRecorded(job=1, attempt=1))
recipe = Recipe(steps=(Step(name="a", argv=("",)),))
say(Assign(assignments=(Assignment(job=2, attempt=1, environment="", recipe=recipe),)))
say(Cancel(job=2, attempt=1, outcome="cancelled", reason=""))
while b'"job":2' not in seen:
    seen += ours.recv(1 << 16)
ours.close()
print(os.waitpid(pid, 0)[1])
"""


def test_nothing_is_imported_after_the_fork(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "work")], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
