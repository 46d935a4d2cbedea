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

    def ask_again(self, attempt: Attempt) -> None:
        """It was about to be run, and was not: it is the next one to start."""
        self._waiting.appendleft(attempt)
        self._start_next()

    @property
    def has_free(self) -> bool:
        """Whether a slot is free, and nothing waits for it."""
        return not self._waiting and len(self._holding) < self._count

    def next_if(self, fits: Callable[[Attempt], bool]) -> Attempt | None:
        """Take the one whose turn is next out of those that wait, if it fits and no slot is free for it.

        It gets a slot by hand_over().
        """
        if self._waiting and len(self._holding) >= self._count and fits(self._waiting[0]):
            return self._waiting.popleft()
        return None

    def hand_over(self, key: Key, next_key: Key) -> None:
        """An attempt has ended, and its slot is that of another one, which runs already."""
        self._holding.discard(key)
        self._holding.add(next_key)

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
