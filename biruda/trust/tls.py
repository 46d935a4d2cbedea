"""Mutual TLS between master and coordinators: contexts, who the peer is, and what is wrong with it in words.

TLS 1.3 alone, no session tickets: each connection shows its certificate. The name in a certificate is not an address
but a role and a host, `master.biruda.internal` or `HOST.coordinator.biruda.internal`, so addresses may change, and no
coordinator can stand in for the master. OpenSSL checks the chain and the purpose, not the dates: the master looks at
the end of a coordinator's certificate by its own clock (biruda.master.joining), and no other clock counts, so a host
without a battery is not shut out. An authority's and a master's certificates have no end.
"""

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from biruda.errors import ConfigError

DOMAIN: Final = "biruda.internal"
MASTER_NAME: Final = f"master.{DOMAIN}"

HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
"""What a host that joins may be called."""

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for
_HANDSHAKE_ROUNDS: Final = 10


class Role(StrEnum):
    """What a certificate lets its owner be."""

    MASTER = "master"
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What a certificate that the authority signed says of its owner. Times are seconds since 1970."""

    role: Role
    host: str  # "" for a master
    serial: str  # hexadecimal
    issued_s: float
    expires_s: float


def dns_name(role: Role, host: str) -> str:
    """The subjectAltName of a certificate."""
    return MASTER_NAME if role is Role.MASTER else f"{host}.coordinator.{DOMAIN}"


def peer_of(certificate: Any) -> Peer | None:
    """Whose certificate getpeercert() gave; None without one. ssl.SSLError where it is none of ours."""
    if not certificate:
        return None
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    host, separator, rest = names[0].rpartition(f".coordinator.{DOMAIN}") if len(names) == 1 else ("", "", "?")
    if names == [MASTER_NAME]:
        role, host = Role.MASTER, ""
    elif separator and host and not rest:
        role = Role.COORDINATOR
    else:
        raise ssl.SSLError(f"its certificate names {', '.join(map(str, names))[:100] or 'nobody'}")
    return Peer(
        role=role,
        host=host,
        serial=f"{int(certificate['serialNumber'], 16):x}",
        issued_s=ssl.cert_time_to_seconds(certificate["notBefore"]),
        expires_s=ssl.cert_time_to_seconds(certificate["notAfter"]),
    )


def when(at_s: float) -> str:
    """A time as sentences say it."""
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# Contexts. `own` is one file with a private key and its certificate: two files could be of different ages.


class _TellingObject(ssl.SSLObject):
    """Keeps the alert of a handshake that failed: asyncio drops it, and the peer would never know why."""

    outgoing: ssl.MemoryBIO | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if self.outgoing is not None:
                error.alert = self.outgoing.read()  # type: ignore[attr-defined]
            raise


class _TellingContext(ssl.SSLContext):
    sslobject_class = _TellingObject

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *args, **options)
        assert isinstance(made, _TellingObject)
        made.outgoing = outgoing
        return made


def alert_of(error: ssl.SSLError) -> bytes:
    """What the peer of a failed handshake is still to be sent, from a context of listening()."""
    alert = getattr(error, "alert", b"")
    return alert if isinstance(alert, bytes) else b""


def listening(own: Path, authority: Path) -> ssl.SSLContext:
    """For the side that listens. A peer may come without a certificate: it is told in words that it needs one."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, authority, _TellingContext)
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_cert_chain(own)
    return context


def dialling_master(authority: Path | str, own: Path | None = None) -> ssl.SSLContext:
    """For who dials a master; give MASTER_NAME as the server's name, whatever the address is.

    authority: a file, or the text of a certificate.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authority)
    if own is not None:
        context.load_cert_chain(own)
    return context


def dialling_coordinator(authority: Path, own: Path) -> ssl.SSLContext:
    """For a master that dials. Any host of the farm may answer: peer_of() says which."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authority)
    context.check_hostname = False
    context.load_cert_chain(own)
    return context


def trusting_nobody() -> ssl.SSLContext:
    """For asking who is there, before anything is told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(protocol: int, authority: Path | str, kind: type[ssl.SSLContext] = ssl.SSLContext) -> ssl.SSLContext:
    context = kind(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= _NO_CHECK_TIME
    if isinstance(authority, Path):
        context.load_verify_locations(authority)
    else:
        context.load_verify_locations(cadata=authority)
    return context


def owner_of(own: Path, authority: Path) -> Peer:
    """Whose key and certificate a file holds, after they have proved it: by a handshake with themselves.

    ConfigError where they are not of one pair, or not signed by this authority.
    """
    for path in (own, authority):
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file", hint=JOIN_AGAIN)
    try:
        server = listening(own, authority)
        client = dialling_coordinator(authority, own)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(to_client, to_server, server_side=False),
            server.wrap_bio(to_server, to_client, server_side=True),
        )
        for _ in range(_HANDSHAKE_ROUNDS):
            done = [_step(end) for end in ends]
            if all(done):
                break
        peer = peer_of(ends[0].getpeercert())
    except ssl.SSLError as error:
        raise ConfigError(f"{own}: {words_of(error, own='this file')}", hint=JOIN_AGAIN) from None
    except OSError as error:
        raise ConfigError(f"{own}: cannot be read: {(error.strerror or 'I/O error').lower()}") from None
    if peer is None:
        raise ConfigError(f"{own}: holds no certificate that can be used", hint=JOIN_AGAIN)
    return peer


JOIN_AGAIN: Final = "`biruda token` on the master makes a token, `biruda join` takes it here"


def _step(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


# What is wrong.

_FOREIGN: Final = (18, 19, 20, 21)  # X509_V_ERR: self-signed, in the chain or not; no issuer; nothing verifiable
_PURPOSE: Final = 26

_BY_REASON: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the certificate it was shown: it belongs to another farm",
    "TLSV1_ALERT_DECRYPT_ERROR": "it does not trust the certificate it was shown: it belongs to another farm",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refused the certificate it was shown",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refused the certificate it was shown",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that the certificate it was shown has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that the certificate it was shown was revoked",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate and was shown none",
    "HTTP_REQUEST": "it speaks http where https is due",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "NO_SHARED_CIPHER": "it has no cipher in common with this side",
    "UNEXPECTED_EOF_WHILE_READING": "it closed the connection within the handshake",
    "KEY_VALUES_MISMATCH": "key and certificate are not of one pair",
    "NO_START_LINE": "holds no key or no certificate",
    "PEM_LIB": "holds no readable key and certificate",
}


def inner_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error that another one wraps; aiohttp's are themselves of ssl's classes, without what they say."""
    found: ssl.SSLError | None = None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, ssl.SSLError):
            found = error
        wrapped = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
        error = wrapped or error.__cause__ or (None if found else error.__context__)
    return found


def words_of(error: ssl.SSLError, *, own: str = "") -> str:
    """What an error of TLS means, without OpenSSL's names where we know better."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _FOREIGN:
            whose = own or "its certificate"
            return f"{whose} is not signed by this farm's authority ({error.verify_message})"
        if error.verify_code == _PURPOSE:
            return "its certificate is for another purpose"
        if error.verify_message.lower().startswith("hostname mismatch"):
            return "its certificate is not a master's"
        return f"its certificate is refused: {error.verify_message}"
    known = _BY_REASON.get(error.reason or ("PEM_LIB" if "PEM lib" in str(error) else ""))
    return known or " ".join(str(error.reason or error).lower().replace("_", " ").split())[:200]
