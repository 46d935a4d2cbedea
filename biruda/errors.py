"""The exception tree, split by who must act.

    BirudaError
    ├── UserError            the person at the command line or API: wrong name, wrong argument, refused
    │   ├── NotFound         nothing has that name or number
    │   ├── UsageError       the command itself is wrong (exit 2)
    │   └── NoMaster         no master answers where the command looked (exit 3)
    ├── ConfigError          the administrator: biruda.conf, a root tree, a directory
    ├── EnvironmentFault     the administrator: this host or environment cannot do what was asked
    │   └── Unreachable      what it depends on does not answer now: looked at again by itself
    └── PeerError            the other end of a link sent what the protocol forbids

Every error says what, where and, in `hint`, what to do. A build that fails is an Outcome and never an exception.
"""


class BirudaError(Exception):
    """Something a person can act on; printed without a traceback."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UserError(BirudaError):
    """The request cannot be carried out as it was asked."""


class NotFound(UserError):
    """What was named does not exist."""


class UsageError(UserError):
    """The command line is wrong."""

    exit_status = 2


class NoMaster(UserError):
    """No master answers at the address that the command uses."""

    exit_status = 3


class ConfigError(BirudaError):
    """A configuration file or a directory that an administrator owns is not as it must be."""


class EnvironmentFault(BirudaError):
    """An environment or this host cannot do what a job needs; the job's outcome is `environment`."""


class Unreachable(EnvironmentFault):
    """A service outside of biruda does not answer; when it does, the environment can be used again."""


class PeerError(BirudaError):
    """A peer broke the protocol; its connection is closed, and the next one carries on after the last good frame."""


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group of groups: what to tell where one sentence has to do."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
