"""What the coordinator asks its zygote and a newborn says of itself: JSON over sequenced-packet sockets.

A request is {"id", "type", fields}; its answer {"id", "problem", "hint", fields}. Births bring two descriptors, the
worker's ends of its stream and of its report; a Launch brings its end of the report. Their answers bring a pidfd.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from biruda.convert import decode, encode
from biruda.worker.opening import Opening

ROOM_FD: Final = 100
"""Descriptor of the room in a worker that cannot see the place's directory."""

MAX_BYTES: Final = 128 * 1024
"""Longest request or answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupOrder:
    """A cgroup to be made, with what is to be written to its files."""

    path: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """Make a worker. Its report says b"born", or in JSON why not; with a network it is answered by an Address first."""

    directory: str
    opening: Opening
    cgroup: CgroupOrder | None = None  # version 2: it is born there
    joined: tuple[CgroupOrder, ...] = ()  # version 1: it goes there itself, first of all
    namespaces: int = 0  # CLONE_NEW… flags
    plan: str = ""  # operations in JSON
    cgroups: tuple[str, ...] = ()  # all that it may come to occupy, to be removed with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start a program in a place. Its report ends when the program has begun, or says in JSON why it could not.

    It gets the sockets `listening`, bound by these names in the place's directory, from FIRST_LISTENER_FD on; what it
    prints goes to the file `output` there. Until it is Settled it ends with the coordinator.
    """

    directory: str
    argv: tuple[str, ...]
    cgroup: CgroupOrder | None = None
    joined: tuple[CgroupOrder, ...] = ()
    cgroups: tuple[str, ...] = ()
    listening: tuple[str, ...] = ()
    file_bytes: int = 0  # the longest file that it may write


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What was launched in this directory can end by itself: it outlives the coordinator. No answer."""

    directory: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Bound the throw-away layer of a running worker anew."""

    pid: int
    start_ticks: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """When the coordinator is gone, end what is in this cgroup and remove it and the directory's scratch."""

    directory: str
    cgroups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """The place with this directory has been disposed of. No answer."""

    directory: str


Request = Birth | Launch | Settled | Resize | Guard | Forget

_REQUESTS: Final[Mapping[str, type]] = {kind.__name__: kind for kind in (Birth, Launch, Settled, Resize, Guard, Forget)}

BORN: Final = b"born"

FIRST_LISTENER_FD: Final = 10
"""Descriptor of the first socket that a launched program listens at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What a newborn in a network of its own gives its interface."""

    address: str
    prefix: int
    gateway: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a request went; problem is "" when it was done."""

    id: int
    problem: str = ""
    hint: str = ""
    pid: int = 0
    start_ticks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stillbirth:
    """Why a worker could not be made."""

    problem: str
    hint: str = ""


def pack_request(number: int, request: Request) -> bytes:
    """A request's bytes."""
    return pack({"id": number, "type": type(request).__name__, **encode(request)})


def unpack_request(data: bytes) -> tuple[int, Request]:
    """A request's number and value."""
    fields = json.loads(data)
    number = fields.pop("id")
    request: Request = decode(_REQUESTS[fields.pop("type")], fields)
    return number, request


def pack(value: Any) -> bytes:
    """The JSON of a value."""
    return json.dumps(encode(value), separators=(",", ":")).encode()
