"""`biruda --guess-env`: imported before the command line is, so that it starts like the plain interpreter."""

import sys

from biruda.guessenv import guess, guess_here, report

USAGE = """\
Usage: biruda --guess-env [--root DIR] [--json]

  Say which architecture and platform this is, and by which evidence. With
  --root, of the root tree in DIR instead: it is read, nothing of it is run.

Examples:
  biruda --guess-env
  biruda --guess-env --root /srv/chroot/centos6
  biruda --guess-env --json
"""


def guess_env(arguments: list[str]) -> int:
    """Print the guess; the status to exit with."""
    root, as_json = None, False
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument == "--json":
            as_json = True
        elif argument in ("--help", "-h"):
            sys.stdout.write(USAGE)
            return 0
        elif name == "--root":
            root = value if equals else next(rest, None)
            if not root:
                return _refuse("--guess-env: --root needs a directory")
        else:
            return _refuse(f"--guess-env: no such option or argument: {argument!r}")
    try:
        found = guess_here() if root is None else guess(root)
    except OSError as error:
        text = f"{root}: {error.strerror.lower()}" if error.strerror else str(error)
        sys.stderr.write(f"biruda: --guess-env: {text}\n")
        return 1
    try:
        sys.stdout.write(report(found, as_json) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return 0


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"biruda: {sentence}\nhint: biruda --guess-env --help\n")
    return 2
