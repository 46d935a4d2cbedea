"""On a real terminal: colours, widths, progress, and that it is left as it was."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import environment
from fake_master import PASSED, RUNNING, FakeMaster
from test_cli_listings import EVIL, environment_json

from biruda.cli.screen import width

Bare = Callable[[bytes], list[str]]


def bare(output: bytes) -> list[str]:
    """The lines without what colours them."""
    return re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", output.decode()).replace("\r", "").splitlines()


class Terminal:
    """A command on a terminal of 80 by 24."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "biruda", *arguments],
            env=environment(home, **{"TERM": "xterm-256color", **env}),
            cwd=home.parent,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = b""

    def until(self, wanted: bytes) -> bytes:
        """All that was seen when that had been."""
        while wanted not in self.seen:
            piece = self._read()
            assert piece, f"ended after {self.seen!r}"
        return self.seen

    def rest(self) -> bytes:
        """All that was seen when the command had ended."""
        while self._read():
            pass
        self.process.wait(30)
        return self.seen

    def _read(self) -> bytes:
        try:
            piece = os.read(self._end, 65536)
        except OSError:  # how Linux says that nobody has the other end any more
            return b""
        self.seen += piece
        return piece

    def close(self) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        os.close(self._end)


@pytest.fixture
def terminal(home: Path) -> Iterator[Callable[..., Terminal]]:
    """Run commands on terminals."""
    terminals: list[Terminal] = []

    def make(*arguments: str, **env: str) -> Terminal:
        terminals.append(Terminal(home, *arguments, **env))
        return terminals[-1]

    yield make
    for each in terminals:
        each.close()


def crowd(master: FakeMaster) -> None:
    """A farm with names that do not fit."""
    long, wide = "environment-with-a-name-that-never-ends-" * 3, "ビルド環境" * 12
    system = {"arch": "amd64", "platform": "opensuse-leap15.6", "version": "0.1.0"}
    master.lists["coordinators"] = [
        {"host": name, "connected": False, "slots": 9999, "running": [1], **system} for name in (long, wide, EVIL * 20)
    ]
    master.lists["environments"] = [
        environment_json(name, host=long, usable=False, problem=f"no root in {name}, so {long} {wide} cannot be used")
        for name in (long, wide, EVIL * 20)
    ]
    worker = {"arch": "amd64", "platform": "debian12", "host": long, "environment": wide, "usable": True}
    master.lists["workers"] = [{"name": name, "running": [10**9] * 9, **worker} for name in (long, wide, EVIL)]
    master.set_job(999_999, requirements={"arch": long})
    for number, name in enumerate((long, wide, EVIL * 20), 10**6):
        master.set_job(number, **{**RUNNING, "name": name, "host": long, "platform": "opensuse-leap15.6"}, reason=long)


@pytest.mark.parametrize("arguments", [("farm",), ("jobs",), ("env", "list"), ("why", "999999")], ids=" ".join)
def test_tables_fit_into_80_columns(
    master: FakeMaster, terminal: Callable[..., Terminal], arguments: tuple[str, ...]
) -> None:
    crowd(master)
    lines = bare(terminal(*arguments).rest())
    rows = [line for line in lines if "  " in line.strip()]
    assert len(rows) >= 2
    assert [line for line in rows if width(line) > 80] == []


def test_states_have_their_colours(master: FakeMaster, terminal: Callable[..., Terminal]) -> None:
    master.set_job(1, **PASSED)
    assert b"\x1b[38;5;36m\xe2\x97\x8f passed" in terminal("jobs").rest()
    assert b"\x1b" not in terminal("jobs", NO_COLOR="1").rest()
    assert b"\x1b" not in terminal("jobs", TERM="dumb").rest()


def test_a_log_on_a_terminal_passes_as_it_is(master: FakeMaster, terminal: Callable[..., Terminal]) -> None:
    master.set_job(1, **PASSED)
    master.add_log(1, b"\x1b[31mred\x1b[0m\a", end=True)
    assert terminal("log", "1").rest() == b"\x1b[31mred\x1b[0m\a"


def test_what_is_said_has_a_line_of_its_own(master: FakeMaster, terminal: Callable[..., Terminal]) -> None:
    def on_submit(number: int) -> None:
        master.logs[number, 1] = b"no newline"
        master.ended.add((number, 1))
        master.jobs[number].update(PASSED)

    master.on_submit = on_submit
    lines = bare(terminal("run", "--no-source", "--", "x").rest())
    assert lines == ["biruda: job 1", "no newline", "● 1 passed on alder amd64 debian12 in 41.2s"]


def test_prefixes_are_coloured(master: FakeMaster, terminal: Callable[..., Terminal]) -> None:
    def on_submit(number: int) -> None:
        master.logs[number, 1] = b"line\n"
        master.ended.add((number, 1))
        master.jobs[number].update(PASSED)

    master.on_submit = on_submit
    seen = terminal("run", "--no-source", "--on", "env=a", "--on", "env=b", "--", "x").rest()
    assert b"\x1b[38;5;75m[a]\x1b[0m line\r\n" in seen
    assert b"\x1b[38;5;36m[b]\x1b[0m line\r\n" in seen


def test_watching_leaves_the_terminal_as_it_was(master: FakeMaster, terminal: Callable[..., Terminal]) -> None:
    crowd(master)
    watched = terminal("farm", "--watch")
    first = watched.until(b"\x1b[J")
    assert first.startswith(b"\x1b[?1049h\x1b[?25l\x1b[H")
    assert first.count(b"\r\n") < 24
    assert "and " in bare(first)[-1]
    assert "more lines" in bare(first)[-1]
    watched.seen = b""
    master.change(lambda: master.lists.update(coordinators=[]))
    watched.until(b"no coordinator has connected yet")
    watched.process.send_signal(signal.SIGINT)
    assert watched.rest().endswith(b"\x1b[?25h\x1b[?1049l")
    assert watched.process.returncode == 0


def test_watching_survives_the_master(master: FakeMaster, terminal: Callable[..., Terminal]) -> None:
    watched = terminal("farm", "--watch")
    watched.until(b"no coordinator")
    master.stop()
    watched.until(b"trying again")
    master.start()
    watched.seen = b""
    watched.until(b"no coordinator")
    watched.process.terminate()
    assert watched.rest().endswith(b"\x1b[?25h\x1b[?1049l")


def test_a_long_packing_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from biruda.cli import upload
    from biruda.cli.screen import Screen

    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as stream:
        progress = upload._Progress(Screen(stream))
        progress.packing(1, 10)  # at once: nothing is shown
        time.sleep(upload._SHOW_AFTER_S)
        progress.packing(2 << 20, 3 << 20)
        progress.done(["biruda: packed 3 files"])
        seen = b""
        while not seen.endswith(b"files\r\n"):
            seen += os.read(ours, 4096)
    os.close(ours)
    assert seen == b"\rpacking 2.0 MiB of 3.0 MiB\x1b[K\r\x1b[Kbiruda: packed 3 files\r\n"
