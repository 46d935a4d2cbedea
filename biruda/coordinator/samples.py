"""What this host does each second: CPU, memory, load, disk and network, from /proc."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable

from biruda.model import Sample

KEPT = 120
PERIOD_S = 1.0
SECTOR_BYTES = 512


class Sampler:
    """Takes a sample a second into a ring; hands each on while somebody wants them."""

    def __init__(self, running: Callable[[], int]) -> None:
        self.ring: deque[Sample] = deque(maxlen=KEPT)
        self.listener: Callable[[Sample], None] | None = None
        self._running = running
        self._busy = self._all = 0

    async def run(self) -> None:
        """For ever."""
        _cpu_times()
        while True:
            await asyncio.sleep(PERIOD_S)
            sample = self.take()
            self.ring.append(sample)
            if self.listener is not None:
                self.listener(sample)

    def take(self) -> Sample:
        """One sample; cpu is the part of all CPUs that was busy since the last one."""
        busy, total = _cpu_times()
        part = (busy - self._busy) / (total - self._all) if total > self._all else 0.0
        self._busy, self._all = busy, total
        memory_total, memory_available = _memory_bytes()
        disk_read, disk_written = _disk_bytes()
        received, sent = _net_bytes()
        return Sample(
            at_s=time.time(),
            cpu=max(0.0, min(1.0, part)),
            memory_bytes=memory_total - memory_available,
            memory_total_bytes=memory_total,
            load1=os.getloadavg()[0],
            disk_read_bytes=disk_read,
            disk_written_bytes=disk_written,
            net_received_bytes=received,
            net_sent_bytes=sent,
            running=self._running(),
        )


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def _cpu_times() -> tuple[int, int]:
    """(busy, all) jiffies since boot; proc_stat(5)."""
    fields = [int(field) for field in _read("/proc/stat").split(b"\n", 1)[0].split()[1:9]]
    idle = sum(fields[3:5])
    return sum(fields) - idle, sum(fields)


def _memory_bytes() -> tuple[int, int]:
    """(total, available); proc_meminfo(5)."""
    values = dict(line.split(b":", 1) for line in _read("/proc/meminfo").splitlines()[:5] if b":" in line)
    total, available = (int(values.get(key, b"0").split()[0]) * 1024 for key in (b"MemTotal", b"MemAvailable"))
    return total, available


def _disk_bytes() -> tuple[int, int]:
    """(read, written) since boot by whole disks; proc_diskstats(5)."""
    read = written = 0
    for line in _read("/proc/diskstats").splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[1] == b"0" and not fields[2].startswith((b"loop", b"ram", b"dm-")):
            read += int(fields[5]) * SECTOR_BYTES
            written += int(fields[9]) * SECTOR_BYTES
    return read, written


def _net_bytes() -> tuple[int, int]:
    """(received, sent) since boot by all interfaces but lo; proc_net(5)."""
    received = sent = 0
    for line in _read("/proc/net/dev").splitlines()[2:]:
        name, _, counters = line.partition(b":")
        fields = counters.split()
        if name.strip() != b"lo" and len(fields) > 8:
            received += int(fields[0])
            sent += int(fields[8])
    return received, sent
