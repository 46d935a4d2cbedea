"""What commands ask of the API: one method call, one exchange. Refusals become errors a person can act on."""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from biruda.cli.address import Address, connect
from biruda.cli.answers import Fields, fields
from biruda.cli.http import ConnectionLost, Exchange
from biruda.cli.text import escape
from biruda.errors import NoMaster, UserError

MOST_JSON_BYTES = 256 * 1024 * 1024
_LONG_WORK_S = 600  # putting a source pack of many GiB together takes its time
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

Body = bytes | Iterable[bytes] | None


class Refused(UserError):
    """The master understood and said no."""

    def __init__(self, message: str, *, hint: str, status: int, problem: Fields | None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.problem = problem


class Client:
    """Asks one master. Holds no connection between calls, so it may be used from several threads."""

    def __init__(self, address: Address, *, token: str = "", start_hint: str = "", timeout_s: float = 60.0) -> None:
        self.address = address
        self._token = token
        self._start_hint = start_hint
        self._timeout_s = timeout_s

    def reach(self) -> None:
        """Raise NoMaster when nobody listens, before any work is done for nothing."""
        try:
            connect(self.address, self._timeout_s).close()
        except NoMaster as error:
            error.hint = error.hint or self._start_hint
            raise

    def get(self, path: str, *, wait_s: int = 0, **query: object) -> Fields:
        """The JSON of a GET. wait_s: how long the master may take longer than usual, passed on to it."""
        if wait_s:
            query["wait_s"] = wait_s
        return self._ask("GET", path, query, None, wait_s)

    def post(self, path: str, body: object = None, *, wait_s: int = 0) -> Fields:
        """The JSON of a POST of a JSON body."""
        return self._ask("POST", path, {}, json.dumps({} if body is None else body).encode(), wait_s)

    def post_bytes(self, path: str, body: bytes) -> Fields:
        """The JSON that answers a POST of bytes."""
        return self._ask("POST", path, {}, iter([body]), _LONG_WORK_S)

    def delete(self, path: str, **query: object) -> Fields:
        """The JSON of a DELETE."""
        return self._ask("DELETE", path, query, None, 0)

    def put(self, path: str, body: Iterable[bytes]) -> Fields:
        """The JSON that answers a PUT of a body in pieces."""
        return self._ask("PUT", path, {}, body, _LONG_WORK_S)

    def open(self, path: str, query: Mapping[str, object]) -> Exchange:
        """A GET that was sent and whose answer() has not been read; the caller closes it and calls check()."""
        return self._send("GET", path, query, None, self._timeout_s)

    def check(self, exchange: Exchange, what: str) -> None:
        """Raise what an answer of 400 or more means; its head has been read."""
        if exchange.status < 300:
            return
        body = exchange.read_all(MOST_JSON_BYTES)
        problem = None
        if exchange.headers.get("content-type", "").startswith("application/problem+json"):
            problem = fields(body, what)
        where = escape(self.address.shown)
        sentence = problem.text("detail") or problem.text("title") if problem else ""
        if not sentence:
            sentence = f"the master at {where} answered {exchange.status} {exchange.phrase} to {what}"
        if exchange.status in (502, 503, 504):
            raise ConnectionLost(f"the master at {where} is not ready: {escape(sentence)}")
        hint = problem.text("hint") if problem else ""
        if exchange.status == 401:
            hint = "give the token in HOME/token of the master with --token-file FILE or in $BIRUDA_TOKEN"
        raise Refused(escape(sentence), hint=escape(hint), status=exchange.status, problem=problem)

    def _ask(self, method: str, path: str, query: Mapping[str, object], body: Body, wait_s: int) -> Fields:
        what = f"{method} {path}"
        with self._send(method, path, query, body, self._timeout_s + wait_s) as exchange:
            exchange.answer()
            self.check(exchange, what)
            return fields(exchange.read_all(MOST_JSON_BYTES), what)

    def _send(self, method: str, path: str, query: Mapping[str, object], body: Body, timeout_s: float) -> Exchange:
        headers = {"Accept": "application/json, */*;q=0.1"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if isinstance(body, bytes):
            headers["Content-Type"] = "application/json"
        elif body is not None:
            headers["Content-Type"] = "application/octet-stream"
        try:
            exchange = Exchange(self.address, connect(self.address, timeout_s))
        except NoMaster as error:
            error.hint = error.hint or self._start_hint
            raise
        try:
            exchange.send(method, "/api/v1/" + path + _query(query), headers, body)
        except BaseException:
            exchange.close()
            raise
        return exchange


def quote(part: str) -> str:
    """One part of a path, percent-encoded."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in os.fsencode(part))


def _query(query: Mapping[str, object]) -> str:
    pairs = [f"{key}={quote(str(value))}" for key, value in query.items() if value is not None and value != ""]
    return "?" + "&".join(pairs) if pairs else ""


def as_json(value: Any) -> str:
    """JSON for people and programs: indented, in the order of the API, and ASCII: nothing that a terminal obeys."""
    return json.dumps(value, indent=2)
