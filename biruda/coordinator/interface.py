"""Sockets that listen on one network interface and on no other.

An address alone does not do that: the kernel takes a packet for any of its addresses from every interface. So each
socket is bound to the device as well. What this host says to itself comes in over lo, whatever the address: for that
there is a second socket, by which no other host can come in.
"""

import array
import errno
import fcntl
import socket
import struct
from pathlib import Path
from typing import Final

from biruda.errors import ConfigError

BACKLOG: Final = 16
_SIOCGIFCONF: Final = 0x8912
_MOST_ADDRESSES: Final = 1024
_IFREQ: Final = struct.calcsize("16s24x")
_LOOPBACK: Final = "lo"
_NOT_USABLE: Final = 0x08 | 0x40  # IFA_F_DADFAILED, IFA_F_TENTATIVE


def listen(interface: str, port: int) -> list[socket.socket]:
    """Sockets on each address of the interface; port 0: any, the same for all. Raises ConfigError."""
    known = [name for _, name in socket.if_nameindex()]
    where = f"[coordinator] listen: {interface}:{port}"
    if interface not in known:
        raise ConfigError(f"{where}: this host has no interface {interface!r}", hint=f"there are {', '.join(known)}")
    addresses = [*_ipv4(interface), *_ipv6(interface)]
    if not addresses:
        raise ConfigError(f"{where}: the interface has no address", hint=f"ip addr add ADDRESS dev {interface}")
    listeners: list[socket.socket] = []
    try:
        for family, address in addresses:
            # an address of the link is one of its interface only, and lo has no part in it
            scope = socket.if_nametoindex(interface) if address.startswith("fe80:") else 0
            for device in dict.fromkeys((interface,) if scope else (interface, _LOOPBACK)):
                listener = socket.socket(family, socket.SOCK_STREAM)
                listeners.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port, 0, scope) if family == socket.AF_INET6 else (address, port))
                listener.listen(BACKLOG)
                port = port or listener.getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        may_not = error.errno == errno.EPERM
        hint = "start it as root: before Linux 5.7 only root may do that" if may_not else "name another port"
        raise ConfigError(f"{where}: cannot be used: {(error.strerror or str(error)).lower()}", hint=hint) from None
    return listeners


def _ipv4(interface: str) -> list[tuple[int, str]]:
    room = array.array("B", bytes(_IFREQ * _MOST_ADDRESSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFCONF, struct.pack("iP", len(room), room.buffer_info()[0]))
    filled = struct.unpack("iP", answer)[0]
    data, found = room.tobytes()[:filled], []
    for start in range(0, filled, _IFREQ):
        name = data[start : start + 16].partition(b"\0")[0].decode("ascii", "replace")
        if name.partition(":")[0] == interface:  # a label such as eth0:1 is the same interface
            found.append((int(socket.AF_INET), socket.inet_ntoa(data[start + 20 : start + 24])))
    return found


def _ipv6(interface: str) -> list[tuple[int, str]]:
    try:
        lines = Path("/proc/net/if_inet6").read_text("ascii").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [
        (int(socket.AF_INET6), socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0])))
        for words in fields
        if words[5] == interface and not int(words[4], 16) & _NOT_USABLE
    ]
