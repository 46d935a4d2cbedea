"""Signals of a worker that has a process of its own. A worker that is a thread changes none."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_UNHEEDED = ("SIGINT", "SIGHUP")  # of the terminal that the coordinator was started from


@contextmanager
def own_signals() -> Iterator[int]:
    """A descriptor that becomes readable when a child has ended; -1 where handlers are not ours to set.

    Every handler is a function: what is ignored would stay ignored in the steps.
    """
    try:
        descriptor = signal.set_wakeup_fd(-1)
    except ValueError:  # not the main thread
        yield -1
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    numbers = [getattr(signal, name) for name in ("SIGCHLD", *_UNHEEDED) if hasattr(signal, name)]
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    handlers = {number: signal.signal(number, _wake) for number in numbers}
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(reader)
        os.close(writer)


def _wake(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor says it all."""
