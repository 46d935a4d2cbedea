"""Joining a farm: what a new host says to a master, and what it believes of the answers."""

import json
import ssl
from pathlib import Path
from typing import Final

from biruda.cli.address import Address, address_of, connect, reason_of
from biruda.cli.answers import Fields, fields
from biruda.cli.http import Exchange
from biruda.cli.text import escape
from biruda.coordinator.credentials import Credentials, Joined, new_request
from biruda.errors import NoMaster, PeerError, UsageError, UserError
from biruda.trust import tls
from biruda.trust.tokens import JoinToken, parse_token

ANSWER_S: Final = 30.0
MOST_BYTES: Final = 64 << 10
_PORT: Final = "the port is that of [master] link_listen there"


def join_host(home: Path, url: str, token: str, name: str) -> Joined:
    """Join the farm of the master at https://HOST:PORT; key and certificate are in HOME/credentials on return.

    The secret in the token is sent only to a master of the authority that the token names. Raises UserError with the
    master's reason where it refuses; then nothing has changed here.
    """
    parsed, address = parse_token(token), _address(url)
    authority = _authority(address, parsed)
    if not tls.HOST_NAME.fullmatch(name):
        raise UsageError(
            f"{escape(name)!r} is no name for a host", hint="give one with --name: letters, digits, '.', '-'"
        )
    from biruda.cli.detach import make_home
    from biruda.cli.roles import kept_secret

    make_home(home)
    key, request = new_request(name)
    wanted = {
        "secret": parsed.secret.hex(),
        "host": name,
        "instance": kept_secret(home / "instance", 8),
        "request": request,
    }
    answer = _ask(address, tls.dialling_master(authority), "POST", wanted)
    joined = Joined(url=f"https://{address.host_header}", host=name)
    Credentials(home).save(key, answer.text("certificate"), authority, joined)
    return joined


def _address(url: str) -> Address:
    address = address_of(url)
    if not address.tls or address.base:
        raise UsageError(
            f"{escape(url)}: must be https://HOST:PORT", hint="copy the whole line that `biruda token` printed"
        )
    return address


def _authority(address: Address, token: JoinToken) -> str:
    """The certificate of the authority that the token names, from whoever answers there."""
    from biruda.trust import certificates

    authority = _ask(address, tls.trusting_nobody(), "GET", None).text("authority")
    if not authority.isascii() or certificates.pin_of(authority) != token.pin:
        raise _stranger(address)
    return authority


def _stranger(address: Address) -> UserError:
    return UserError(
        f"what answers at {escape(address.shown)} is not the master that this token came from; nothing was told to it",
        hint="check the address; if it is right, somebody stands between, or the master's HOME/ca was made anew",
    )


def _ask(address: Address, context: ssl.SSLContext, method: str, body: object) -> Fields:
    plain = connect(address._replace(tls=False), ANSWER_S)
    try:
        connection = context.wrap_socket(plain, server_hostname=tls.MASTER_NAME)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise _stranger(address) from None
    except OSError as error:
        plain.close()
        words = tls.words_of(error) if isinstance(error, ssl.SSLError) else reason_of(error)
        raise NoMaster(f"no master answers at {escape(address.shown)}: {words}", hint=_PORT) from None
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    with Exchange(address, connection) as exchange:
        exchange.send(method, "/api/v1/join", headers, None if body is None else json.dumps(body).encode())
        exchange.answer()
        body = exchange.read_all(MOST_BYTES)
        if "json" not in exchange.headers.get("content-type", "") or exchange.status in (401, 404, 405):
            raise PeerError(f"what answers at {escape(address.shown)} takes no hosts in", hint=_PORT)
        answer = fields(body, f"{method} /api/v1/join")
        if exchange.status >= 300:
            raise UserError(escape(answer.text("detail")[:500]), hint=escape(answer.text("hint")[:500]))
        return answer
