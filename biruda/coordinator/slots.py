"""How many attempts run at once on this host, and those that wait for their turn."""

from collections import deque
from collections.abc import Callable

from biruda.coordinator.attempts import Attempt

Key = tuple[int, int]


class Slots:
    """Each attempt holds one from its start to its end. What waits is started in the order in which it came."""

    def __init__(self, count: int, start: Callable[[Attempt], None]) -> None:
        self._count = count
        self._start = start
        self._holding: set[Key] = set()
        self._waiting: deque[Attempt] = deque()
        self._starting = False

    def hold(self, key: Key) -> None:
        """An adopted attempt has a slot, were it even one too many."""
        self._holding.add(key)

    def ask(self, attempt: Attempt) -> None:
        """Start it now or when its turn has come."""
        self._waiting.append(attempt)
        self._start_next()

    def withdraw(self, attempt: Attempt) -> bool:
        """It need not be started any more; whether it still waited."""
        if attempt.key in self._holding or attempt not in self._waiting:
            return False
        self._waiting.remove(attempt)
        return True

    def free(self, key: Key) -> None:
        """An attempt has ended: its slot is the next one's."""
        self._holding.discard(key)
        self._start_next()

    def _start_next(self) -> None:
        if self._starting:  # what is started may end at once
            return
        self._starting = True
        try:
            while self._waiting and len(self._holding) < self._count:
                attempt = self._waiting.popleft()
                self._holding.add(attempt.key)
                self._start(attempt)
        finally:
            self._starting = False
