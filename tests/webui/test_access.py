"""Who may do what: roles, tokens, cookies, and what another site's page may not do with somebody's cookie."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from biruda.master import tries
from biruda.master.access import COOKIE, PAGE_HEADER, READS, Role
from biruda.master.api import all_routes
from biruda.webui import routes as webui
from tests.master.test_api import RECIPE, TOKEN, Client, served

JOB = {"jobs": [{"recipe": RECIPE}]}


@dataclass
class Farm:
    """A master with pages, over TCP."""

    client: Client
    url: str
    session: aiohttp.ClientSession

    async def ask(self, method: str, path: str, token: str = "", **more: Any) -> tuple[int, Any, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= more.pop("headers", {})
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, headers=headers, allow_redirects=False, **more) as answer:
            body = await answer.read()
            value = await answer.json(content_type=None) if "json" in answer.headers.get("Content-Type", "") else body
            return answer.status, value, answer.headers

    async def token(self, name: str, role: str, **more: Any) -> str:
        status, answer, _ = await self.ask(
            "POST", "/api/v1/access-tokens", TOKEN, json={"name": name, "role": role, **more}
        )
        assert status == 201, answer
        return str(answer["token"])

    async def log_in(self, token: str, **more: Any) -> tuple[int, str, Any]:
        """(status, cookie, headers)"""
        status, _, headers = await self.ask("POST", "/login", data={"token": token, **more})
        found = re.match(rf"{COOKIE}=([^;]+);", headers.get("Set-Cookie", ""))
        return status, found[1] if found else "", headers

    @property
    def origin(self) -> str:
        return self.url


@asynccontextmanager
async def farm(home: Path) -> AsyncIterator[Farm]:
    async with (
        served(home, mount=webui.mount) as client,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        yield Farm(client, client.tcp, session)


async def test_a_role_may_what_it_may_and_nothing_else(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        viewer, user, admin = [await it.token(role, role) for role in ("viewer", "user", "admin")]
        status, answer, _ = await it.ask("POST", "/api/v1/jobs", viewer, json=JOB)
        assert (status, answer["detail"]) == (403, "/api/v1/jobs: viewer has the role viewer, and POST needs user")
        status, answer, _ = await it.ask("POST", "/api/v1/jobs", user, json=JOB)
        assert status == 201
        (job,) = answer["jobs"]
        for token in (viewer, user, admin, TOKEN):
            assert (await it.ask("GET", f"/api/v1/jobs/{job}", token))[0] == 200
        assert (await it.ask("GET", f"/api/v1/jobs/{job}"))[0] == 401
        assert (await it.ask("GET", f"/api/v1/jobs/{job}", "wrong"))[0] == 401
        assert (await it.ask("GET", "/api/v1/access-tokens", user))[0] == 403
        assert (await it.ask("GET", "/api/v1/access-tokens", admin))[0] == 200
        assert (await it.ask("GET", "/api/v1/me", user))[1] == {"name": "user", "role": "user"}


async def test_a_user_ends_only_their_own_jobs(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        ann, bob = await it.token("ann", "user"), await it.token("bob", "user")
        (job,) = (await it.ask("POST", "/api/v1/jobs", ann, json=JOB))[1]["jobs"]
        for act in ("cancel", "retry"):
            status, answer, _ = await it.ask("POST", f"/api/v1/jobs/{job}/{act}", bob, json={})
            assert (status, answer["detail"]) == (403, f"job {job} is ann's, not bob's")
        status, answer, _ = await it.ask("POST", f"/api/v1/jobs/{job}/cancel", ann, json={})
        assert status == 202
        (job,) = (await it.ask("POST", "/api/v1/jobs", ann, json=JOB))[1]["jobs"]
        assert (await it.ask("POST", f"/api/v1/jobs/{job}/cancel", TOKEN, json={}))[0] == 202


async def test_every_route_that_changes_more_than_a_job_is_an_administrators(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        user = await it.token("u", "user")
        admin_only = [
            ("POST", "/api/v1/tokens"),
            ("POST", "/api/v1/hosts/h1/revoke"),
            ("POST", "/api/v1/access-tokens"),
            ("DELETE", "/api/v1/access-tokens/u"),
            ("POST", "/api/v1/environments/host/probe"),
            ("DELETE", "/api/v1/environments/host"),
            ("POST", "/api/v1/coordinators/h1/reload"),
            ("GET", "/api/v1/link"),
        ]
        for method, path in admin_only:
            status, answer, _ = await it.ask(method, path, user, json={} if method == "POST" else None)
            assert (status, answer["title"]) == (403, "Not allowed"), path


async def test_nothing_is_answered_to_nobody(tmp_path: Path) -> None:
    """Every route of the API, whatever it is called with."""
    async with farm(tmp_path / "h") as it:
        for route in all_routes():
            method, path = route.method, re.sub(r"\{[^}]*\}", "1", route.path)  # type: ignore[attr-defined]
            assert (await it.ask(method, path))[0] == 401, path


async def test_a_token_ends(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        token = await it.token("ann", "viewer")
        _, cookie, _ = await it.log_in(token)
        with_cookie = {"Cookie": f"{COOKIE}={cookie}"}
        assert (await it.ask("GET", "/api/v1/me", headers=with_cookie))[0] == 200
        assert (await it.ask("DELETE", "/api/v1/access-tokens/ann", TOKEN))[0] == 200
        assert (await it.ask("GET", "/api/v1/me", token))[0] == 401
        assert (await it.ask("GET", "/api/v1/me", headers=with_cookie))[0] == 401
        status, answer, _ = await it.ask("DELETE", "/api/v1/access-tokens/ann", TOKEN)
        assert (status, answer["detail"]) == (404, "there is no token of 'ann'")


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"name": "token", "role": "viewer"}, 409, "'token' is no name for who shows a token"),
        ({"name": "<script>", "role": "viewer"}, 409, "'<script>' is no name for who shows a token"),
        ({"name": "ann", "role": "root"}, 422, "role = 'root': there are viewer, user, admin"),
        ({"name": "ann", "role": "nobody"}, 422, "role = 'nobody': there are viewer, user, admin"),
        ({"name": "ann", "role": "user", "ttl_s": 0}, 409, "a token lives 1 s to ten years, not 0 s"),
        ({"name": "taken", "role": "user"}, 409, "there is a token of taken already"),
    ],
)
async def test_what_is_no_token(tmp_path: Path, body: dict[str, Any], status: int, detail: str) -> None:
    async with farm(tmp_path / "h") as it:
        await it.token("taken", "user")
        given, answer, _ = await it.ask("POST", "/api/v1/access-tokens", TOKEN, json=body)
        assert (given, answer["detail"]) == (status, detail)


async def test_of_a_secret_nothing_is_kept(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        token = await it.token("ann", "viewer")
        _, cookie, _ = await it.log_in(token)
        _, answer, _ = await it.ask("GET", "/api/v1/access-tokens", TOKEN)
        assert token not in str(answer)
        for path in it.client.home.glob("master.db*"):
            content = path.read_bytes()
            assert token.encode() not in content
            assert cookie.encode() not in content


async def test_tokens_and_cookies_outlive_the_master(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        token = await it.token("ann", "viewer")
        _, cookie, _ = await it.log_in(token)
    async with farm(tmp_path / "h") as it:
        assert (await it.ask("GET", "/api/v1/me", token))[1]["name"] == "ann"
        assert (await it.ask("GET", "/api/v1/me", headers={"Cookie": f"{COOKIE}={cookie}"}))[1]["name"] == "ann"


async def test_logging_in_and_out(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        status, _, headers = await it.ask("GET", "/hosts?x=1")
        assert (status, headers["Location"]) == (303, "/login?next=/hosts?x%3D1")
        status, cookie, headers = await it.log_in(await it.token("ann", "viewer"), next="/hosts?x=1")
        assert (status, headers["Location"]) == (303, "/hosts?x=1")
        flags = headers["Set-Cookie"].lower()
        assert all(flag in flags for flag in ("httponly", "samesite=strict", "path=/"))
        with_cookie = {"Cookie": f"{COOKIE}={cookie}"}
        assert (await it.ask("GET", "/", headers=with_cookie))[0] == 200
        assert (await it.ask("POST", "/logout", headers=with_cookie))[0] == 403  # from where?
        status, _, headers = await it.ask("POST", "/logout", headers={**with_cookie, "Origin": it.origin})
        assert (status, headers["Location"]) == (303, "/login")
        assert (await it.ask("GET", "/", headers=with_cookie))[0] == 303


@pytest.mark.parametrize("place", ["//evil.example", "/\\evil.example", "https://evil.example", "/%0d%0aX: y\r\n", "x"])
async def test_a_login_leads_to_no_other_place(tmp_path: Path, place: str) -> None:
    async with farm(tmp_path / "h") as it:
        _, _, headers = await it.log_in(TOKEN, next=place)
        assert headers["Location"] == "/"


async def test_a_cookie_alone_changes_nothing(tmp_path: Path) -> None:
    """What another site's page can let a browser send: the cookie, were it not for SameSite, and a foreign Origin."""
    async with farm(tmp_path / "h") as it:
        _, cookie, _ = await it.log_in(TOKEN)
        with_cookie = {"Cookie": f"{COOKIE}={cookie}"}
        for headers in (
            {},
            {PAGE_HEADER: "1"},
            {"Origin": it.origin},
            {"Origin": "http://evil.example", PAGE_HEADER: "1"},
            {"Origin": "null", PAGE_HEADER: "1"},
        ):
            status, answer, _ = await it.ask("POST", "/api/v1/jobs", headers={**with_cookie, **headers}, json=JOB)
            assert status == 403, headers
            assert "a cookie alone does not show" in answer["detail"]
        headers = {**with_cookie, "Origin": it.origin, PAGE_HEADER: "1"}
        assert (await it.ask("POST", "/api/v1/jobs", headers=headers, json=JOB))[0] == 201
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await it.session.ws_connect(it.url + "/api/v1/events", headers=with_cookie, origin="http://evil.example")
        assert caught.value.status == 403
        async with it.session.ws_connect(it.url + "/api/v1/events", headers=with_cookie, origin=it.origin):
            pass


