"""How a coordinator gets its links to the master: in the process, by a socket, over TCP, over TLS, or by listening."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from biruda.config import Config
from biruda.coordinator.credentials import Credentials, new_request
from biruda.errors import BirudaError, ConfigError, NoMaster, PeerError
from biruda.link import Transport
from biruda.transports import MESSAGE_BYTES, MemoryTransport, WebSocketTransport, memory_pair, open_websocket
from biruda.trust import tls

if TYPE_CHECKING:
    import aiohttp

    from biruda.coordinator.service import Dial
    from biruda.master.service import Master

log = logging.getLogger("biruda")

CONNECT_S: Final = 10.0
RETRY_S: Final = 1.0
RETRY_MOST_S: Final = 3600.0
LONGEST_SLEEP_S: Final = 86400.0


@asynccontextmanager
async def dialler(home: Path, config: Config, host: str, master: "Master | None") -> "AsyncIterator[Dial]":
    """What the coordinator calls for each connection. Raises ConfigError where it cannot have any."""
    settings = config.coordinator
    async with AsyncExitStack() as stack:
        if settings.listen is not None:
            from biruda.cli.listening import listening

            yield await stack.enter_async_context(listening(home, settings.listen, host))
            return
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        if master is not None and not settings.master:
            yield _within(master, tasks)
        elif settings.master.startswith("https://"):
            yield await stack.enter_async_context(_over_tls(Credentials(home), settings.master, tasks))
        else:
            yield await stack.enter_async_context(_over_http(home, config))


def _within(master: "Master", tasks: asyncio.TaskGroup) -> "Dial":
    async def dial() -> Transport:
        mine, theirs = memory_pair("the coordinator", "the master")
        tasks.create_task(_serve_here(master, theirs), name="link within the process")
        return mine

    return dial


async def _serve_here(master: "Master", transport: MemoryTransport) -> None:
    try:
        await master.hosts.serve(transport)
    except* (BirudaError, ConnectionError) as group:
        for error in group.exceptions:
            log.warning("%s", error)


@asynccontextmanager
async def _over_http(home: Path, config: Config) -> "AsyncIterator[Dial]":
    """By the Unix socket of this home, or over TCP with the master's token and in the clear."""
    import aiohttp

    url, headers, connector = _address(home, config)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def dial() -> Transport:
            async with asyncio.timeout(CONNECT_S):
                try:
                    websocket = await session.ws_connect(
                        f"{url}/api/v1/link", headers=headers, max_msg_size=MESSAGE_BYTES, compress=0
                    )
                except aiohttp.WSServerHandshakeError as error:
                    said = "the token is not the master's" if error.status == 401 else f"HTTP {error.status}"
                    raise PeerError(
                        f"{url}: {said}", hint="[coordinator] token_file names the master's token"
                    ) from None
                except aiohttp.ClientError as error:
                    raise NoMaster(f"no master answers at {config.coordinator.master or home}: {error}") from None
            return WebSocketTransport(websocket, config.coordinator.master or "this home's socket")

        yield dial


def _address(home: Path, config: Config) -> "tuple[str, dict[str, str], aiohttp.BaseConnector]":
    import aiohttp

    url = config.coordinator.master.rstrip("/")
    if not url:
        directory = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # a Unix address holds 107 bytes only
        return "http://biruda", {}, aiohttp.UnixConnector(f"/proc/self/fd/{directory}/master.sock")
    path = config.coordinator.token_file or os.fspath(home / "token")
    try:
        token = Path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"[coordinator] token_file: {path} cannot be read: {error}", hint="copy HOME/token of the master there"
        ) from error
    return url, {"Authorization": f"Bearer {token}"}, aiohttp.TCPConnector()


# Over TLS.


@asynccontextmanager
async def _over_tls(credentials: Credentials, url: str, tasks: asyncio.TaskGroup) -> "AsyncIterator[Dial]":
    import aiohttp

    credentials.check()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:

        async def dial() -> Transport:
            credentials.check()  # what does not fit is said here in words, and not by an alert from there
            context = tls.dialling_master(credentials.authority, credentials.own)
            try:
                websocket = await open_websocket(
                    session, f"{url}/api/v1/link", context=context, name=tls.MASTER_NAME, limit_s=CONNECT_S
                )
            except ConnectionError as error:
                raise NoMaster(f"{url}: {error}") from None
            return WebSocketTransport(websocket, url)

        renewing = tasks.create_task(_keep_renewed(credentials, url, session), name="certificate")
        try:
            yield dial
        finally:
            renewing.cancel()


async def _keep_renewed(credentials: Credentials, url: str, session: "aiohttp.ClientSession") -> None:
    """A new certificate whenever a third of the old one's life is left, by the master's clock."""
    pause_s, told, let_in = RETRY_S, "", False
    while True:
        try:
            left_s, life_s = await _life(credentials, url, session)
            let_in = True
            if left_s <= life_s / 3:
                await _renew(credentials, url, session)
                continue
            pause_s, told = RETRY_S, ""
            await asyncio.sleep(min(left_s - life_s / 3, LONGEST_SLEEP_S))
        except (OSError, TimeoutError, BirudaError) as error:
            problem = str(error)
            if problem != told and let_in:  # before it was let in, the link tells the same
                log.warning("the certificate cannot be renewed: %s; trying again", problem)
                told = problem
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_MOST_S, pause_s * 2)


async def _life(credentials: Credentials, url: str, session: "aiohttp.ClientSession") -> tuple[float, float]:
    answer = await _ask(credentials, url, session, "GET", None)
    left_s, life_s = answer.get("left_s"), answer.get("life_s")
    if not isinstance(left_s, int | float) or not isinstance(life_s, int | float):
        raise PeerError(f"{url} did not say how long the certificate is good for")
    return left_s, life_s


async def _renew(credentials: Credentials, url: str, session: "aiohttp.ClientSession") -> None:
    host = credentials.check().host
    key, request = await asyncio.to_thread(new_request, host)
    answer = await _ask(credentials, url, session, "POST", {"request": request})
    certificate = answer.get("certificate")
    if not isinstance(certificate, str):
        raise PeerError(f"{url} sent no certificate")
    await asyncio.to_thread(credentials.renew, key, certificate, host)
    log.info("the certificate was renewed, until %s", answer.get("expires"))


async def _ask(
    credentials: Credentials, url: str, session: "aiohttp.ClientSession", method: str, body: Any
) -> dict[str, Any]:
    """The master's JSON about the certificate that is shown. PeerError with its words where it refuses."""
    import aiohttp

    context = tls.dialling_master(credentials.authority, credentials.own)
    limit = aiohttp.ClientTimeout(total=CONNECT_S)
    try:
        async with session.request(
            method, f"{url}/api/v1/certificate", json=body, ssl=context, server_hostname=tls.MASTER_NAME, timeout=limit
        ) as response:
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, OSError) as error:
        inner = tls.inner_error(error)
        raise NoMaster(f"{url}: {tls.words_of(inner) if inner else error}") from None
    except ValueError:
        raise PeerError(f"{url}: it answers what is no JSON") from None
    if not isinstance(answer, dict):
        raise PeerError(f"{url}: it answers what is no JSON object")
    if response.status >= 400:
        raise PeerError(f"{url}: {str(answer.get('detail') or response.status)[:500]}")
    return answer
