"""What is said on a wire beside frames. Both ends run this; standard library only.

A wire is a byte stream that outlives those who speak on it: the standard streams of a container, a character device of
a virtual machine. It has no visible connections: nobody sees that the other side has gone, and what was half said stays
in it. So a worker is born with one line, its opening; and each connection begins with a mark, which only a coordinator
that knows the worker's nonce can make, and which the worker answers with an echo. What stands before either is dropped.
"""

import hashlib
import json
from typing import Any, Final

from biruda.errors import PeerError
from biruda.messages import PROTOCOL

CONNECTION_BYTES: Final = 16
HANG_UP: Final = bytes(CONNECTION_BYTES)
"""In place of a connection: there is none any more."""

MOST_OPENING_BYTES: Final = 64 * 1024

# A mark that is read in two pieces may end the frame that an earlier coordinator had not finished. Zeros, because no
# JSON has any, and the number in an acknowledgement gets no larger by them.
_PRELUDE: Final = bytes(16)
_OPENING: Final = b"biruda-opening "

SECRET_BYTES: Final = len(_PRELUDE) + 32
ECHO_BYTES: Final = 32


def secret_of(nonce: str) -> bytes:
    """What every mark for a worker begins with."""
    return _PRELUDE + _digest(b"mark", nonce, b"")


def mark_of(nonce: str, connection: bytes) -> bytes:
    """What the coordinator writes to begin this connection, or with HANG_UP to end the one that is."""
    return secret_of(nonce) + connection


def echo_of(nonce: str, connection: bytes) -> bytes:
    """What the worker answers, before the first frame of this connection."""
    return _digest(b"echo", nonce, connection)


def _digest(label: bytes, nonce: str, connection: bytes) -> bytes:
    return hashlib.sha256(b"biruda wire " + label + b"\0" + nonce.encode() + b"\0" + connection).digest()


def opening_line(values: Any) -> bytes:
    """The line that a worker is born with: the JSON form of its opening."""
    return _OPENING + b"%d " % PROTOCOL + json.dumps(values, separators=(",", ":")).encode() + b"\n"


def opening_of_line(line: bytes) -> Any | None:
    """The JSON of a line, None where it is no opening. Raises PeerError for one that this program cannot read."""
    at = line.find(_OPENING)
    if at < 0:
        return None
    protocol, _, text = line[at + len(_OPENING) :].partition(b" ")
    if protocol != b"%d" % PROTOCOL:
        said = protocol[:20].decode("ascii", "replace")
        raise PeerError(f"the coordinator speaks protocol {said}, this worker {PROTOCOL}", hint="run the same version")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise PeerError("the opening is no JSON") from None
