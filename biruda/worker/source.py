"""The source pack of an attempt, unpacked as it arrives."""

from contextlib import suppress

from biruda.errors import BirudaError, EnvironmentFault, PeerError
from biruda.model import Outcome


class PackRefused(Exception):
    """The pack is hostile or broken, or this place has no room for it; outcome says whose matter that is."""

    def __init__(self, outcome: Outcome, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome


class SourceIntake:
    """Takes a pack's bytes in order. On a new connection they may come again from the start."""

    def __init__(self, directory: str) -> None:
        from pathlib import Path

        from biruda.sourcepack.unpack import Unpacker  # here: a worker says hello before it needs it

        self.complete = False
        self._unpacker = Unpacker(Path(directory))
        self._taken_bytes = 0

    def take(self, offset: int, payload: memoryview) -> None:
        """The bytes at offset; none are the end mark. Raises PeerError for a gap, PackRefused for what they hold."""
        if offset > self._taken_bytes:
            raise PeerError(f"the source pack goes on at byte {offset}, but {self._taken_bytes} have come")
        fresh = payload[self._taken_bytes - offset :]
        is_end_mark = not payload and offset == self._taken_bytes
        if self.complete or not (fresh or is_end_mark):
            return
        try:
            if fresh:
                self._unpacker.feed(fresh)
            else:
                self._unpacker.close()
        except EnvironmentFault as error:
            raise PackRefused(Outcome.ENVIRONMENT, str(error)) from error
        except PeerError as error:
            raise PackRefused(Outcome.INFRA, str(error)) from error
        self._taken_bytes += len(fresh)
        self.complete = is_end_mark

    def close(self) -> None:
        """Give back what is open of a pack that has not come as a whole."""
        with suppress(BirudaError):
            self._unpacker.close()
