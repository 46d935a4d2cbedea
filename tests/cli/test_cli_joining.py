"""`biruda join` against what is no master, or a hostile one; and what a host that has joined says of itself."""

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from biruda.coordinator.credentials import Credentials, Joined
from biruda.trust import certificates, keyfiles, tls
from biruda.trust.tls import Role
from biruda.trust.tokens import new_token

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Impostor:
    """Listens with a certificate of an authority of its own, and answers each request with what the test gives."""

    def __init__(self, directory: Path) -> None:
        self.key, self.authority = certificates.new_authority("impostor")
        own = certificates.new_key()
        text, _ = certificates.issue(
            self.key, self.authority, certificates.key_of(own), role=Role.MASTER, host="", issued_s=1e9, life_s=None
        )
        keyfiles.write(directory / "own.pem", own + text)
        keyfiles.write(directory / "authority.pem", self.authority)
        self.context = tls.listening(directory / "own.pem", directory / "authority.pem")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.token = str(new_token(certificates.pin_of(self.authority)))
        self.answers: list[bytes] = []
        self.requests: list[bytes] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(plain, server_side=True) as connection:
                    self.requests.append(connection.recv(65536))
                    if self.answers:
                        connection.sendall(self.answers.pop(0))
            except OSError:
                pass
            plain.close()

    def answer(self, value: Any, status: str = "200 OK", kind: str = "application/json") -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.answers.append(head.encode() + body)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(10)


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    made = Impostor(tmp_path)
    yield made
    made.close()


def said(done: "subprocess.CompletedProcess[str]", home: Path) -> str:
    """The sentence of a join that failed and left nothing."""
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2, 3)
    assert not (home / "credentials" / "host.pem").exists()
    return done.stderr.splitlines()[0].removeprefix("biruda: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("https://h:1", "--token", "x"), "this is no join token of biruda"),
        (("h:1", "--token", "{token}"), "--url h:1: must be http://HOST:PORT, https://HOST:PORT or unix:PATH"),
        (("http://h:1", "--token", "{token}"), "http://h:1: must be https://HOST:PORT"),
        (("https://h:1/path", "--token", "{token}"), "https://h:1/path: must be https://HOST:PORT"),
        (("https://h:1",), "join: missing option '--token'"),
        ((), "join: missing argument 'URL'"),
    ],
)
def test_what_is_no_join(biruda: Run, home: Path, arguments: tuple[str, ...], sentence: str) -> None:
    token = str(new_token(b"p" * 16))
    done = biruda("join", *(each.replace("{token}", token) for each in arguments))
    assert done.returncode == 2
    assert said(done, home) == sentence


def test_nothing_is_told_to_a_stranger(biruda: Run, home: Path, impostor: Impostor) -> None:
    token = new_token(b"another farm's..")
    impostor.answer({"authority": impostor.authority})
    sentence = said(biruda("join", impostor.url, "--token", str(token)), home)
    assert sentence == (
        f"what answers at {impostor.url} is not the master that this token came from; nothing was told to it"
    )
    assert len(impostor.requests) == 1
    assert token.secret.hex().encode() not in b"".join(impostor.requests)


def test_who_shows_the_right_authority_and_is_not_of_it_learns_nothing(
    biruda: Run, home: Path, impostor: Impostor
) -> None:
    _, right = certificates.new_authority("right")
    token = new_token(certificates.pin_of(right))
    impostor.answer({"authority": right})
    assert "is not the master that this token came from" in said(
        biruda("join", impostor.url, "--token", str(token)), home
    )
    assert token.secret.hex().encode() not in b"".join(impostor.requests)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"authority": 5}',
        b'{"authority": "x"}',
        b'{"authority": "\xc3\x9f"}',
        b"x" * 70_000,
    ],
    ids=repr,
)
def test_first_answers_that_make_no_sense(biruda: Run, home: Path, impostor: Impostor, answer: bytes) -> None:
    impostor.answer(answer)
    assert said(biruda("join", impostor.url, "--token", impostor.token), home)


@pytest.mark.parametrize("certificate", ["", "x", "ß", 5, None, "another's", "a master's"])
def test_certificates_that_are_not_what_was_asked_for(
    biruda: Run, home: Path, impostor: Impostor, tmp_path: Path, certificate: Any
) -> None:
    if certificate == "another's":
        key = certificates.key_of(certificates.new_key())
        certificate, _ = certificates.issue(
            impostor.key, impostor.authority, key, role=Role.COORDINATOR, host="b", issued_s=1e9, life_s=9
        )
    elif certificate == "a master's":
        certificate = (tmp_path / "own.pem").read_text()
    impostor.answer({"authority": impostor.authority})
    impostor.answer({"host": "b", "certificate": certificate, "authority": impostor.authority}, "201 Created")
    assert said(biruda("join", impostor.url, "--token", impostor.token, "--name", "b"), home)


