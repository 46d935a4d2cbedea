"""Connections that say nothing, too slowly or too much, that take nothing, and too many of them: others are served."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from biruda.master import api, connections, responses
from tests.fakes import job_spec
from tests.master.test_api import TOKEN, Client, served

REQUEST = f"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.4)
    monkeypatch.setattr(responses, "BODY_S", 0.3)
    monkeypatch.setattr(api, "LINGERING_S", 0.3)
    monkeypatch.setattr(api, "STALL_S", 0.3)


async def connect(client: Client) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = client.tcp.removeprefix("http://").rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel holds little of what is not read
    sock.connect((host, int(port)))
    return await asyncio.open_connection(sock=sock)


async def until_cut(reader: asyncio.StreamReader) -> bytes:
    """What still came."""
    came = b""
    async with asyncio.timeout(10):
        try:
            while piece := await reader.read(1 << 16):
                came += piece
        except ConnectionResetError:
            pass
    return came


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, Any]:
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line.split()[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        return int(head.split()[1]), json.loads(await reader.readexactly(size))


async def test_who_says_nothing_is_cut(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        silent = [await connect(client) for _ in range(3)]
        friend, writer = await connect(client)
        writer.write(REQUEST)
        assert (await answer_of(friend))[0] == 200
        for reader, _ in silent:
            assert await until_cut(reader) == b""
        writer.write(REQUEST)  # one that has asked may be idle for longer
        assert (await answer_of(friend))[0] == 200
        for _, each in (*silent, (friend, writer)):
            each.close()


async def test_headers_that_come_byte_by_byte_are_cut(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        reader, writer = await connect(client)
        cut = asyncio.ensure_future(until_cut(reader))
        sent = 0
        while not cut.done():
            writer.write(b"GET /api/v1/status HTTP/1.1\r\nX: y"[sent : sent + 1] or b"y")
            sent += 1
            await asyncio.sleep(0.02)
        assert await cut == b""
        writer.close()


async def test_too_many_are_turned_away_and_the_socket_of_this_host_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 30.0)
    monkeypatch.setattr(connections, "most_connections", lambda: 40)
    async with served(tmp_path) as client:
        many = [await connect(client) for _ in range(60)]
        for reader, writer in many[40:]:
            status, problem = await answer_of(reader)
            assert (status, problem["status"], problem["hint"]) == (503, 503, "try again later")
            assert await reader.read() == b""
            writer.close()
        await client.get("/api/v1/status")  # over the Unix socket
        for _, writer in many[:40]:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(10):
            while True:
                reader, writer = await connect(client)
                writer.write(REQUEST)
                status, _ = await answer_of(reader)
                writer.close()
                if status == 200:
                    return


@pytest.mark.parametrize(
    "headers",
    [
        b"X-Large: " + b"x" * 5_000_000,
        b"".join(b"X-%d: x\r\n" % number for number in range(200_000)),
        b"X" * 1_000_000 + b": x",
        b"Cookie: " + b"a=b; " * 200_000,
    ],
    ids=["one large", "many", "a long name", "cookies"],
)
async def test_giant_headers_are_refused(tmp_path: Path, headers: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path) as client:
        reader, writer = await connect(client)
        writer.write(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n")
        assert (await until_cut(reader)).split()[1:2] in ([b"400"], [b"431"], [])
        writer.close()
        await client.get("/api/v1/status")
    assert "Traceback" not in caplog.text


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        reader, writer = await connect(client)
        writer.write(REQUEST.replace(b"GET /api/v1/status", b"POST /api/v1/jobs").replace(b"\r\n\r\n", b"\r\n"))
        writer.write(b'Content-Length: 1000\r\n\r\n{"jobs":')
        assert (await answer_of(reader))[0] == 408
        assert await until_cut(reader) == b""
        writer.close()


async def until_dropped(client: Client) -> None:
    """No connection over TCP is open any more."""
    async with asyncio.timeout(30):
        while client.doors[1].open_count:
            await asyncio.sleep(0.01)


async def test_a_log_that_nobody_takes_is_not_held_for_ever(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        job = await client.ended(b"x" * (3 << 20))
        reader, writer = await connect(client)
        writer.write(REQUEST.replace(b"/status", b"/jobs/%d/log" % job))
        await reader.readuntil(b"\r\n\r\n")  # and no more: what is buffered here has a limit
        await until_dropped(client)
        assert len(await until_cut(reader)) < 3 << 20
        writer.close()


UPGRADE = (
    b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


@pytest.mark.parametrize("history", [0, 60_000], ids=["as they come", "from the past"])
async def test_a_websocket_that_never_reads_is_dropped_and_can_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: int
) -> None:
    monkeypatch.setattr(api, "SUBSCRIBER_EVENTS", 100)
    async with served(tmp_path) as client:
        await submit_many(client, history)
        reader, writer = await connect(client)
        asked = REQUEST.replace(b"/status", b"/events?after=0").replace(b"\r\n\r\n", UPGRADE)
        writer.write(asked)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(60):
            while client.doors[1].open_count or client.master.next_event < 400:
                await client.master.submit((job_spec(env="nowhere"),) * 50)
        assert client.master.subscribers == set()
        writer.close()
        seen = 0
        async with client.session.ws_connect("http://master/api/v1/events?after=41") as websocket:
            async with asyncio.timeout(10):
                while seen < 300:
                    seen += 1
                    assert (await websocket.receive_json())["id"] == 41 + seen


async def submit_many(client: Client, count: int) -> None:
    for _ in range(0, count, 500):
        await client.master.submit((job_spec(env="nowhere"),) * 500)


async def test_who_leaves_before_his_answer_leaves_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as client:
        for path in (b"/jobs", b"/events", b"/link"):
            for pause_s in (0.0, 0.001, 0.002):
                _, writer = await connect(client)
                writer.write(REQUEST.replace(b"/status", path).replace(b"\r\n\r\n", UPGRADE) * 2)
                await asyncio.sleep(pause_s)
                writer.transport.abort()
        await until_dropped(client)
    assert "Traceback" not in caplog.text
