"""The HTTP client against a server that says exactly what a test wants, well-formed or not."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.cli.address import Address, address_of, connect
from biruda.cli.client import Client, Refused
from biruda.cli.http import ConnectionLost, Exchange
from biruda.errors import NoMaster, PeerError, UsageError

Answer = Callable[[bytes], bytes]


class Server:
    """Answers each connection with the same bytes and closes it; keeps what was asked."""

    def __init__(self, path: Path, answer: bytes, *, read_body: bool = True) -> None:
        self.address = Address(str(path), socket_path=str(path))
        self.asked = b""
        self._answer, self._read_body = answer, read_body
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(5)
                asked = b""
                while not asked.endswith((b"\r\n\r\n", b"0\r\n\r\n", b"}", b"stop")):
                    piece = connection.recv(65536)
                    asked += piece
                    if not piece or not self._read_body:
                        break
                self.asked = asked
                if asked == b"stop":
                    return
                with suppress(OSError):  # who asked may have seen enough
                    connection.sendall(self._answer)

    def close(self) -> None:
        """Stop."""
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.address.socket_path)
            last.sendall(b"stop")
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Make servers; they end with the test."""
    servers: list[Server] = []

    def make(answer: bytes, **options: bool) -> Server:
        servers.append(Server(tmp_path / f"s{len(servers)}", answer, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def fetch(server: Server) -> bytes:
    with Exchange(server.address, connect(server.address, 5)) as exchange:
        exchange.send("GET", "/x", {})
        exchange.answer()
        return exchange.read_all(1 << 20)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", b"hello"),
        (b"HTTP/1.0 200\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: 1\r\n\r\n", b"abcd"),
        (b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n0\r\n\r\n", b""),
    ],
)
def test_whole_answers(serve: Callable[..., Server], answer: bytes, body: bytes) -> None:
    server = serve(answer)
    assert fetch(server) == body
    assert server.asked.startswith(b"GET /x HTTP/1.1\r\nHost: localhost\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/1.1 banana OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcdef\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70000,
    ],
)
def test_what_is_no_http_is_said(serve: Callable[..., Server], answer: bytes) -> None:
    with pytest.raises(PeerError, match="is no biruda master: it sent"):
        fetch(serve(answer))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ],
)
def test_a_cut_answer_is_not_taken_for_a_whole_one(serve: Callable[..., Server], answer: bytes) -> None:
    with pytest.raises(ConnectionLost, match="it closed the connection"):
        fetch(serve(answer))


def test_an_answer_that_comes_before_the_body_was_sent(serve: Callable[..., Server]) -> None:
    body = b'{"detail": "too large", "title": "no"}'
    head = b"HTTP/1.1 413 Too Large\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n" % len(body)
    server = serve(head + body, read_body=False)
    with pytest.raises(Refused, match="too large"):
        Client(server.address).put("sources/x", (b"y" * 65536 for _ in range(1000)))


def test_a_large_body_is_refused_not_kept(serve: Callable[..., Server]) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20))
    with pytest.raises(PeerError, match="more than 1048576 bytes"):
        fetch(server)


def test_json_that_is_none(serve: Callable[..., Server]) -> None:
    for body in (b"<html>", b"[1]", b"\xff", b"[" * 100000):
        server = serve(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        with pytest.raises(PeerError, match="answer"):
            Client(server.address).get("status")


def test_a_proxys_error_page_is_a_sentence(serve: Callable[..., Server]) -> None:
    client = Client(serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nhey").address)
    with pytest.raises(Refused, match="answered 404 Not Found to GET jobs"):
        client.get("jobs")
    client = Client(serve(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").address)
    with pytest.raises(ConnectionLost, match="is not ready"):
        client.get("jobs")


def test_a_token_is_sent_and_parts_of_paths_are_quoted(serve: Callable[..., Server]) -> None:
    from biruda.cli.client import quote

    server = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    Client(server.address, token="s3cret").get(f"workers/{quote('a/b c?é')}", host="x&y", none=None)
    assert server.asked.startswith(b"GET /api/v1/workers/a%2Fb%20c%3F%C3%A9?host=x%26y HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer s3cret\r\n" in server.asked


def test_no_master(tmp_path: Path) -> None:
    client = Client(Address(str(tmp_path / "sock"), socket_path=str(tmp_path / "sock")), start_hint="biruda up")
    with pytest.raises(NoMaster, match=r"no master answers at .*/sock: there is no such socket") as caught:
        client.get("status")
    assert caught.value.hint == "biruda up"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "sock"))
    with pytest.raises(NoMaster, match="nobody listens there"):
        client.reach()


def test_a_socket_path_longer_than_an_address_holds(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "master.sock").symlink_to(server.address.socket_path)
    assert Client(Address("x", socket_path=str(deep / "master.sock"))).get("status").raw == {}
    with pytest.raises(NoMaster, match="there is no such socket"):
        Client(Address("x", socket_path=str(deep / "other.sock"))).get("status")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://farm:8077", ("", "farm", 8077, False, "")),
        ("http://farm", ("", "farm", 80, False, "")),
        ("https://farm/", ("", "farm", 443, True, "")),
        ("https://farm/ci/", ("", "farm", 443, True, "/ci")),
        ("http://[::1]:80", ("", "::1", 80, False, "")),
        ("unix:/run/x", ("/run/x", "", 0, False, "")),
        ("unix:///run/x", ("/run/x", "", 0, False, "")),
    ],
)
def test_urls(url: str, expected: tuple[object, ...]) -> None:
    assert tuple(address_of(url))[1:] == expected


@pytest.mark.parametrize(
    "url", ["farm:80", "ftp://farm", "http://", "http://farm:x", "http://farm:99999", "http://u@f"]
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match="must be http://HOST:PORT"):
        address_of(url)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.data())
def test_any_cut_of_a_chunked_answer_reads_the_same(chunks: list[bytes], data: st.DataObject) -> None:
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]

    ours, theirs = socket.socketpair()

    def send() -> None:
        for piece in pieces:
            theirs.sendall(piece)
        theirs.close()

    sender = threading.Thread(target=send)
    sender.start()
    with Exchange(Address("x"), ours) as exchange:
        exchange.answer()
        assert exchange.read_all(1 << 20) == b"".join(chunks)
    sender.join()
