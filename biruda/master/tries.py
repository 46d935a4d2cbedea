"""Wrong secrets, counted: who gives too many must wait."""

import time
from collections import deque
from typing import Final

from biruda.errors import UserError

WINDOW_S: Final = 60.0
MOST: Final = 10
"""So many wrong ones from one address, and ten times as many from all, are looked at within the window."""


class TooManyTries(UserError):
    """So many wrong ones came that no more are looked at for now (HTTP 429)."""


class WrongTries:
    """The wrong tries of the last minute."""

    def __init__(self) -> None:
        self._wrong: deque[tuple[float, str]] = deque(maxlen=10 * MOST)

    def refuse_the_persistent(self, address: str, what: str) -> None:
        """Raise TooManyTries for who has tried too often. what: "tokens"."""
        now_s = time.monotonic()
        while self._wrong and now_s - self._wrong[0][0] > WINDOW_S:
            self._wrong.popleft()
        mine = sum(1 for _, whose in self._wrong if whose == address)
        if mine >= MOST or len(self._wrong) >= 10 * MOST:
            raise TooManyTries(f"too many wrong {what} came", hint=f"try again in {WINDOW_S:g} s")

    def add(self, address: str) -> None:
        """A wrong one came from there."""
        self._wrong.append((time.monotonic(), address))
