"""Where a master is, and a connected socket to it: a Unix socket of this host, or TCP."""

import os
import socket
from typing import NamedTuple

from biruda.cli.text import escape
from biruda.errors import NoMaster, UsageError

_LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path, less its NUL


class Address(NamedTuple):
    """Where a master is asked: a Unix socket when `socket_path` is set, else TCP."""

    shown: str  # as people write it
    socket_path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    base: str = ""  # a path before /api, when a proxy serves several things

    @property
    def host_header(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}" if self.host else "localhost"


def address_of(url: str) -> Address:
    """The address that http://HOST:PORT, https://… or unix:PATH names; UsageError for anything else."""
    from urllib.parse import urlsplit  # 3 ms, and most commands use the socket of this host

    if url.startswith("unix:"):
        path = url.removeprefix("unix://") if url.startswith("unix://") else url.removeprefix("unix:")
        return Address(path, socket_path=path)
    wrong = UsageError(f"--url {escape(url)}: must be http://HOST:PORT, https://HOST:PORT or unix:PATH")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise wrong
    return Address(
        url.rstrip("/"), host=parts.hostname, port=port, tls=parts.scheme == "https", base=parts.path.rstrip("/")
    )


def connect(address: Address, timeout_s: float) -> socket.socket:
    """A connected stream; the caller closes it. NoMaster says why there is none."""
    try:
        return (
            _connect_unix(address.socket_path, timeout_s) if address.socket_path else _connect_tcp(address, timeout_s)
        )
    except OSError as error:
        raise NoMaster(
            f"no master answers at {escape(address.shown)}: {reason_of(error)}", hint=_hint(error)
        ) from error


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    directory, name = os.path.split(path)
    descriptor = -1
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            descriptor = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{descriptor}/{name}"
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return connection


def _connect_tcp(address: Address, timeout_s: float) -> socket.socket:
    connection = socket.create_connection((address.host, address.port), timeout=timeout_s)
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a follower may be silent for hours
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        if address.tls:
            import ssl

            return ssl.create_default_context().wrap_socket(connection, server_hostname=address.host)
    except BaseException:
        connection.close()
        raise
    return connection


def reason_of(error: OSError) -> str:
    """Why a connection is not there, in words."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "there is no such socket"
        case ConnectionRefusedError():
            return "nobody listens there"
        case PermissionError():
            return "only its owner and root may use it"
        case TimeoutError():
            return "no answer in time"
        case socket.gaierror():
            return "the name of the host is not known"
        case _:
            return (error.strerror or str(error)).lower()


def _hint(error: OSError) -> str:
    return "run the command as the user who started it" if isinstance(error, PermissionError) else ""
