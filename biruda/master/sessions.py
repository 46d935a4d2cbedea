"""Tokens with a name and a role, and the browsers that have logged in with one. Of secrets only digests are kept.

Both tables are small, and are asked with every request: they stand in memory too, and memory follows the disk.
"""

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import Final

from biruda.errors import NotFound, UserError
from biruda.master.access import Caller, Role
from biruda.master.store import Connection, Store, Unwritable

SELECT_TOKENS = "SELECT hash, name, role, made_by, made_s, expires_s FROM access_tokens ORDER BY name"
INSERT_TOKEN = "INSERT INTO access_tokens (hash, name, role, made_by, made_s, expires_s) VALUES (?, ?, ?, ?, ?, ?)"
DELETE_TOKEN = "DELETE FROM access_tokens WHERE hash = ?"
SELECT_SESSIONS = "SELECT hash, token, expires_s FROM sessions ORDER BY made_s"
INSERT_SESSION = "INSERT INTO sessions (hash, token, made_s, expires_s) VALUES (?, ?, ?, ?)"
DELETE_SESSION = "DELETE FROM sessions WHERE hash = ?"

SESSION_S: Final = 30 * 86400.0
MOST_SESSIONS: Final = 10_000
MOST_TOKENS: Final = 1000
LONGEST_S: Final = 10 * 366 * 86400.0
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,62}")
ADMINISTRATOR: Final = "token"
"""Who shows the token of the home is called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What is known of a token without its secret. expires_s None: it does not."""

    digest: bytes
    name: str
    role: Role
    made_by: str
    made_s: float
    expires_s: float | None

    def is_good(self, now_s: float) -> bool:
        return self.expires_s is None or now_s < self.expires_s


@dataclass(frozen=True, slots=True)
class _Session:
    token: bytes  # its digest
    expires_s: float


class Sessions:
    """Who has which role. administrator: the token of the home."""

    def __init__(self, store: Store, administrator: str) -> None:
        self._connection: Connection = store.connect()
        root = AccessToken(
            digest=_digest(administrator), name=ADMINISTRATOR, role=Role.ADMIN, made_by="", made_s=0, expires_s=None
        )
        self._tokens = {root.digest: root}
        for row in self._connection.execute(SELECT_TOKENS):
            token = AccessToken(
                digest=row[0], name=row[1], role=Role(row[2]), made_by=row[3], made_s=row[4], expires_s=row[5]
            )
            self._tokens[token.digest] = token
        self._sessions = {row[0]: _Session(row[1], row[2]) for row in self._connection.execute(SELECT_SESSIONS)}

    # Who asks.

    def by_token(self, text: str) -> Caller | None:
        """Who shows this token."""
        token = self._tokens.get(_digest(text))
        return None if token is None or not token.is_good(time.time()) else Caller(name=token.name, role=token.role)

    def by_cookie(self, text: str) -> Caller | None:
        """Whose browser has this cookie."""
        session, now_s = self._sessions.get(_digest(text)), time.time()
        token = None if session is None or now_s >= session.expires_s else self._tokens.get(session.token)
        if token is None or not token.is_good(now_s):
            return None
        return Caller(name=token.name, role=token.role, by_cookie=True)

    # Browsers. Each of these is one short transaction.

    def log_in(self, text: str) -> str | None:
        """A new cookie for who shows this token, good for SESSION_S; None where it is not good. Raises UserError."""
        token, now_s = self._tokens.get(_digest(text)), time.time()
        if token is None or not token.is_good(now_s):
            return None
        for digest in [each for each, session in self._sessions.items() if not self._is_good(session, now_s)]:
            self._end(digest)
        while len(self._sessions) >= MOST_SESSIONS:
            self._end(next(iter(self._sessions)))
        cookie = secrets.token_urlsafe(32)
        session = _Session(token.digest, now_s + SESSION_S)
        self._write(INSERT_SESSION, (_digest(cookie), session.token, now_s, session.expires_s))
        self._sessions[_digest(cookie)] = session
        return cookie

    def log_out(self, cookie: str) -> None:
        """The cookie is good for nothing any more. Raises UserError."""
        self._end(_digest(cookie))

    def _is_good(self, session: _Session, now_s: float) -> bool:
        token = self._tokens.get(session.token)
        return now_s < session.expires_s and token is not None and token.is_good(now_s)

    def _end(self, digest: bytes) -> None:
        if digest in self._sessions:
            self._write(DELETE_SESSION, (digest,))
            del self._sessions[digest]

    # Tokens.

    def tokens(self) -> list[AccessToken]:
        """Those that were made, by name."""
        made = [token for token in self._tokens.values() if token.name != ADMINISTRATOR]
        return sorted(made, key=lambda token: token.name)

    def make_token(self, name: str, role: Role, life_s: float | None, made_by: str) -> tuple[str, AccessToken]:
        """A new token and what is kept of it. Raises UserError."""
        if not NAME.fullmatch(name) or name == ADMINISTRATOR:
            hint = "at most 63 letters, digits, '_', '.', '@' and '-'; not token"
            raise UserError(f"{name[:80]!r} is no name for who shows a token", hint=hint)
        if role is Role.NOBODY:
            raise UserError("a token needs a role", hint="there are viewer, user, admin")
        if life_s is not None and not 1 <= life_s <= LONGEST_S:
            raise UserError(f"a token lives 1 s to ten years, not {life_s:g} s")
        now_s = time.time()
        for token in self.tokens():
            if not token.is_good(now_s):
                self._remove(token)
        if any(token.name == name for token in self.tokens()):
            raise UserError(f"there is a token of {name} already", hint=f"biruda token --revoke {name} ends it")
        if len(self._tokens) > MOST_TOKENS:
            raise UserError(f"there are {MOST_TOKENS} tokens", hint="biruda token --list shows them")
        text = "biruda_" + secrets.token_hex(24)
        token = AccessToken(
            digest=_digest(text),
            name=name,
            role=role,
            made_by=made_by,
            made_s=now_s,
            expires_s=None if life_s is None else now_s + life_s,
        )
        self._write(INSERT_TOKEN, (token.digest, name, role.value, made_by, now_s, token.expires_s))
        self._tokens[token.digest] = token
        return text, token

    def revoke_token(self, name: str) -> None:
        """End a token, and all who logged in with it. Raises UserError."""
        token = next((token for token in self.tokens() if token.name == name), None)
        if token is None:
            names = ", ".join(token.name for token in self.tokens())
            raise NotFound(f"there is no token of {name[:80]!r}", hint=f"there are {names or 'none'}")
        self._remove(token)

    def _remove(self, token: AccessToken) -> None:
        for digest in [each for each, session in self._sessions.items() if session.token == token.digest]:
            self._end(digest)
        self._write(DELETE_TOKEN, (token.digest,))
        del self._tokens[token.digest]

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            self._connection.execute(statement, values)
        except Unwritable as error:
            raise UserError(f"nothing can be recorded at the moment: {error}", hint="try again") from error


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
