"""The master's own certification authority: its key never leaves HOME/ca, and is read only to sign."""

import os
import time
from pathlib import Path

from biruda.errors import ConfigError
from biruda.trust import keyfiles
from biruda.trust.tls import Peer, Role, owner_of


class Authority:
    """The files below HOME/ca, made when they are first needed.

    authority.key and authority.pem are the authority, master.pem is key and certificate of this master. Neither
    certificate has an end: whoever could take master.pem could take the authority's key beside it.
    """

    def __init__(self, directory: Path, farm: str) -> None:
        self._farm = farm
        self._key = directory / "authority.key"
        self.certificate = directory / "authority.pem"
        self.master = directory / "master.pem"

    def ensure(self) -> None:
        """All files are there and fit each other on return. ConfigError where they do not, or cannot be made."""
        keyfiles.make_directory(self._key.parent)
        if not os.path.lexists(self.master) and not os.path.lexists(self._key):
            self._make()
        if not os.path.lexists(self.master):
            self._make_master()
        try:
            peer = owner_of(self.master, self.certificate)
        except ConfigError as error:
            hint = f"restore {self._key.parent} from a backup, or move it away: then every host joins again"
            raise ConfigError(str(error), hint=hint) from None
        if peer.role is not Role.MASTER:
            raise ConfigError(f"{self.master}: is a coordinator's certificate", hint="remove it: another is made")

    def _make(self) -> None:
        from biruda.trust import certificates

        key, certificate = certificates.new_authority(self._farm)
        keyfiles.write(self.certificate, certificate)
        keyfiles.write(self._key, key)  # last: where it is, the certificate is

    def _make_master(self) -> None:
        from biruda.trust import certificates

        key = certificates.new_key()
        certificate, _ = certificates.issue(
            keyfiles.read(self._key),
            self.text(),
            certificates.key_of(key),
            role=Role.MASTER,
            host="",
            issued_s=time.time(),
            life_s=None,
        )
        keyfiles.write(self.master, key + certificate)

    def text(self) -> str:
        """The authority's certificate, which anybody may see."""
        return keyfiles.read(self.certificate)

    def pin(self) -> bytes:
        """By what a new host knows this authority."""
        from biruda.trust import certificates

        return certificates.pin_of(self.text())

    def sign(self, request: str, host: str, *, issued_s: float, life_s: float) -> tuple[str, Peer]:
        """A coordinator's certificate for the key of a request, whatever it says else. PeerError: a bad request."""
        from biruda.trust import certificates

        public_key = certificates.public_key_of(request)
        return certificates.issue(
            keyfiles.read(self._key),
            self.text(),
            public_key,
            role=Role.COORDINATOR,
            host=host,
            issued_s=issued_s,
            life_s=life_s,
        )
