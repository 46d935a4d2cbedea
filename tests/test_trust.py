"""Tokens, certificates and contexts: what fits is taken, what does not is refused in words."""

import asyncio
import shutil
import socket
import ssl
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biruda.errors import ConfigError, PeerError, UsageError
from biruda.trust import acceptor, certificates, keyfiles, tls, tokens
from biruda.trust.acceptor import Complaints, accepting
from biruda.trust.tls import MASTER_NAME, Peer, Role

SECRETS = st.binary(min_size=tokens.SECRET_BYTES, max_size=tokens.SECRET_BYTES)
PINS = st.binary(min_size=tokens.PIN_BYTES, max_size=tokens.PIN_BYTES)


class Authority:
    """An authority, and what it has signed, as files."""

    def __init__(self, directory: Path, name: str = "alder") -> None:
        self.directory = directory
        directory.mkdir()
        self.key, self.text = certificates.new_authority(name)
        self.file = directory / "authority.pem"
        keyfiles.write(self.file, self.text)

    def sign(self, role: Role, host: str, *, issued_s: float = 1e9, life_s: float | None = 60.0) -> Path:
        key = certificates.new_key()
        public_key = certificates.public_key_of(certificates.new_request(key, "whatever"))
        text, _ = certificates.issue(
            self.key, self.text, public_key, role=role, host=host, issued_s=issued_s, life_s=life_s
        )
        path = self.directory / f"{role}-{host}.pem"
        keyfiles.write(path, key + text)
        return path


@pytest.fixture
def farm(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "farm")


# Tokens.


@given(SECRETS, PINS)
def test_a_token_is_read_as_it_was_written_whatever_is_between(secret: bytes, pin: bytes) -> None:
    token = tokens.JoinToken(secret, pin)
    text = str(token)
    assert len(text) == 48
    assert tokens.parse_token(text) == token
    assert tokens.parse_token(f" {text[:20].upper()}-{text[20:]}\n") == token