def test_what_is_no_biruda_at_all(biruda: Run, home: Path, impostor: Impostor) -> None:
    impostor.answer(b"<html>", "404 Not Found", "text/html")
    done = biruda("join", impostor.url, "--token", impostor.token)
    assert said(done, home) == f"what answers at {impostor.url} takes no hosts in"
    assert "hint: the port is that of [master] link_listen there" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def serve() -> None:
            connection, _ = plain.accept()
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://127.0.0.1:{plain.getsockname()[1]}"
        done = biruda("join", url, "--token", impostor.token)
        thread.join(10)
    assert said(done, home) == f"no master answers at {url}: it does not speak TLS"


def test_a_refusal_is_shown_without_what_a_terminal_obeys(biruda: Run, home: Path, impostor: Impostor) -> None:
    impostor.answer({"authority": impostor.authority})
    impostor.answer({"detail": "no\x1b[2J", "hint": "go\x07"}, "403 Forbidden", "application/problem+json")
    done = biruda("join", impostor.url, "--token", impostor.token, "--name", "b")
    assert done.stderr == "biruda: no\\x1b[2J\nhint: go\\x07\n"


def test_the_name_of_the_file_counts(biruda: Run, home: Path, impostor: Impostor) -> None:
    home.mkdir()
    (home / "biruda.conf").write_text('[coordinator]\nhost = "alder"\n')
    done = biruda("join", impostor.url, "--token", impostor.token, "--name", "beech")
    assert said(done, home) == f"--name beech: {home}/biruda.conf says [coordinator] host = 'alder'"


# A host that has joined.


@pytest.fixture
def joined(home: Path, impostor: Impostor) -> Credentials:
    """Credentials for a farm whose master is a stranger's port that answers nothing."""
    home.mkdir()
    key = certificates.new_key()
    public_key = certificates.public_key_of(certificates.new_request(key, "beech"))
    text, _ = certificates.issue(
        impostor.key, impostor.authority, public_key, role=Role.COORDINATOR, host="beech", issued_s=1e9, life_s=None
    )
    made = Credentials(home)
    made.save(key, text, impostor.authority, Joined(url="https://127.0.0.1:9", host="beech"))
    return made


def test_up_status_and_down_of_a_host_that_has_joined(biruda: Run, home: Path, joined: Credentials) -> None:
    up = biruda("up")
    try:
        assert (up.returncode, up.stderr) == (0, "")
        assert up.stdout.startswith("biruda is up on beech, pid ")
        assert "master        the one at https://127.0.0.1:9; ask there for jobs\n" in up.stdout
        assert biruda("status").stdout.startswith("● biruda ")
        status = json.loads(biruda("status", "--json").stdout)
        assert (status["host"], status["master"]) == ("beech", "https://127.0.0.1:9")
        assert not (home / "master.sock").exists()
        asked = biruda("jobs")
        assert asked.returncode == 3
        assert "hint: this host has joined another master's farm" in asked.stderr
        again = biruda("up")
        assert "biruda is already running here: coordinator" in again.stderr
        assert biruda("down", "--cancel").returncode == 2
    finally:
        down = biruda("down")
    assert down.stdout.startswith("biruda is down: what runs here goes on")
    assert "no link to the master: https://127.0.0.1:9: " in (home / "log" / "daemon.log").read_text()
    assert biruda("down").returncode == 3


def test_credentials_that_are_damaged_are_a_sentence(biruda: Run, home: Path, joined: Credentials) -> None:
    (home / "credentials" / "joined.json").write_text("[1]")
    done = biruda("coordinator")
    assert done.returncode == 1
    assert done.stderr.startswith(f"biruda: {home}/credentials/joined.json: is not what `biruda join` writes\nhint: ")
    (home / "credentials" / "joined.json").write_text('{"master": "https://127.0.0.1:9", "host": "beech"}')
    joined.own.write_text("nothing")
    done = biruda("coordinator")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"biruda: {joined.own}: holds no readable key and certificate\n" in done.stderr


def test_tls_alerts_of_ours_are_words(impostor: Impostor, tmp_path: Path) -> None:
    """A peer that speaks only TLS 1.2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(impostor.listener.getsockname()) as plain,
        pytest.raises(ssl.SSLError) as refused,
    ):
        context.wrap_socket(plain)
    assert tls.words_of(refused.value) == "it does not speak TLS 1.3"
