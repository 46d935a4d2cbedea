"""Where each key of a TOML text stands: tomllib says what a file holds, but not on which line."""

import re
from bisect import bisect_right

KeyPath = tuple[str | int, ...]
"""Keys and list indexes from the top of the document: ("environment", 0, "grace_s")."""

_DEEPEST = 6  # paths longer than this are not asked for

# no possessive quantifiers: Python 3.11.2, which Debian 12 has, gets those around alternatives wrong
_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BASIC = re.compile(r'"[^"\\\n]*(?:\\.[^"\\\n]*)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_ENDS = {'"""': re.compile(r'\\.|"{3,5}', re.DOTALL), "'''": re.compile(r"'{3,5}")}  # an escape is no end
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OTHER_VALUE = re.compile(r"[^,\]}#\n]+")


class _Lost(Exception):
    """The text is not what this scanner expects; what was found so far still holds."""


def line_numbers(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every key, table and list item of a valid TOML text; as far as it got of an invalid one."""
    scanner = _Scanner(text)
    try:
        scanner.document()
    except (_Lost, RecursionError):
        pass
    newlines = [match.start() for match in re.finditer("\n", text)]
    return {path: bisect_right(newlines, offset - 1) + 1 for path, offset in scanner.offsets.items()}


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.offsets: dict[KeyPath, int] = {}
        self._last_index: dict[KeyPath, int] = {}  # of every [[list of tables]] so far

    def document(self) -> None:
        table: KeyPath = ()
        while self._next_is_something():
            start = self.position
            if self._take("[["):
                table = self._open_item(self._keys())
                self._expect("]]")
                self._note(table[:-1], start)
            elif self._take("["):
                table = self._resolve(self._keys())
                self._expect("]")
            else:
                self._pair(table)
                continue
            self._note(table, start)

    def _open_item(self, keys: KeyPath) -> KeyPath:
        path = (*self._resolve(keys[:-1]), keys[-1])
        self._last_index[path] = self._last_index.get(path, -1) + 1
        return (*path, self._last_index[path])

    def _resolve(self, keys: KeyPath) -> KeyPath:
        """The path of a header: a name that is a list of tables means its last item."""
        path: KeyPath = ()
        for key in keys[:_DEEPEST]:
            path = (*path, key)
            if path in self._last_index:
                path = (*path, self._last_index[path])
        return path

    def _pair(self, table: KeyPath) -> None:
        start = self.position
        keys = self._keys()
        self._expect("=")
        for length in range(1, min(len(keys), _DEEPEST) + 1):
            self._note(table + keys[:length], start)
        self._value((table + keys)[:_DEEPEST])

    def _note(self, path: KeyPath, offset: int) -> None:
        if len(path) <= _DEEPEST:
            self.offsets.setdefault(path, offset)

    def _keys(self) -> KeyPath:
        keys = [self._key()]
        while self._next_is_something() and self._take("."):
            self._next_is_something()
            keys.append(self._key())
        return tuple(keys)

    def _key(self) -> str:
        self._next_is_something()
        for pattern, quotes in ((_BARE_KEY, 0), (_BASIC, 1), (_LITERAL, 1)):
            if match := pattern.match(self.text, self.position):
                self.position = match.end()
                return match[0][quotes : len(match[0]) - quotes]
        raise _Lost

    def _value(self, path: KeyPath) -> None:
        self._next_is_something()
        if self._take("["):
            self._items(path)
        elif self._take("{"):
            while not self._take_next("}"):
                self._pair(path)
                self._take_next(",")
        else:
            self._scalar()

    def _items(self, path: KeyPath) -> None:
        index = 0
        while not self._take_next("]"):
            item = (*path, index)
            self._note(item, self.position)
            self._value(item[:_DEEPEST])
            self._take_next(",")
            index += 1

    def _scalar(self) -> None:
        quotes = self.text[self.position : self.position + 3]
        if quotes in _ENDS:
            found = _ENDS[quotes].finditer(self.text, self.position + 3)
            match = next((each for each in found if each[0].startswith(quotes)), None)
        else:
            matches = (pattern.match(self.text, self.position) for pattern in (_BASIC, _LITERAL, _OTHER_VALUE))
            match = next((each for each in matches if each), None)
        if match is None:
            raise _Lost
        self.position = match.end()

    def _next_is_something(self) -> bool:
        blank = _BLANK.match(self.text, self.position)
        self.position = blank.end() if blank else self.position
        return self.position < len(self.text)

    def _take(self, token: str) -> bool:
        found = self.text.startswith(token, self.position)
        self.position += len(token) if found else 0
        return found

    def _take_next(self, token: str) -> bool:
        if not self._next_is_something():
            raise _Lost
        return self._take(token)

    def _expect(self, token: str) -> None:
        if not self._take_next(token):
            raise _Lost
