"""The network of a virtual machine, by the requests that need nothing but a socket."""

import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from biruda.errors import EnvironmentFault

_SIOCADDRT: Final = 0x890B
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
_IFF_UP: Final = 1
_RTF_UP_GATEWAY: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the machine's card is to be."""

    address: str
    netmask: str
    gateway: str = ""
    nameserver: str = ""


def join(network: Network) -> None:
    """Give the machine's card its address. Raises EnvironmentFault, OSError."""
    card = next((name for _, name in socket.if_nameindex() if name != "lo"), "")
    if not card:
        raise EnvironmentFault("the machine has no network card")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, address in ((_SIOCSIFADDR, network.address), (_SIOCSIFNETMASK, network.netmask)):
            fcntl.ioctl(control, request, struct.pack("16s16s8x", card.encode(), _socket_address(address)))
        up(card)
        if network.gateway:
            fcntl.ioctl(control, _SIOCADDRT, _default_route(network.gateway))
    if network.nameserver:
        with suppress(OSError):
            os.unlink("/etc/resolv.conf")
        with suppress(OSError), open("/etc/resolv.conf", "w", encoding="ascii") as file:
            file.write(f"nameserver {network.nameserver}\n")


def up(card: str) -> None:
    """Switch an interface on, where it is there."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", card.encode(), 0))
        (flags,) = struct.unpack_from("H", answer, 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", card.encode(), flags | _IFF_UP))


def _socket_address(address: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def _default_route(gateway: str) -> bytes:
    """A struct rtentry."""
    anywhere = _socket_address("0.0.0.0")
    return struct.pack(
        "L16s16s16sHhLPhPLLH6x",
        *(0, anywhere, _socket_address(gateway), anywhere),
        *(_RTF_UP_GATEWAY, 0, 0, 0, 0, 0, 0, 0, 0),
    )
