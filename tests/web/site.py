"""A real farm behind real pages, and a real browser before them."""

import contextlib
import http.client
import os
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page

from biruda.master.access import COOKIE
from tests.system.farm import RealFarm, farm

HOSTILE = "<script>document.title='taken'</script>\u202egpj.exe\x1b[31m&amp;"
"""A name that a job may have: markup, a turn of the writing direction, a terminal's colour, an entity."""


def free_port() -> int:
    """A port that nobody has at the moment: a master that is started again must be found where it was."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Seen:
    """One page, and whatever went wrong on it."""

    page: Page
    problems: list[str] = field(default_factory=list)

    def watch(self, url: str) -> None:
        page = self.page
        page.on("pageerror", lambda error: self.problems.append(f"{page.url}: {error}"))
        page.on("request", lambda request: self._own(request.url, url))
        page.on("console", lambda message: self._said(message.type, message.text))

    def _own(self, asked: str, url: str) -> None:
        if not asked.startswith((url, url.replace("http", "ws"), "data:", "blob:")):
            self.problems.append(f"{self.page.url}: a request to {asked}")

    def _said(self, kind: str, text: str) -> None:
        """A refused script says so here; that a connection broke is no fault of a page."""
        if kind == "error" and "WebSocket connection" not in text and "Failed to load resource" not in text:
            self.problems.append(f"{self.page.url}: {text}")


@dataclass
class Site:
    """A farm with pages at url."""

    farm: RealFarm
    url: str
    browser: Browser
    tokens: dict[str, str] = field(default_factory=dict)

    def token(self, role: str) -> str:
        """A token of this role, made when it is first wanted."""
        if role not in self.tokens:
            made = self.farm.post("/api/v1/access-tokens", {"name": f"a-{role}", "role": role})
            self.tokens[role] = made["token"]
        return self.tokens[role]

    def cookie(self, role: str) -> str:
        """What a browser gets that has logged in."""
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=30)
        body = urllib.parse.urlencode({"token": self.token(role)})
        connection.request("POST", "/login", body, {"Content-Type": "application/x-www-form-urlencoded"})
        answer = connection.getresponse()
        cookie = answer.getheader("Set-Cookie", "")
        connection.close()
        assert answer.status == 303, answer.status
        return cookie.split(";")[0].partition("=")[2]

    def context(self, role: str, **options: Any) -> BrowserContext:
        """A browser with nothing but a login in it. role "": without one."""
        context = self.browser.new_context(
            viewport={"width": options.pop("width", 1280), "height": options.pop("height", 800)}, **options
        )
        context.set_default_timeout(20_000)
        if role:
            context.add_cookies([{"name": COOKIE, "value": self.cookie(role), "url": self.url}])
        return context

    @contextlib.contextmanager
    def open(self, path: str, role: str = "admin", **options: Any) -> Iterator[Page]:
        """A page, which must have had no error, asked no other host and had no script refused when the block ends."""
        context = self.context(role, **options)
        try:
            seen = Seen(context.new_page())
            seen.watch(self.url)
            seen.page.goto(self.url + path)
            yield seen.page
            assert seen.problems == []
        finally:
            context.close()


@contextlib.contextmanager
def site(home: Path, browser: Browser, config: str, *roles: str) -> Iterator[Site]:
    """A farm with pages; its configuration begins in [master]."""
    port = free_port()
    listen = f'[master]\nlisten = "127.0.0.1:{port}"\n'
    with farm(home, listen + config, *roles) as real:
        yield Site(real, f"http://127.0.0.1:{port}", browser)


def chromium_flags() -> list[str]:
    """No picture on a screen, no talk with its maker, and a process that root may start."""
    flags = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
    return [*flags, "--no-sandbox"] if os.getuid() == 0 else flags
