"""Who may be a host of this farm: join tokens, certificates, their renewal and their end."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from biruda.errors import NotFound, UserError
from biruda.link import Transport
from biruda.master.authority import Authority
from biruda.master.joinrecords import CertificateRecord, JoinRecords
from biruda.master.tries import WrongTries
from biruda.trust.tls import HOST_NAME, JOIN_AGAIN, Peer, Role, when
from biruda.trust.tokens import SECRET_BYTES, JoinToken, new_token

log = logging.getLogger("biruda.master")

LONGEST_TOKEN_S: Final = 7 * 86400.0
MOST_TOKENS: Final = 1000
ANOTHER: Final = "`biruda token` on the master makes another"


class NotAdmitted(UserError):
    """A host is not let in; what is said is meant for it too (HTTP 403)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeToken:
    """A join token and the end of its life."""

    token: JoinToken
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """What a host says that wants to join."""

    secret: str  # of the token, hexadecimal
    host: str
    instance: str
    request: str  # PEM


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a host gets that has joined or renewed."""

    certificate: str  # PEM
    peer: Peer
    authority: str  # PEM


class Joining:
    """The authority and its records, and the links that stand on certificates."""

    def __init__(self, authority: Authority, records: JoinRecords, *, life_s: float) -> None:
        self.authority = authority
        self._records = records
        self._life_s = life_s
        self._wrong = WrongTries()
        self._live: dict[str, set[Transport]] = {}

    # Tokens.

    async def make_token(self, *, host: str, ttl_s: float, made_by: str) -> MadeToken:
        """A token for one host to join with; host "": whichever it is. Raises UserError."""
        if host and not HOST_NAME.fullmatch(host):
            raise UserError(f"{host[:80]!r} is no host name", hint="letters, digits, '.' and '-', at most 63")
        if not 1 <= ttl_s <= LONGEST_TOKEN_S:
            raise UserError(f"a join token lives 1 s to {LONGEST_TOKEN_S / 86400:g} days, not {ttl_s:g} s")
        token = new_token(await asyncio.to_thread(self.authority.pin))
        now_s = time.time()

        def save() -> None:
            with self._records.transaction() as transaction:
                if transaction.open_tokens(now_s) >= MOST_TOKENS:
                    raise UserError(
                        f"there are {MOST_TOKENS} tokens that nobody has used", hint="they end by themselves"
                    )
                transaction.add_token(_digest(token.secret), host, made_by, now_s, now_s + ttl_s)

        await asyncio.to_thread(save)
        log.info("a join token was made by %s%s, until %s", made_by, f" for {host}" * bool(host), when(now_s + ttl_s))
        return MadeToken(token=token, expires_s=now_s + ttl_s)

    async def join(self, wanted: JoinRequest, address: str) -> Admission:
        """Take a token in and give a certificate for it. Raises NotAdmitted, or PeerError for a bad request."""
        self._wrong.refuse_the_persistent(address, "tokens")
        if not HOST_NAME.fullmatch(wanted.host):
            raise NotAdmitted(
                f"{wanted.host[:80]!r} is no name for a host", hint="give one with --name: letters, digits, '.' and '-'"
            )
        if not wanted.instance.isalnum() or len(wanted.instance) > 64:
            raise NotAdmitted("the host did not say its instance", hint="run the same version on both hosts")
        try:
            secret = bytes.fromhex(wanted.secret)
        except ValueError:
            secret = b""
        admission = await asyncio.to_thread(self._admit_new, secret, wanted, address)
        log.info("host=%s joined from %s, until %s", wanted.host, address, when(admission.peer.expires_s))
        return admission

    def _admit_new(self, secret: bytes, wanted: JoinRequest, address: str) -> Admission:
        from biruda.trust import certificates  # loaded before the transaction: that takes a while

        assert certificates
        now_s, digest = time.time(), _digest(secret)
        with self._records.transaction() as transaction:
            token = transaction.token(digest) if len(secret) == SECRET_BYTES else None
            if token is None:
                self._wrong.add(address)
                raise NotAdmitted("this master has not made this token", hint=ANOTHER)
            if token.used_s is not None:
                raise NotAdmitted(f"this token was used at {when(token.used_s)} by {token.used_by}", hint=ANOTHER)
            if token.expires_s <= now_s:
                raise NotAdmitted(f"this token expired at {when(token.expires_s)}", hint=ANOTHER)
            if token.host not in ("", wanted.host):
                hint = f"biruda join --name {token.host}, or make one for it: biruda token --host {wanted.host}"
                raise NotAdmitted(f"this token is for the host {token.host}, not for {wanted.host}", hint=hint)
            there = transaction.valid_of(wanted.host, now_s)
            if there is not None and there.instance != wanted.instance and not token.host:
                sentence = f"another host called {there.host} joined at {when(there.issued_s)} from {there.address}"
                hint = (
                    f"give this one another name with --name; if it replaces that one: biruda token --host {there.host}"
                )
                raise NotAdmitted(sentence, hint=hint)
            # A bad request raises here, and then the token is not used up.
            certificate, peer = self.authority.sign(wanted.request, wanted.host, issued_s=now_s, life_s=self._life_s)
            transaction.revoke(wanted.host, f"{wanted.host} joined again at {when(now_s)}", now_s)
            transaction.use_token(digest, wanted.host, now_s)
            transaction.add_certificate(peer, wanted.instance, address)
        return Admission(certificate=certificate, peer=peer, authority=self.authority.text())

    # Certificates.

    async def admit(self, peer: Peer | None) -> Peer:
        """The coordinator that shows this certificate may come in. Raises NotAdmitted with the reason."""
        if peer is None:
            raise NotAdmitted("it shows no certificate", hint=JOIN_AGAIN)
        if peer.role is not Role.COORDINATOR:
            raise NotAdmitted("its certificate is a master's", hint=JOIN_AGAIN)
        record = await asyncio.to_thread(self._records.certificate, peer.serial)
        if record is None:
            raise NotAdmitted(f"this master has no record of the certificate of {peer.host}", hint=JOIN_AGAIN)
        if record.revoked_s is not None:
            sentence = f"the certificate of {peer.host} was revoked at {when(record.revoked_s)}: {record.reason}"
            raise NotAdmitted(sentence, hint=JOIN_AGAIN)
        now_s = time.time()
        if peer.expires_s <= now_s:
            sentence = f"the certificate of {peer.host} expired at {when(peer.expires_s)}, and it is {when(now_s)} here"
            raise NotAdmitted(sentence, hint=JOIN_AGAIN)
        return peer

    async def life_of(self, peer: Peer | None) -> tuple[float, float]:
        """How many seconds a certificate is still good for, and of how many. Raises NotAdmitted."""
        known = await self.admit(peer)
        return known.expires_s - time.time(), known.expires_s - known.issued_s

    async def renew(self, peer: Peer | None, request: str, address: str) -> Admission:
        """Another certificate for a host that has a valid one. Raises NotAdmitted, or PeerError for a bad request."""
        known = await self.admit(peer)

        def sign() -> Admission:
            now_s = time.time()
            certificate, fresh = self.authority.sign(request, known.host, issued_s=now_s, life_s=self._life_s)
            old = self._records.certificate(known.serial)
            with self._records.transaction() as transaction:
                if old is None or transaction.is_revoked(known.serial):
                    raise NotAdmitted(f"the certificate of {known.host} was revoked", hint=JOIN_AGAIN)
                transaction.add_certificate(fresh, old.instance, address)
            return Admission(certificate=certificate, peer=fresh, authority=self.authority.text())

        admission = await asyncio.to_thread(sign)
        log.info("host=%s renewed its certificate, until %s", known.host, when(admission.peer.expires_s))
        return admission

    async def revoke(self, host: str, reason: str) -> int:
        """No certificate of this host lets it in any more, and its links are cut. How many there were."""
        reason = "".join(char for char in reason if char.isprintable())

        def save() -> tuple[int, bool]:
            now_s = time.time()
            with self._records.transaction() as transaction:
                return transaction.revoke(host, reason, now_s), transaction.has_joined(host)

        revoked, known = await asyncio.to_thread(save)
        if not known:
            raise NotFound(f"no host called {host[:80]!r} has joined", hint="biruda hosts lists them")
        log.warning("host=%s revoked: %s", host, reason)
        for transport in list(self._live.get(host, ())):
            await transport.close()
        return revoked

    async def cut_all(self) -> None:
        """Every link that stands on a certificate is closed."""
        async with asyncio.TaskGroup() as tasks:
            for transports in self._live.values():
                for transport in transports:
                    tasks.create_task(transport.close(), name="closing a link")

    async def hosts(self) -> list[CertificateRecord]:
        """The last certificate of every host that has joined."""
        return await asyncio.to_thread(self._records.newest)

    @asynccontextmanager
    async def carrying(self, peer: Peer | None, transport: Transport) -> AsyncIterator[str]:
        """Within it the link may stand; it is cut when the host is revoked. Gives the host; raises NotAdmitted."""
        links = self._live.setdefault(peer.host if peer else "", set())
        links.add(transport)  # before the look at the records: what is revoked after it closes this one too
        try:
            yield (await self.admit(peer)).host
        finally:
            links.discard(transport)
            if peer is not None and not links:
                self._live.pop(peer.host, None)


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
