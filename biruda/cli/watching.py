"""`biruda farm --watch`: a page that is drawn anew, and a terminal that is as it was afterwards."""

import io
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from biruda.cli.client import Client
from biruda.cli.farm import show_farm
from biruda.cli.screen import Screen, out
from biruda.cli.text import escape
from biruda.errors import NoMaster

_EVERY_S = 1.0
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def watch_farm(client: Client) -> int:
    """Draw until Ctrl-C, which is how one leaves and no failure. Without a terminal, print it whenever it changes."""
    screen = out()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not screen.tty:
            _print_changes(screen, client)
        with _whole_terminal(screen):
            _draw_for_ever(screen, client)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_changes(screen: Screen, client: Client) -> NoReturn:
    last: list[str] = []
    while True:
        page = _page(screen, client)
        if page != last:
            screen.line("\n".join(page))
            last = page
        threading.Event().wait(_EVERY_S)


def _draw_for_ever(screen: Screen, client: Client) -> NoReturn:
    while True:
        page = [*_page(screen, client), "", time.strftime("%H:%M:%S  every second; Ctrl-C ends it")]
        rows = screen.rows
        if len(page) > rows:
            page = [*page[: rows - 1], f"… and {len(page) - rows + 1} more lines"]
        sys.stdout.write("\x1b[H" + "".join(f"{screen.plain(line)}\x1b[K\r\n" for line in page[:-1]))
        sys.stdout.write(f"{screen.plain(page[-1])}\x1b[K\x1b[J")
        sys.stdout.flush()
        threading.Event().wait(_EVERY_S)


def _page(screen: Screen, client: Client) -> list[str]:
    lines = io.StringIO()
    try:
        show_farm(screen.into(lines), client, time.time())
    except NoMaster as error:  # it may come back
        return [f"{screen.sign('infra')} {escape(str(error))}; trying again"]
    return lines.getvalue().splitlines()


@contextmanager
def _whole_terminal(screen: Screen) -> Iterator[None]:
    screen.stream.write(_ENTER)
    screen.stream.flush()
    try:
        yield
    finally:
        screen.stream.write(_LEAVE)
        screen.stream.flush()
