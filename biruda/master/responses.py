"""How the HTTP sides of the master answer: JSON, and every error as an RFC 9457 problem document."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from biruda.errors import BirudaError, NotFound, PeerError, UserError
from biruda.master import requests as rq
from biruda.master.joining import NotAdmitted
from biruda.master.tries import TooManyTries

log = logging.getLogger("biruda.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

USER = web.RequestKey("user", str)

TITLES = {
    400: "Bad request",
    401: "No valid token",
    403: "Not allowed",
    404: "Not found",
    405: "No such method",
    408: "Too slow",
    409: "Ambiguous or in conflict",
    413: "Too large",
    416: "No such range",
    422: "Cannot be done",
    429: "Too many tries",
    500: "A fault of biruda",
    503: "Too many connections",
}

BODY_S = 60.0
"""So long a request's body, where it is read as a whole, may take to arrive."""


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json", status=status)


def problem(status: int, detail: str, hint: str = "", **more: Any) -> web.Response:
    """An RFC 9457 problem document."""
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status, "detail": detail, **more}
    if hint:
        body["hint"] = hint
    return web.Response(body=orjson.dumps(body), content_type="application/problem+json", status=status)


async def body_of(request: web.Request) -> bytes:
    """The whole body of a request. Raises HTTPRequestTimeout when it does not come."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None


async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the handler answers, or the problem document of what it raises."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return problem(404, f"there is nothing at {request.path}", "/api/v1/openapi.json lists what there is")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = problem(405, f"{request.method} {request.path}: there are {allowed}")
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPRequestTimeout:
        answer = problem(408, f"the body did not come within {BODY_S:g} s")
        answer.force_close()
        return answer
    except web.HTTPRequestEntityTooLarge:
        return problem(413, f"the body is larger than {request.client_max_size} bytes", "send it in several requests")
    except web.HTTPException:
        raise
    except web.RequestPayloadError as error:
        return problem(400, f"the body cannot be read: {' '.join(str(error).split())}")
    except rq.Ambiguous as error:
        return problem(409, str(error), error.hint, candidates=error.candidates)
    except rq.InvalidRequest as error:
        return problem(422, str(error), error.hint)
    except (NotAdmitted, rq.NotAllowed) as error:
        return problem(403, str(error), error.hint)
    except TooManyTries as error:
        return problem(429, str(error), error.hint)
    except PeerError as error:
        return problem(400, str(error), error.hint)
    except UserError as error:
        return problem(404 if isinstance(error, NotFound) else 409, str(error), error.hint)
    except BirudaError as error:
        return problem(422, str(error), error.hint)
    except (ConnectionResetError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("%s %s", request.method, request.path)
        return problem(
            500, f"{request.method} {request.path} hit a fault of biruda", "the daemon's log has the traceback"
        )
