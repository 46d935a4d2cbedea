"""What goes wrong in a build, in a sentence, and how commands are run so that it can be said."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAST_LINES = 25


class BuildProblem(Exception):
    """The build cannot go on: what is wrong, where, and in `hint` what to do."""

    def __init__(self, sentence: str, *, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


def run(argv: Sequence[str | Path], *, cwd: Path, log: Path, env: Mapping[str, str]) -> None:
    """Run a command, its output appended to a log. Raises BuildProblem with the log's last lines when it fails."""
    words = [str(word) for word in argv]
    with log.open("ab") as output:
        output.write(f"\n$ cd {cwd} && {' '.join(words)}\n".encode())
        output.flush()
        try:
            done = subprocess.run(words, cwd=cwd, stdout=output, stderr=output, env=dict(env), check=False)
        except OSError as error:
            raise BuildProblem(f"{words[0]}: cannot be started: {error.strerror}") from None
    if done.returncode != 0:
        tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:])
        raise BuildProblem(f"{Path(words[0]).name} ended with {done.returncode}, see {log}:\n{tail}")


def clean_environment(**more: str) -> dict[str, str]:
    """What a build sees: nothing of this shell that could end up in what is built."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    pip = {
        name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    return {"LANG": "C.UTF-8", "TZ": "UTC", **pip, **kept, **more}