@given(SECRETS, PINS, st.integers(0, 47), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_a_slip_of_the_pen_is_found(secret: bytes, pin: bytes, place: int, letter: str) -> None:
    text = str(tokens.JoinToken(secret, pin))
    wrong = text[:place] + letter + text[place + 1 :]
    if wrong != text:
        with pytest.raises(UsageError):
            tokens.parse_token(wrong)


@given(st.text(max_size=100))
def test_anything_else_is_no_token(text: str) -> None:
    with pytest.raises(UsageError, match=r"this is no join token|of another version"):
        tokens.parse_token(text)


def test_a_token_has_no_repr_that_shows_its_secret() -> None:
    token = tokens.new_token(b"p" * tokens.PIN_BYTES)
    assert token.secret.hex() not in f"{token!r}{[token]}"
    assert str(token) not in repr(token)


# Certificates.


def test_what_a_certificate_says(farm: Authority) -> None:
    own = farm.sign(Role.COORDINATOR, "alder.example", life_s=90.0)
    peer = tls.owner_of(own, farm.file)
    assert peer == Peer(
        role=Role.COORDINATOR, host="alder.example", serial=peer.serial, issued_s=1e9, expires_s=1e9 + 90
    )
    assert tls.owner_of(farm.sign(Role.MASTER, "", life_s=None), farm.file).role is Role.MASTER


def test_a_host_cannot_call_itself_a_master(farm: Authority) -> None:
    peer = tls.owner_of(farm.sign(Role.COORDINATOR, MASTER_NAME), farm.file)
    assert (peer.role, peer.host) == (Role.COORDINATOR, MASTER_NAME)


def test_openssl_agrees_about_what_was_made(farm: Authority) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    own = farm.sign(Role.COORDINATOR, "alder", issued_s=1.7e9, life_s=1e9)
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", farm.file, own], capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("OK\n"), done.stderr


def test_own_files_that_do_not_fit_are_refused_in_words(farm: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    own, strange = farm.sign(Role.COORDINATOR, "alder"), other.sign(Role.COORDINATOR, "alder")

    def refusal(path: Path, authority: Path = farm.file) -> str:
        with pytest.raises(ConfigError) as refused:
            tls.owner_of(path, authority)
        assert refused.value.hint
        return str(refused.value)

    assert refusal(strange).startswith(f"{strange}: this file is not signed by this farm's authority")
    assert refusal(tmp_path / "none") == f"{tmp_path}/none: there is no such file"
    keyfiles.write(tmp_path / "mixed.pem", certificates.new_key() + own.read_text().partition("-----\n-----")[2])
    assert refusal(farm.file) == f"{farm.file}: holds no readable key and certificate"
    key, rest = certificates.new_key(), own.read_text().split("-----END PRIVATE KEY-----\n")[1]
    keyfiles.write(tmp_path / "mixed.pem", key + rest)
    assert refusal(tmp_path / "mixed.pem") == f"{tmp_path}/mixed.pem: key and certificate are not of one pair"


@given(
    st.text(max_size=300) | st.just("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")
)
def test_no_text_is_a_request_by_chance(text: str) -> None:
    with pytest.raises(PeerError):
        certificates.public_key_of(text)


def test_requests_for_other_keys_are_refused() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    name = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = serialization.Encoding.PEM
    made = [
        name.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        name.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
        name.sign(ed25519.Ed25519PrivateKey.generate(), None),
    ]
    for request in made:
        with pytest.raises(PeerError, match=r"another kind of key than EC P-256"):
            certificates.public_key_of(request.public_bytes(pem).decode())
    good = certificates.new_request(certificates.new_key(), "x")
    with pytest.raises(PeerError, match=r"longer than 8192"):
        certificates.public_key_of(good + "\n" * 8192)


def test_a_request_that_another_key_signed_is_refused() -> None:
    import base64

    lines = certificates.new_request(certificates.new_key(), "x").splitlines()
    der = bytearray(base64.b64decode("".join(lines[1:-1])))
    der[-1] ^= 1
    text = "\n".join([lines[0], base64.b64encode(der).decode(), lines[-1], ""])
    with pytest.raises(PeerError, match=r"not signed by its own key|cannot be read"):
        certificates.public_key_of(text)


# Files.


def test_files_of_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    keyfiles.make_directory(tmp_path / "keys")
    path = tmp_path / "keys" / "a"
    left = path.with_name("a.new")
    left.write_text("left by a crash")
    left.chmod(0o666)
    keyfiles.write(path, "secret\n")
    keyfiles.write(path, "another\n")
    assert keyfiles.read(path) == "another\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [item.name for item in path.parent.iterdir()] == ["a"]


# Connections.


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> tuple[str, list[str]]:
    """What the client met with ("" where it was let in), and what was complained about."""
    complaints, told = Complaints(), list[str]()
    complaints.tell = lambda peer, sentence: told.append(sentence)  # type: ignore[method-assign]
    listener = socket.create_server(("127.0.0.1", 0))
    met = ""

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"hello")

    async with accepting([listener], server, Greeter, complaints):
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(
                    *listener.getsockname(), ssl=client, server_hostname=name
                )
                if await reader.read(5) != b"hello":
                    met = "closed"
                writer.close()
        except ssl.SSLError as error:
            met = tls.words_of(error)
        except ConnectionError:
            met = "closed"
        async with asyncio.timeout(10):
            while met and not told:
                await asyncio.sleep(0.01)
    return met, told


async def test_who_is_let_in_and_who_is_not(farm: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    server = tls.listening(farm.sign(Role.MASTER, "", life_s=None), farm.file)
    expired, strange = farm.sign(Role.COORDINATOR, "alder", life_s=1), other.sign(Role.COORDINATOR, "alder")
    # Dates are not OpenSSL's business, and neither is a missing certificate: both are told in words later.
    assert await handshake(server, tls.dialling_master(farm.file, expired), MASTER_NAME) == ("", [])
    assert await handshake(server, tls.dialling_master(farm.file), MASTER_NAME) == ("", [])
    met, told = await handshake(server, tls.dialling_master(other.file, strange), MASTER_NAME)
    assert met.startswith("its certificate is not signed by this farm's authority")
    assert told == ["it went away within the TLS handshake, as a host of another farm does"]
    met, told = await handshake(server, tls.dialling_master(farm.file, strange), MASTER_NAME)
    assert met == "it does not trust the certificate it was shown: it belongs to another farm"
    assert told == ["its certificate is not signed by this farm's authority (unable to get local issuer certificate)"]


async def test_a_host_that_listens_as_a_master_is_found_out(farm: Authority) -> None:
    rogue = tls.listening(farm.sign(Role.COORDINATOR, "beech"), farm.file)
    met, _ = await handshake(rogue, tls.dialling_master(farm.file, farm.sign(Role.COORDINATOR, "alder")), MASTER_NAME)
    assert met == "its certificate is not a master's"


async def test_older_protocols_and_plain_text_are_complained_about(farm: Authority) -> None:
    server = tls.listening(farm.sign(Role.MASTER, "", life_s=None), farm.file)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    met, told = await handshake(server, old, None)
    assert met == "it does not speak TLS 1.3"
    assert told == ["it does not speak TLS 1.3"]
    complaints, said = Complaints(), list[str]()
    complaints.tell = lambda peer, sentence: said.append(sentence)  # type: ignore[method-assign]
    listener = socket.create_server(("127.0.0.1", 0))
    async with accepting([listener], server, asyncio.Protocol, complaints):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(10):
            while not said:
                await asyncio.sleep(0.01)
        writer.close()
    assert said == ["it speaks http where https is due"]


async def test_strangers_are_bounded(farm: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "MOST_GUESTS", 3)
    monkeypatch.setattr(acceptor, "GUEST_S", 0.3)
    complaints, told = Complaints(), list[str]()
    complaints.tell = lambda peer, sentence: told.append(sentence)  # type: ignore[method-assign]
    server = tls.listening(farm.sign(Role.MASTER, "", life_s=None), farm.file)
    known = tls.dialling_master(farm.file, farm.sign(Role.COORDINATOR, "alder"))
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    async with accepting([listener], server, asyncio.Protocol, complaints), asyncio.timeout(20):
        guests = [await asyncio.open_connection(*address, ssl=tls.trusting_nobody()) for _ in range(4)]
        assert await guests[3][0].read() == b""  # one too many
        friend = await asyncio.open_connection(*address, ssl=known, server_hostname=MASTER_NAME)
        for reader, _ in guests[:3]:  # and these have stayed too long
            assert await reader.read() == b""
        assert not friend[0].at_eof()
        again = await asyncio.open_connection(*address, ssl=tls.trusting_nobody())
        for _, writer in (*guests, friend, again):
            writer.close()
    assert told == ["more than 3 connections without a certificate in 0.3 s"]


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
async def test_a_stranger_that_has_left_is_not_cut_again(
    farm: Authority, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr(acceptor, "GUEST_S", 0.2)
    faults, over = list[dict[str, Any]](), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))

    class Hasty(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            if pause_s:
                loop.call_later(pause_s, self.leave, transport)
            else:
                self.leave(transport)
            loop.call_later(acceptor.GUEST_S + 0.1, over.set)

        def leave(self, transport: asyncio.BaseTransport) -> None:
            transport.close()
            transport.close()  # as aiohttp does

    server = tls.listening(farm.sign(Role.MASTER, "", life_s=None), farm.file)
    listener = socket.create_server(("127.0.0.1", 0))
    async with accepting([listener], server, Hasty, Complaints()), asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=tls.trusting_nobody())
        assert await reader.read() == b""
        writer.close()
        await over.wait()
    assert faults == []


def test_a_complaint_is_told_once_and_not_by_everybody(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for number in range(acceptor.MOST_TOLD + 50):
        for _ in range(2):
            complaints.tell(f"10.0.{number // 256}.{number % 256}", "it does not speak TLS")
    assert len(caplog.records) == acceptor.MOST_TOLD
    assert caplog.records[0].getMessage() == "refused 10.0.0.0: it does not speak TLS"


def test_a_peer_is_a_value(farm: Authority) -> None:
    peer = tls.owner_of(farm.sign(Role.COORDINATOR, "alder"), farm.file)
    assert replace(peer) == peer
    assert tls.peer_of({}) is None
    with pytest.raises(ssl.SSLError, match=r"names example\.com"):
        tls.peer_of({"subjectAltName": (("DNS", "example.com"),)})
