"""Keys, requests and certificates: X.509 by `cryptography`, which is loaded with this module (17 MB).

A role imports it only when something is to be made or signed; whoever only uses what was made needs `tls.py`.
All keys are EC P-256, all texts PEM.
"""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from biruda.errors import PeerError
from biruda.trust.tls import Peer, Role, dns_name
from biruda.trust.tokens import PIN_BYTES

REQUEST_BYTES = 8192
"""No request of ours is nearly as long."""

FOR_EVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280's way to say that there is no end."""


def new_key() -> str:
    """A private key; it goes into a file of mode 0600 and nowhere else."""
    return _key_text(ec.generate_private_key(ec.SECP256R1()))


def new_request(key: str, host: str) -> str:
    """A request for a certificate of this key, signed by it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(_key(key), hashes.SHA256())
    return _text(request)


def new_authority(farm: str) -> tuple[str, str]:
    """Key and certificate of a new authority, which can sign certificates of hosts and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "biruda"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {farm}"[:64]),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC))
        .not_valid_after(FOR_EVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_text(key), _text(certificate)


def pin_of(authority: str) -> bytes:
    """What a join token says of this authority's certificate. Raises PeerError for what is no certificate."""
    try:
        public_key = x509.load_pem_x509_certificate(authority.encode()).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PeerError(f"this is no certificate of an authority: {str(error)[:100]}") from None
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize()[:PIN_BYTES]


def public_key_of(request: str) -> ec.EllipticCurvePublicKey:
    """The key that a request is for and is signed by. Raises PeerError for anything else; the rest does not count."""
    if len(request) > REQUEST_BYTES:
        raise PeerError(f"the certificate request is longer than {REQUEST_BYTES} characters")
    try:
        loaded = x509.load_pem_x509_csr(request.encode())
        key = loaded.public_key()
        is_signed = loaded.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        words = " ".join(str(error).split())[:100] or type(error).__name__
        raise PeerError(f"the certificate request cannot be read: {words}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PeerError("the certificate request is for another kind of key than EC P-256")
    if not is_signed:
        raise PeerError("the certificate request is not signed by its own key")
    return key


def key_of(key: str) -> ec.EllipticCurvePublicKey:
    """The public half of a private key."""
    return _key(key).public_key()


def issue(
    authority_key: str,
    authority: str,
    public_key: ec.EllipticCurvePublicKey,
    *,
    role: Role,
    host: str,
    issued_s: float,
    life_s: float | None,
) -> tuple[str, Peer]:
    """A certificate for this key, and what it says. life_s None: without an end."""
    issuer = x509.load_pem_x509_certificate(authority.encode())
    signing_key = _key(authority_key)
    issued = datetime.fromtimestamp(int(issued_s), UTC)
    until = FOR_EVER if life_s is None else min(FOR_EVER, issued + timedelta(seconds=max(1, round(life_s))))
    serial = x509.random_serial_number()
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
                    x509.NameAttribute(NameOID.COMMON_NAME, host or role.value),
                ]
            )
        )
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(issued)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        # each side may be the one that listens
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name(role, host))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    peer = Peer(
        role=role, host=host, serial=f"{serial:x}", issued_s=issued.timestamp(), expires_s=int(until.timestamp())
    )
    return _text(certificate), peer


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key(text: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(text.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _text(made: x509.Certificate | x509.CertificateSigningRequest) -> str:
    return made.public_bytes(serialization.Encoding.PEM).decode()
