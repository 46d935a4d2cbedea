"""Whatever is sent to the API, it is an answer or a problem and never a fault of ours."""

import asyncio
import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_from_bytes, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.master import api, openapi
from biruda.messages import Samples, SamplesWanted
from biruda.model import Recipe
from tests.fakes import FakeCoordinator, values, worker
from tests.master.test_api import served
from tests.master.test_service import SAMPLE


class Obliging(FakeCoordinator):
    """Answers at once whatever it is asked."""

    def obey(self, message: Any) -> None:
        super().obey(message)
        if message == SamplesWanted(wanted=True):
            self.tell(Samples(samples=(replace(SAMPLE, cpu=0.1),)))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a thread, with a job that passed and a worker."""
    home = tmp_path_factory.mktemp("home")
    ready, failed = threading.Event(), []
    state: dict[str, Any] = {}

    async def serve() -> None:
        async with served(home, host_kind=Obliging, workers=(worker("web"),)) as client:
            await client.ended(b"some log", artifacts={"a/b": b"content"})
            state["loop"], state["end"] = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await state["end"].wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    assert not failed
    directory = os.open(home, os.O_PATH)
    yield f"/proc/self/fd/{directory}/master.sock"
    os.close(directory)
    state["loop"].call_soon_threadsafe(state["end"].set)
    thread.join()
    assert not failed


class Connection(http.client.HTTPConnection):
    def __init__(self, address: str) -> None:
        super().__init__("master", timeout=10)
        self.address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.address)


def ask(address: str, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> None:
    connection = Connection(address)
    try:
        connection.request(method, target, body=body, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    assert answer.status < 500, content
    kind = answer.headers.get_content_type()
    if answer.status >= 400 and kind == "application/problem+json" and method != "HEAD":
        problem = json.loads(content)
        assert problem["status"] == answer.status
        assert problem["title"]
        assert problem["detail"]
    elif answer.status >= 400:
        assert answer.status == 400 or method in ("HEAD", "OPTIONS", "PATCH"), (answer.status, kind, content)


WORDS = ["1", "2", "0", "99", "web", "bookworm", "h1", "a/b", "status", "..", "%2e%2e", "x" * 300, "9" * 30, "-1", "²"]
segments = st.one_of(
    st.sampled_from(WORDS).map(lambda word: quote(word, safe="%/")),
    st.text(max_size=10).map(lambda text: quote(text, safe="")),
    st.binary(max_size=10).map(lambda data: quote_from_bytes(data, safe="")),
)
templates = st.sampled_from(sorted({path for _, path, *_ in openapi.OPERATIONS} | {"/api/v1/link", "/", "/api/v2"}))


QUERIES = ("state", "outcome", "worker", "before", "limit", "offset", "attempt", "host", "after", "x")


@st.composite
def targets(draw: st.DrawFn) -> str:
    parts = [draw(segments) if part.startswith("{") else part for part in draw(templates).split("/")]
    names = st.sampled_from(
        ["state", "outcome", "worker", "before", "limit", "offset", "attempt", "host", "after", "x"]
    )
    query = draw(
        st.dictionaries(names, st.sampled_from(WORDS) | st.text(max_size=8) | st.integers().map(str), max_size=3)
    )
    raw = draw(st.sampled_from(["", "", "", "&limit=%ff", "&worker=%ed%a0%80", "&&", "&=", "&outcome=%00", "#x"]))
    return "/".join(parts) + "?" + urlencode(query, errors="replace") + raw


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
requests = st.fixed_dictionaries(
    {"recipe": values(Recipe).map(api.encode)},
    optional={
        "name": st.text(),
        "requirements": st.dictionaries(st.sampled_from(["arch", "env", "host", "x"]), st.text(max_size=5), max_size=2),
        "source": st.none() | st.text(max_size=8),
        "priority": st.integers(),
        "retries": st.integers(-1, 200),
        "queue": st.booleans(),
        "more": json_values,
    },
)
bodies = st.one_of(
    st.none(),
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({"jobs": st.lists(requests, max_size=2)}).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"{}", b'{"all":true}', b'{"arch":"amd64"}', b'{"host":"h1"}', b'{"reason":"\\ud800"}', b"\0" * 20]
    ),
)
some_headers = st.dictionaries(
    st.sampled_from(["Range", "Authorization", "Content-Type", "Accept-Encoding", "If-Range", "Content-Encoding"]),
    st.sampled_from(["bytes=0-", "bytes=-0", "bytes=5-1", "gzip", "text/plain; charset=nonsense", "x" * 100, "\xff"]),
    max_size=2,
)
methods = st.sampled_from(["GET", "GET", "GET", "POST", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"])


@settings(max_examples=300, deadline=None)
@given(methods, targets(), bodies, some_headers)
def test_any_request_has_an_answer(
    address: str, method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> None:
    ask(address, method, target, body, headers)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([(method.upper(), path) for method, path, *_ in openapi.OPERATIONS]), segments, bodies)
def test_any_body_has_an_answer(address: str, operation: tuple[str, str], segment: str, body: bytes | None) -> None:
    method, path = operation
    parts = [segment if part.startswith("{") else part for part in path.split("/")]
    ask(address, method, "/".join(parts), body, {})


@pytest.mark.parametrize(
    "raw",
    [
        b"GET\r\n\r\n",
        b"GET /api/v1/status HTTP/9.9\r\n\r\n",
        b"GET /api/v1/jobs?limit=\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/v1/jobs/1/artifacts/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"GET http://[x/api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_raw_nonsense_is_answered_or_cut_off(address: str, raw: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(address)
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    assert b" 500 " not in answer.partition(b"\r\n")[0]