async def test_a_link_from_elsewhere_is_given_a_second_look(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        status, body, headers = await it.ask("GET", "/jobs/1?x=<b>", headers={"Sec-Fetch-Site": "cross-site"})
        assert status == 200
        assert b'http-equiv="refresh" content="0"' in body
        assert b"<b>" not in body
        assert "Set-Cookie" not in headers


async def test_wrong_tokens_are_not_looked_at_for_ever(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        for _ in range(tries.MOST):
            assert (await it.log_in("wrong"))[0] == 403
        assert (await it.log_in(TOKEN))[0] == 429


async def test_anybody_reads_where_that_is_configured(tmp_path: Path) -> None:
    async with (
        served(tmp_path / "h", mount=webui.mount, anonymous=Role.VIEWER) as client,
        aiohttp.ClientSession() as session,
    ):
        it = Farm(client, client.tcp, session)
        assert (await it.ask("GET", "/"))[0] == 200
        assert (await it.ask("GET", "/api/v1/me"))[1] == {"name": "", "role": "viewer"}
        assert (await it.ask("POST", "/api/v1/jobs", json=JOB))[0] == 401
        assert (await it.ask("GET", "/api/v1/link"))[0] == 401


async def test_every_answer_is_guarded(tmp_path: Path) -> None:
    async with farm(tmp_path / "h") as it:
        for path in ("/login", "/nothing", "/api/v1/status", "/static/x/style.css"):
            _, _, headers = await it.ask("GET", path)
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["Referrer-Policy"] == "same-origin"
    assert READS == ("GET", "HEAD", "OPTIONS")
