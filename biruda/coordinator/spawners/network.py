"""The bridge that environments with `network = "bridge"` share, and the pair of interfaces of each worker there.

All state is in the kernel: a worker's address is written on the host's end of its pair, so that whoever comes later
knows what is taken. pyroute2 is loaded when the first worker needs it.
"""

import asyncio
import errno
import threading
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from hashlib import blake2s
from ipaddress import IPv4Interface, IPv4Network
from typing import Any, Final, TypeVar

from biruda.coordinator.spawners.requests import Address
from biruda.coordinator.spawners.roots import INTERFACE
from biruda.errors import EnvironmentFault

T = TypeVar("T")

_ALREADY_GONE: Final = (errno.ENODEV, errno.ENOENT)


class Bridge:
    """The bridge of one instance. Its methods may be called at once; one at a time talks to the kernel."""

    def __init__(self, instance: str, subnet: str) -> None:
        self._mark = blake2s(instance.encode(), digest_size=2).hexdigest()
        self._subnet = IPv4Network(subnet)
        self._turn = asyncio.Lock()  # so that who waits for its turn needs no thread to wait in
        self._lock = threading.Lock()  # a thread goes on after its task was cancelled
        self.name = f"biruda{self._mark}"

    @property
    def gateway(self) -> str:
        """The host's own address on the bridge."""
        return str(next(self._subnet.hosts()))

    def veth(self, worker: str) -> str:
        """The name of the host's end for a worker: at most 15 bytes, and marked with the instance."""
        return f"br{self._mark}{blake2s(worker.encode(), digest_size=4).hexdigest()}"

    async def attach(self, veth: str, pid: int) -> Address:
        """A pair of interfaces between the bridge and the network of a process, and the address it is to take."""
        return await self._in_turn(lambda ip: self._attach(ip, veth, pid))

    async def attach_tap(self, name: str) -> Address:
        """An interface on the bridge that a virtual machine's card is plugged into, and the address the card takes."""
        return await self._in_turn(lambda ip: self._attach_tap(ip, name))

    async def detach(self, veth: str) -> None:
        """The pair is gone on return, if there was one."""
        await self._in_turn(lambda ip: _delete(ip, veth))

    async def reap(self, owned: Collection[str]) -> list[str]:
        """Remove the pairs of workers that are not owned, and the bridge when none is left; the names removed."""
        kept = {self.veth(worker) for worker in owned}
        return await self._in_turn(lambda ip: self._reap(ip, kept))

    async def _in_turn(self, work: Callable[[Any], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(self._with_kernel, work)

    def _with_kernel(self, work: Callable[[Any], T]) -> T:
        from pyroute2 import NetlinkError  # 30 ms and 10 MB that other networks need not pay

        try:
            with self._lock, _open_kernel() as ip:
                return work(ip)
        except NetlinkError as error:
            raise EnvironmentFault(f"the network on {self.name} cannot be set up: {error}", hint=_hint(error)) from None

    def _attach(self, ip: Any, veth: str, pid: int) -> Address:
        bridge = self._bridge(ip)
        address = self._free_address(ip)
        peer = {"ifname": INTERFACE, "net_ns_pid": pid}
        ip.link("add", ifname=veth, kind="veth", peer=peer)
        (index,) = ip.link_lookup(ifname=veth)
        ip.link("set", index=index, master=bridge, ifalias=address, state="up")
        return Address(address=address, prefix=self._subnet.prefixlen, gateway=self.gateway)

    def _attach_tap(self, ip: Any, name: str) -> Address:
        bridge = self._bridge(ip)
        address = self._free_address(ip)
        ip.link("add", ifname=name, kind="tuntap", mode="tap")
        (index,) = ip.link_lookup(ifname=name)
        ip.link("set", index=index, master=bridge, ifalias=address, state="up")
        return Address(address=address, prefix=self._subnet.prefixlen, gateway=self.gateway)

    def _bridge(self, ip: Any) -> int:
        found = ip.link_lookup(ifname=self.name)
        if found:
            return int(found[0])
        for message in ip.get_addr(family=2):
            taken = IPv4Interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
            if taken.network.overlaps(self._subnet):
                label = message.get_attr("IFA_LABEL")
                raise EnvironmentFault(
                    f"bridge_subnet {self._subnet}: {label} has {taken} already",
                    hint="choose another bridge_subnet in [coordinator]",
                )
        ip.link("add", ifname=self.name, kind="bridge")
        (index,) = ip.link_lookup(ifname=self.name)
        ip.addr("add", index=index, address=self.gateway, prefixlen=self._subnet.prefixlen)
        ip.link("set", index=index, state="up")
        return int(index)

    def _free_address(self, ip: Any) -> str:
        taken = {message.get_attr("IFLA_IFALIAS") for message in self._pairs(ip)}
        hosts = self._subnet.hosts()
        next(hosts)
        for host in hosts:
            if str(host) not in taken:
                return str(host)
        raise EnvironmentFault(f"bridge_subnet {self._subnet}: all addresses are in use", hint="choose a larger one")

    def _pairs(self, ip: Any) -> list[Any]:
        return [link for link in ip.get_links() if str(link.get_attr("IFLA_IFNAME")).startswith(f"br{self._mark}")]

    def _reap(self, ip: Any, kept: Collection[str]) -> list[str]:
        names = [str(link.get_attr("IFLA_IFNAME")) for link in self._pairs(ip)]
        gone = [name for name in names if name not in kept]
        for name in gone:
            _delete(ip, name)
        if len(gone) == len(names):
            _delete(ip, self.name)
        return gone


def _open_kernel() -> AbstractContextManager[Any]:
    from pyroute2 import IPRoute

    kernel: AbstractContextManager[Any] = IPRoute()
    return kernel


def _delete(ip: Any, name: str) -> None:
    from pyroute2 import NetlinkError

    for index in ip.link_lookup(ifname=name):
        try:
            ip.link("del", index=index)
        except NetlinkError as error:
            if error.code not in _ALREADY_GONE:
                raise


def _hint(error: Any) -> str:
    if error.code == errno.EOPNOTSUPP:
        return "the kernel lacks bridge or veth: modprobe bridge veth"
    return "bridges need root" if error.code == errno.EPERM else ""
