"""The API's routes that make source packs of what is no working tree at hand."""

from dataclasses import dataclass

from aiohttp import web

from biruda.master import requests as rq
from biruda.master.importing import Importing
from biruda.master.responses import body_of, json_response

IMPORTING = web.AppKey("importing", Importing)

routes = web.RouteTableDef()


@dataclass(frozen=True, slots=True, kw_only=True)
class GitRequest:
    """A repository, and a branch, tag or commit of it; "": its default branch."""

    url: str
    ref: str = ""


@routes.post("/api/v1/imports/tarball")
async def tarball(request: web.Request) -> web.StreamResponse:
    return json_response({"digest": await request.app[IMPORTING].tarball(request.content.iter_any())}, 201)


@routes.post("/api/v1/imports/git")
async def git(request: web.Request) -> web.StreamResponse:
    wanted = rq.parse(GitRequest, await body_of(request))
    digest, commit = await request.app[IMPORTING].git(wanted.url, wanted.ref)
    return json_response({"digest": digest, "commit": commit}, 201)
