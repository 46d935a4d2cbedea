"""Join tokens: a secret that lets one host in, and the pin by which that host knows the master before it tells it.

A token is 48 letters and digits, base32 of 30 bytes: `version 1 | secret 10 | pin 16 | check 3`. The pin is the
beginning of the SHA-256 of the authority's public key (SubjectPublicKeyInfo), check that of all before it: a slip of
the pen is found before anything is sent.
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final

from biruda.errors import UsageError

VERSION: Final = b"\x01"
SECRET_BYTES: Final = 10
PIN_BYTES: Final = 16
_CHECK_BYTES: Final = 3
_LENGTH: Final = 48


@dataclass(frozen=True, slots=True, repr=False)
class JoinToken:
    """What a new host is given. It has no repr: a secret does not belong into a log."""

    secret: bytes
    pin: bytes

    def __str__(self) -> str:
        body = VERSION + self.secret + self.pin
        return base64.b32encode(body + _check(body)).decode().lower()


def new_token(pin: bytes) -> JoinToken:
    """A token with a secret that nobody has seen."""
    return JoinToken(secrets.token_bytes(SECRET_BYTES), pin)


def parse_token(text: str) -> JoinToken:
    """The token that a person has typed or pasted: case, blanks and dashes do not matter. Raises UsageError."""
    plain = re.sub(r"[\s-]", "", text)
    wrong = UsageError("this is no join token of biruda", hint="copy the whole line that `biruda token` printed")
    if len(plain) != _LENGTH or not re.fullmatch(r"[A-Za-z2-7]+", plain):
        raise wrong
    data = base64.b32decode(plain.upper())
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if check != _check(body):
        raise wrong
    if body[:1] != VERSION:
        raise UsageError("this join token is of another version of biruda", hint="run the same version on both hosts")
    return JoinToken(body[1 : 1 + SECRET_BYTES], body[1 + SECRET_BYTES :])


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]
