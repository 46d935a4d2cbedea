"""What goes to a terminal: states with their shape and colour, tables that fit, plain text where there is none."""

import os
import re
import sys
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, TextIO

from biruda.cli.text import escape


class Sign(NamedTuple):
    """How a state looks; its word is always beside it."""

    shape: str
    ascii: str
    colour: int  # of the 256


SIGNS = {
    "passed": Sign("●", "*", 36),
    "failed": Sign("✖", "x", 166),
    "infra": Sign("▲", "!", 214),
    "environment": Sign("◆", "#", 175),
    "timeout": Sign("◷", "t", 214),
    "cancelled": Sign("⊘", "-", 245),
    "preempted": Sign("⇄", "=", 185),
    "running": Sign("◌", "~", 75),
    "waiting": Sign("○", "o", 250),
}
LABEL_COLOURS = (75, 36, 175, 214, 185, 110, 150, 180)
_ASCII = str.maketrans({"·": "-", "…": "~", **{sign.shape: sign.ascii for sign in SIGNS.values()}})
_SAMPLE = "●✖▲◆◷⊘⇄◌○·…"


class Cell(NamedTuple):
    """Text in a table with a colour, None for none."""

    text: str
    colour: int | None = None


class Screen:
    """One of the standard streams: what it can show, and how wide it is."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._target = stream
        self.tty = stream.isatty()
        self.colour = self.tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.unicode = _can_show(stream, _SAMPLE)

    @property
    def columns(self) -> int:
        """The width to fit into; 0 where lines may be of any length."""
        if not self.tty:
            return 0
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except OSError:
            return 80

    @property
    def rows(self) -> int:
        """The height of the terminal."""
        try:
            return os.get_terminal_size(self.stream.fileno()).lines or 24
        except OSError:
            return 24

    def into(self, target: TextIO) -> "Screen":
        """A screen that shows the same as this one and writes into the target."""
        other = copy(self)
        other._target = target
        return other

    def line(self, text: str = "") -> None:
        """Print one line of ours; names in it were escaped by who put them there."""
        print(self.plain(text), file=self._target, flush=True)

    def wrapped(self, head: str, text: str) -> None:
        """Print text behind a head, on as many lines as the terminal needs, broken at spaces."""
        if not self.columns:
            self.line(head + text)
            return
        columns = self.columns
        line, indent = head, 4
        room = columns - width(_bare(head))
        for word in text.split(" "):
            wide = width(_bare(word))
            if wide > room and line.strip() and line != head:
                self.line(line.rstrip())
                line, room = " " * indent, columns - indent
            line += word + " "
            room -= wide + 1
        self.line(line.rstrip())

    def plain(self, text: str) -> str:
        """The text in the signs that the stream can show."""
        return text if self.unicode else text.translate(_ASCII)

    def paint(self, text: str, colour: int | None) -> str:
        """The text in a colour, where the stream shows any."""
        return f"\x1b[38;5;{colour}m{text}\x1b[0m" if self.colour and colour is not None and text else text

    def sign(self, state: str) -> str:
        """The shape of a state in its colour."""
        sign = SIGNS.get(state)
        return self.paint(sign.shape, sign.colour) if sign else "?"

    def table(
        self, heads: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, flexible: Sequence[int] = ()
    ) -> None:
        """Print columns as wide as they must be; on a terminal the flexible ones give way, the widest first."""
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        cells = [[Cell(escape(cell.text), cell.colour) for cell in row] for row in cells]
        widths = [max([width(head), *(width(row[index].text) for row in cells)]) for index, head in enumerate(heads)]
        self._narrow(widths, [width(head) for head in heads], flexible)
        self.line(self.paint(_joined([fit(head, wide) for head, wide in zip(heads, widths, strict=True)]), 245))
        for row in cells:
            self.line(
                _joined([self.paint(fit(cell.text, wide), cell.colour) for cell, wide in zip(row, widths, strict=True)])
            )

    def _narrow(self, widths: list[int], least: Sequence[int], flexible: Sequence[int]) -> None:
        excess = sum(widths) + 2 * (len(widths) - 1) - self.columns if self.columns else 0
        everywhere = range(len(widths))
        for columns, floors in (
            (flexible, [max(head, 8) for head in least]),
            (everywhere, [max(head, 6) for head in least]),
            (everywhere, [3] * len(widths)),
        ):
            while excess > 0:
                widest = max(columns, key=lambda index: widths[index] - floors[index], default=0)
                if widths[widest] <= floors[widest]:
                    break
                widths[widest] -= 1
                excess -= 1


def width(text: str) -> int:
    """Columns that the text takes on a terminal."""
    if text.translate(_ASCII).isascii():
        return len(text)
    import unicodedata  # 2 ms, for names that need it

    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def fit(text: str, columns: int) -> str:
    """The text in exactly that many columns: padded, or cut with a … at its end."""
    wide = width(text)
    if wide <= columns:
        return text + " " * (columns - wide)
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…" + " " * (columns - 1 - width(text))


def _bare(text: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", text)


def _joined(cells: Sequence[str]) -> str:
    return "  ".join(cells).rstrip()


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


def out() -> Screen:
    """Standard output."""
    return Screen(sys.stdout)


def err() -> Screen:
    """Standard error."""
    return Screen(sys.stderr)


def tell(error: str, hint: str = "") -> None:
    """Say to standard error what a person must know: one sentence, and what to do on a second line."""
    screen = err()
    for head, text in (("biruda", error), ("hint", hint)):
        for line in text.splitlines():  # an administrator's errors may be several: one a line
            screen.wrapped(f"{head}: ", escape(line))
