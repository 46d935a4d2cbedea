"""The whole of a static worker's command line. What needs the daemon's modules is refused in words."""

import gc
import sys

WORKER_COMMANDS = ("--guess-env", "--worker", "--init", "--version")

USAGE = """\
Usage: biruda --guess-env [--root DIR] [--json]
       biruda --version

  This is a static worker: it carries biruda into an environment. The commands
  of the farm are in the executable that brought it.
"""


def main() -> int:
    """Run the command that this process was given; the status to exit with."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first == "--version":
        import _biruda

        from biruda import VERSION

        sys.stdout.write(f"biruda {VERSION} (static worker, {_biruda.arch})\n")
        return 0
    if first in WORKER_COMMANDS:
        return run(first)
    if first in ("--help", "-h"):
        sys.stdout.write(USAGE)
        return 0
    said = f"{first!r} is no command of a static worker" if first else "a static worker needs a command"
    sys.stderr.write(f"biruda: {said}\nhint: biruda --help\n")
    return 2


def run(command: str) -> int:
    """What biruda's entry point does. Imports drop next to nothing, so nothing is collected meanwhile."""
    gc.disable()
    from biruda.__main__ import main as run_command

    if command == "--worker":
        import biruda.worker.entry  # noqa: F401 - now, and not when collecting is on again

        gc.freeze()
        gc.enable()
    elif command == "--init":
        gc.enable()
    return run_command()
