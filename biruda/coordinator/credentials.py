"""What a host has from joining: its key and certificate, the farm's authority, and where the master is."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from biruda.errors import ConfigError, PeerError
from biruda.trust import keyfiles, tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The farm that a host belongs to."""

    url: str  # https://HOST:PORT of its master
    host: str  # what this host is called there


class Credentials:
    """The files below HOME/credentials. host.pem, of mode 0600, is key and certificate: they change together."""

    def __init__(self, home: Path) -> None:
        directory = home / "credentials"
        self.own = directory / "host.pem"
        self.authority = directory / "authority.pem"
        self._joined = directory / "joined.json"

    def joined(self) -> Joined | None:
        """The farm that was joined; None where none was. Raises ConfigError."""
        if not os.path.lexists(self._joined):
            return None
        try:
            found = json.loads(keyfiles.read(self._joined))
            return Joined(url=str(found["master"]), host=str(found["host"]))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self._joined}: is not what `biruda join` writes", hint=tls.JOIN_AGAIN) from None

    def check(self) -> tls.Peer:
        """Whose the certificate is, after key, certificate and authority have proved to fit. Raises ConfigError."""
        if not os.path.lexists(self.own):
            raise ConfigError(f"{self.own}: there is none: this host has not joined a farm", hint=tls.JOIN_AGAIN)
        peer = tls.owner_of(self.own, self.authority)
        if peer.role is not tls.Role.COORDINATOR:
            raise ConfigError(f"{self.own}: is not the certificate of a host", hint=tls.JOIN_AGAIN)
        return peer

    def save(self, key: str, certificate: str, authority: str, joined: Joined) -> None:
        """Take the place of what was there. PeerError where the certificate is not for this key and host."""
        if not authority.isascii():
            raise PeerError("the master gave an authority that is no certificate")
        keyfiles.make_directory(self.own.parent)
        candidate = self.authority.with_name("authority.candidate")
        keyfiles.write(candidate, authority)
        self._put(key + certificate, candidate, joined.host)
        candidate.replace(self.authority)
        keyfiles.write(self._joined, json.dumps({"master": joined.url, "host": joined.host}) + "\n")

    def renew(self, key: str, certificate: str, host: str) -> None:
        """Take a new key and certificate. PeerError where they are not for this host, and then nothing changes."""
        self._put(key + certificate, self.authority, host)

    def _put(self, own: str, authority: Path, host: str) -> None:
        if not own.isascii():
            raise PeerError("the master gave something that is no certificate")
        candidate = self.own.with_name("host.candidate")
        keyfiles.write(candidate, own)
        try:
            peer = tls.owner_of(candidate, authority)
        except ConfigError as error:
            raise PeerError(f"the master gave a certificate that does not fit: {error}") from None
        if peer.role is not tls.Role.COORDINATOR or peer.host != host:
            raise PeerError(f"the master gave a certificate for {peer.host or 'a master'}, not for {host}")
        candidate.replace(self.own)


def new_request(host: str) -> tuple[str, str]:
    """A new private key and the request for its certificate."""
    from biruda.trust import certificates

    key = certificates.new_key()
    return key, certificates.new_request(key, host)
