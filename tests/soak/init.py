"""Process 1 of the soak's own PID namespace: starts the command, buries what nobody else does, ends with its status."""

import os
import signal
import sys


def main(argv: list[str]) -> int:
    pid = os.posix_spawn(argv[0], argv, os.environ)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
