"""Links between network namespaces, in user space: packets can be dropped, delayed, reordered and sent twice.

For kernels without netem. Each link is a pair of TUN devices, one in the master's namespace and one in a host's; this
process carries IP packets between them. It is started as `python -m tests.soak.wire SEED MASTER NAME=PID…`, where each
PID is a process in a namespace, and told what to do on stdin: a JSON line `{"link": NAME, "cut": true}`,
`{"link": NAME, "delay_s": 0.1, "jitter_s": 0.2, "loss": 0.05, "twice": 0.05}`; what is left out is as usual again.
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from dataclasses import dataclass, field

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
PACKET_BYTES = 2048


@dataclass
class Manner:
    """How a link treats packets now."""

    cut: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    twice: float = 0.0


@dataclass
class Link:
    name: str
    ends: tuple[int, int]
    manner: Manner = field(default_factory=Manner)


def open_tun(pid: int, name: str) -> int:
    """A TUN device of that name in the network namespace of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


class Wire:
    """All links, carried by one loop."""

    def __init__(self, seed: str, links: list[Link]) -> None:
        self._chance = random.Random(seed)
        self._links = {link.name: link for link in links}
        self._other: dict[int, tuple[int, Link]] = {}
        for link in links:
            one, two = link.ends
            self._other[one], self._other[two] = (two, link), (one, link)
        self._later: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def run(self) -> None:
        """Until stdin ends."""
        poll = select.poll()
        for fd in (0, *self._other):
            poll.register(fd, select.POLLIN)
        orders = b""
        while True:
            wait_s = self._later[0][0] - time.monotonic() if self._later else None
            for fd, _ in poll.poll(None if wait_s is None else max(0, int(wait_s * 1000) + 1)):
                if fd != 0:
                    self._carry(fd)
                    continue
                piece = os.read(0, 65536)
                if not piece:
                    return
                *lines, orders = (orders + piece).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            while self._later and self._later[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(self._later)
                _send(target, packet)

    def _obey(self, order: dict[str, object]) -> None:
        link = self._links[str(order.pop("link"))]
        link.manner = Manner(**order)  # type: ignore[arg-type]

    def _carry(self, fd: int) -> None:
        target, link = self._other[fd]
        manner = link.manner
        for _ in range(64):
            try:
                packet = os.read(fd, PACKET_BYTES)
            except BlockingIOError:
                return
            if manner.cut or (manner.loss and self._chance.random() < manner.loss):
                continue
            for _ in range(1 + (self._chance.random() < manner.twice if manner.twice else 0)):
                if not manner.delay_s and not manner.jitter_s:
                    _send(target, packet)
                    continue
                self._count += 1
                due_s = time.monotonic() + manner.delay_s + self._chance.random() * manner.jitter_s
                heapq.heappush(self._later, (due_s, self._count, target, packet))


def _send(target: int, packet: bytes) -> None:
    try:
        os.write(target, packet)
    except OSError:
        pass  # its queue is full, or its interface is down: packets may be lost


def main(argv: list[str]) -> None:
    """Open the links' ends, say so on stdout, and carry."""
    seed, master, *hosts = argv
    links = []
    for host in hosts:
        name, _, pid = host.partition("=")
        links.append(Link(name, (open_tun(int(master), f"w{name}"), open_tun(int(pid), "eth0"))))
    print("ready", flush=True)
    Wire(seed, links).run()


if __name__ == "__main__":
    main(sys.argv[1:])
