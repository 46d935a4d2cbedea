"""What the master remembers of join tokens and certificates: two tables of the store, by a connection of their own.

Every call is one transaction and blocks for a few milliseconds; callers use a thread.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from biruda.errors import UserError
from biruda.master.store import Connection, Row, Store, Unwritable
from biruda.trust.tls import Peer, Role

INSERT_TOKEN = """
    INSERT INTO join_tokens (hash, host, made_by, made_s, expires_s, used_s, used_by) VALUES (?, ?, ?, ?, ?, NULL, '')
"""
SELECT_TOKEN = "SELECT * FROM join_tokens WHERE hash = ?"
USE_TOKEN = "UPDATE join_tokens SET used_s = ?, used_by = ? WHERE hash = ? AND used_s IS NULL"
TRIM_TOKENS = "DELETE FROM join_tokens WHERE expires_s < ?"
COUNT_TOKENS = "SELECT count(*) FROM join_tokens WHERE used_s IS NULL AND expires_s > ?"
INSERT_CERTIFICATE = """
    INSERT INTO certificates (serial, host, instance, address, issued_s, expires_s, revoked_s, reason)
    VALUES (?, ?, ?, ?, ?, ?, NULL, '')
"""
TRIM_CERTIFICATES = "DELETE FROM certificates WHERE expires_s < ?"
SELECT_CERTIFICATE = "SELECT * FROM certificates WHERE serial = ?"
SELECT_OF_HOST = """
    SELECT * FROM certificates WHERE host = ? AND revoked_s IS NULL AND expires_s > ? ORDER BY issued_s DESC LIMIT 1
"""
SELECT_ANY_OF_HOST = "SELECT 1 FROM certificates WHERE host = ? LIMIT 1"
SELECT_NEWEST = """
    SELECT * FROM certificates AS one
    WHERE NOT EXISTS (SELECT 1 FROM certificates AS other WHERE other.host = one.host
        AND (other.issued_s, other.serial) > (one.issued_s, one.serial))
    ORDER BY host
"""
REVOKE_HOST = "UPDATE certificates SET revoked_s = ?, reason = ? WHERE host = ? AND revoked_s IS NULL AND expires_s > ?"

KEPT_S = 30 * 86400.0
"""So long after its end a token or a certificate is still known, so that a late use is told what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A join token, without its secret."""

    host: str
    expires_s: float
    used_s: float | None
    used_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateRecord:
    """A coordinator's certificate."""

    serial: str
    host: str
    instance: str
    address: str
    issued_s: float
    expires_s: float
    revoked_s: float | None
    reason: str


class JoinRecords:
    """The two tables."""

    def __init__(self, store: Store) -> None:
        self._connection = store.connect()
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """All that is done within it is on disk on return, or, where it raises, nothing of it is. Raises UserError."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield Transaction(self._connection)
                self._connection.execute("COMMIT")
            except Unwritable as error:
                self._roll_back()
                raise UserError(f"nothing can be recorded at the moment: {error}", hint="try again") from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def certificate(self, serial: str) -> CertificateRecord | None:
        """A certificate that was issued here."""
        with self._lock:
            row = self._connection.execute(SELECT_CERTIFICATE, (serial,)).fetchone()
        return None if row is None else _certificate(row)

    def newest(self) -> list[CertificateRecord]:
        """The last certificate of every host that has joined."""
        with self._lock:
            return [_certificate(row) for row in self._connection.execute(SELECT_NEWEST)]


class Transaction:
    """What may be done within one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open_tokens(self, now_s: float) -> int:
        """How many tokens could still be used; those that ended long ago are forgotten."""
        self._connection.execute(TRIM_TOKENS, (now_s - KEPT_S,))
        self._connection.execute(TRIM_CERTIFICATES, (now_s - KEPT_S,))
        return int(self._connection.execute(COUNT_TOKENS, (now_s,)).fetchone()[0])

    def add_token(self, digest: bytes, host: str, made_by: str, made_s: float, expires_s: float) -> None:
        self._connection.execute(INSERT_TOKEN, (digest, host, made_by, made_s, expires_s))

    def token(self, digest: bytes) -> TokenRecord | None:
        row = self._connection.execute(SELECT_TOKEN, (digest,)).fetchone()
        if row is None:
            return None
        return TokenRecord(host=row["host"], expires_s=row["expires_s"], used_s=row["used_s"], used_by=row["used_by"])

    def use_token(self, digest: bytes, host: str, now_s: float) -> None:
        self._connection.execute(USE_TOKEN, (now_s, host, digest))

    def valid_of(self, host: str, now_s: float) -> CertificateRecord | None:
        """The newest certificate with which this host may still connect."""
        row = self._connection.execute(SELECT_OF_HOST, (host, now_s)).fetchone()
        return None if row is None else _certificate(row)

    def add_certificate(self, peer: Peer, instance: str, address: str) -> None:
        assert peer.role is Role.COORDINATOR
        row = (peer.serial, peer.host, instance, address, peer.issued_s, peer.expires_s)
        self._connection.execute(INSERT_CERTIFICATE, row)

    def is_revoked(self, serial: str) -> bool:
        row = self._connection.execute(SELECT_CERTIFICATE, (serial,)).fetchone()
        return row is None or row["revoked_s"] is not None

    def has_joined(self, host: str) -> bool:
        """Whether a certificate of this host is known, valid or not."""
        return self._connection.execute(SELECT_ANY_OF_HOST, (host,)).fetchone() is not None

    def revoke(self, host: str, reason: str, now_s: float) -> int:
        """How many certificates of this host were valid until now."""
        return self._connection.execute(REVOKE_HOST, (now_s, reason, host, now_s)).rowcount


def _certificate(row: Row) -> CertificateRecord:
    return CertificateRecord(**{name: row[name] for name in CertificateRecord.__slots__})
