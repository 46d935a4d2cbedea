"""Samples of a host as they are sent to those who watch: small numbers, and rates in place of counters."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from biruda.model import Sample

MOST_SAMPLED: Final = 12
"""Of so many hosts at once: each second of each goes to each who watches."""

KEPT: Final = 120

Row = tuple[int, ...]
"""(second, cpu in thousandths, memory and all memory in MiB, load in hundredths, four rates in KiB/s, jobs that run)"""


class Sampled:
    """The last two minutes of one host."""

    def __init__(self) -> None:
        self.rows: deque[Row] = deque(maxlen=KEPT)
        self._last: Sample | None = None

    def add(self, samples: Iterable[Sample]) -> list[Row]:
        """The rows of those that are newer than the last one."""
        new = []
        for sample in samples:
            last = self._last
            if last is not None and sample.at_s <= last.at_s:
                continue
            if last is not None:
                new.append(_row(last, sample))
            self._last = sample
        self.rows.extend(new)
        return new


def _row(last: Sample, sample: Sample) -> Row:
    passed_s = max(0.5, sample.at_s - last.at_s)

    def rate(before: int, now: int) -> int:
        return max(0, round((now - before) / passed_s / 1024))

    return (
        round(sample.at_s),
        round(sample.cpu * 1000),
        sample.memory_bytes >> 20,
        sample.memory_total_bytes >> 20,
        round(sample.load1 * 100),
        rate(last.disk_read_bytes, sample.disk_read_bytes),
        rate(last.disk_written_bytes, sample.disk_written_bytes),
        rate(last.net_received_bytes, sample.net_received_bytes),
        rate(last.net_sent_bytes, sample.net_sent_bytes),
        sample.running,
    )
