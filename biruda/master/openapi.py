"""The OpenAPI document and the schema of a job, made from the types that the API really uses."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import msgspec

from biruda import VERSION
from biruda.master import requests as rq
from biruda.master.api_access import AccessTokenRequest
from biruda.master.api_importing import GitRequest
from biruda.master.api_joining import TokenRequest
from biruda.master.statistics import KEYS
from biruda.model import Artifact, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class LogView:
    """What is stored of a log; complete: byte for byte what was printed."""

    bytes: int
    sha256: str
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as `show --json`, `jobs --json` and the spool's .json give it."""

    job: int
    attempt: int | None
    state: str
    name: str
    user: str
    priority: int
    requirements: dict[str, str]
    worker: str | None
    source: str | None
    submitted: str
    started: str | None
    finished: str | None
    arch: str | None
    platform: str | None
    host: str | None
    kind: str | None
    environment: str | None
    outcome: str | None
    exit_status: int | None
    reason: str
    steps: list[StepResult]
    log: LogView | None
    artifacts: list[Artifact]
    spool: str | None
    facts: dict[str, Any] | None
    attempts: list[dict[str, Any]]
    retries: int
    cancelling: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNumbers:
    jobs: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    jobs: list[JobView]
    next: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A job that was named and left alone, and why."""

    job: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """What was done to many jobs."""

    jobs: list[int]
    refused: list[Refused]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    hint: str = ""


OBJECT = dict[str, Any]
"""An answer whose keys docs/api.md lists."""

# method, path, summary, type of the body, status and type of the answer: a media type, or "" for bytes
OPERATIONS: tuple[tuple[str, str, str, Any, int, Any], ...] = (
    ("get", "/api/v1/status", "This daemon", None, 200, OBJECT),
    ("post", "/api/v1/jobs", "Submit jobs; on disk when answered", rq.JobsRequest, 201, JobNumbers),
    ("get", "/api/v1/jobs", "Jobs, newest first", None, 200, JobPage),
    ("post", "/api/v1/jobs/cancel", "End many jobs", rq.Selection, 202, Bulk),
    ("post", "/api/v1/jobs/retry", "Run many finished jobs again", rq.Selection, 201, Bulk),
    ("get", "/api/v1/jobs/{job}", "One job; wait_s waits for its end", None, 200, JobView),
    ("post", "/api/v1/jobs/{job}/cancel", "End a job", rq.ReasonRequest, 202, JobView),
    ("post", "/api/v1/jobs/{job}/retry", "Run a finished job again", None, 201, JobView),
    ("post", "/api/v1/jobs/{job}/again", "Submit the same anew, perhaps elsewhere", rq.AgainRequest, 201, JobNumbers),
    ("get", "/api/v1/jobs/{job}/compare", "What is new since the last run that passed", None, 200, OBJECT),
    ("get", "/api/v1/jobs/{job}/samples", "What its host did meanwhile", None, 200, OBJECT),
    ("get", "/api/v1/jobs/{job}/why", "Why a job waits", None, 200, OBJECT),
    ("get", "/api/v1/jobs/{job}/log", "Log bytes: offset, limit, follow, attempt, Range", None, 200, ""),
    ("get", "/api/v1/jobs/{job}/log/lines", "Lines of the log", None, 200, OBJECT),
    ("get", "/api/v1/jobs/{job}/log/index", "How many lines, and where each step begins", None, 200, OBJECT),
    ("get", "/api/v1/jobs/{job}/log/errors", "Where the log tells what went wrong", None, 200, OBJECT),
    (
        "get",
        "/api/v1/jobs/{job}/log/search",
        "Lines that have a text, as they are found",
        None,
        200,
        "application/x-ndjson",
    ),
    ("get", "/api/v1/jobs/{job}/artifacts", "What was collected", None, 200, OBJECT),
    ("get", "/api/v1/jobs/{job}/artifacts/{path}", "One artifact", None, 200, ""),
    ("get", "/api/v1/jobs/{job}/previews/{path}", "A part of an artifact to show", None, 200, "*/*"),
    ("get", "/api/v1/workers", "Named workers", None, 200, OBJECT),
    ("post", "/api/v1/workers/{name}/start", "Start a named worker", rq.WorkerSelection, 201, JobNumbers),
    ("post", "/api/v1/workers/{name}/stop", "End what runs of a named worker", rq.WorkerSelection, 202, JobNumbers),
    ("get", "/api/v1/environments", "Environments of all hosts", None, 200, OBJECT),
    ("get", "/api/v1/environments/{name}", "One environment", None, 200, OBJECT),
    ("post", "/api/v1/environments/{name}/probe", "Test an environment again", rq.HostRequest, 200, OBJECT),
    ("delete", "/api/v1/environments/{name}", "Remove a built environment", None, 200, OBJECT),
    ("get", "/api/v1/coordinators", "Coordinators", None, 200, OBJECT),
    ("post", "/api/v1/coordinators/{host}/reload", "Read environments again", None, 200, OBJECT),
    ("get", "/api/v1/coordinators/{host}/samples", "What a host did each second", None, 200, OBJECT),
    ("post", "/api/v1/sources/missing", "Which chunks of a source pack are not here", None, 200, OBJECT),
    ("put", "/api/v1/sources/{digest}", "Send a source pack's missing chunks", None, 201, OBJECT),
    ("post", "/api/v1/imports/tarball", "Make a source pack of a tar file", None, 201, OBJECT),
    ("post", "/api/v1/imports/git", "Make one of a git repository", GitRequest, 201, OBJECT),
    ("post", "/api/v1/tokens", "Make a join token", TokenRequest, 201, OBJECT),
    ("get", "/api/v1/hosts", "Hosts that have joined", None, 200, OBJECT),
    ("post", "/api/v1/hosts/{host}/revoke", "Let a host in no more", rq.ReasonRequest, 200, OBJECT),
    ("get", "/api/v1/farm", "The whole farm at a glance", None, 200, OBJECT),
    ("get", "/api/v1/statistics", "How the farm did in the last hours", None, 200, OBJECT),
    ("get", "/api/v1/me", "Who asks, and their role", None, 200, OBJECT),
    ("get", "/api/v1/access-tokens", "Tokens with a name and a role", None, 200, OBJECT),
    ("post", "/api/v1/access-tokens", "Make one", AccessTokenRequest, 201, OBJECT),
    ("delete", "/api/v1/access-tokens/{name}", "End one", None, 200, OBJECT),
    ("get", "/api/v1/events", "Events on a WebSocket; after resumes", None, 101, ""),
    ("get", "/api/v1/openapi.json", "This document", None, 200, OBJECT),
    ("get", "/api/v1/schemas/job.json", "JSON Schema of a job", None, 200, OBJECT),
)

MOST: Final = 10**18 - 1
"""The largest number that a query or a path may name."""


def _whole(low: int = 0) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": MOST}


STRING: Final = {"type": "string"}
SWITCH: Final = {"type": "string", "enum": ["0", "1", "true", "false"]}
STATES: Final = {"type": "string", "enum": ["waiting", "running", "finished", "unfinished"]}

QUERIES: dict[str, dict[str, dict[str, Any]]] = {
    "/api/v1/jobs": {
        "state": STATES,
        **dict.fromkeys(("outcome", "name", "worker", "user", "host", "env", "arch", "platform"), STRING),
        **dict.fromkeys(("since", "until", "jobs"), STRING),
        **dict.fromkeys(("before", "after", "skip"), _whole()),
        "limit": _whole(1),
        **dict.fromkeys(("brief", "count"), SWITCH),
    },
    "/api/v1/jobs/{job}": {"wait_s": _whole()},
    "/api/v1/jobs/{job}/log": {"offset": _whole(), "limit": _whole(), "follow": SWITCH, "attempt": _whole(1)},
    "/api/v1/jobs/{job}/log/lines": {
        **dict.fromkeys(("first", "count", "last"), _whole()),
        "attempt": _whole(1),
    },
    "/api/v1/jobs/{job}/log/index": {"attempt": _whole(1)},
    "/api/v1/jobs/{job}/log/errors": {"attempt": _whole(1)},
    "/api/v1/jobs/{job}/log/search": {"q": STRING, "regex": SWITCH, "attempt": _whole(1)},
    "/api/v1/jobs/{job}/compare": {"with": _whole(1)},
    "/api/v1/environments/{name}": {"host": STRING},
    "/api/v1/coordinators/{host}/samples": {"seconds": _whole(1)},
    "/api/v1/statistics": {"hours": _whole(1), "by": {"type": "string", "enum": list(KEYS)}},
    "/api/v1/events": {"after": _whole(), "watch": {"type": "string", "enum": ["farm", "head"]}},
}


PARTS: Final[dict[str, dict[str, Any]]] = {"job": _whole(), "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}
"""Parts of paths that are not just any text."""


@cache
def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a job."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **msgspec.json.schema(JobView),
    }


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of every route."""
    kinds = [kind for *_, body, _, answer in OPERATIONS for kind in (body, answer)]
    types = [kind for kind in kinds if kind and kind is not OBJECT and not isinstance(kind, str)]
    types = list(dict.fromkeys([*types, Problem]))
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    for name in _asked_for(components):
        if "properties" in components[name]:
            components[name]["additionalProperties"] = False  # an unknown key is refused, not passed over
    components["JobsRequest"]["properties"]["jobs"] |= {"minItems": 1, "maxItems": rq.MAX_JOBS}
    components["Recipe"]["properties"]["steps"] |= {"minItems": 1, "maxItems": rq.MAX_STEPS}
    paths: dict[str, dict[str, Any]] = {}
    for method, path, summary, body, status, answer in OPERATIONS:
        paths.setdefault(path, {})[method] = _operation(path, method, summary, body, status, answer, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": "biruda", "version": VERSION},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def _asked_for(components: dict[str, Any]) -> set[str]:
    """The schemas that a request's body is made of."""
    found: set[str] = set()
    wanted = [body.__name__ for *_, body, _, _ in OPERATIONS if body is not None]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted += re.findall(r"#/components/schemas/(\w+)", str(components[name]))
    return found


def _operation(
    path: str, method: str, summary: str, body: Any, status: int, answer: Any, by_type: dict[Any, Any]
) -> dict[str, Any]:
    problem = {
        "description": "A problem document",
        "content": {"application/problem+json": {"schema": by_type[Problem]}},
    }
    if isinstance(answer, str):
        content: dict[str, Any] = {answer or "application/octet-stream": {}}
    else:
        content = {"application/json": {"schema": {"type": "object"} if answer is OBJECT else by_type[answer]}}
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": PARTS.get(name, STRING)} for name in names]
    if method == "get":
        queries = QUERIES.get(path, {})
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in queries.items()]
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": f"{method}_{path.removeprefix('/api/v1/').replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": parameters,
        "responses": {str(status): {"description": summary, "content": content}, "default": problem},
    }
    if body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": by_type[body]}}}
    return operation
