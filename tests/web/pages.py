"""A real farm behind its pages, and a real browser in front of them."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.system.farm import RealFarm

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
CONFIG = """
[master]
listen = "127.0.0.1:{port}"
{more}
[coordinator]
host = "alder"
slots = 3

[[environment]]
name = "host"
"""


def free_port() -> int:
    """A port that nothing listens on now: a restarted master must come back where its pages look for it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Site:
    """A farm and where its pages are."""

    farm: RealFarm
    url: str

    @property
    def token(self) -> str:
        return (self.farm.home / "token").read_text().strip()


@contextlib.contextmanager
def site(home: Path, *roles: str, more: str = "") -> Iterator[Site]:
    """A running farm with pages; when the block ends nothing of it is left running."""
    port = free_port()
    farm = RealFarm(home, CONFIG.format(port=port, more=more))
    try:
        for role in roles or ("up",):
            farm.start(role)
        yield Site(farm, f"http://127.0.0.1:{port}")
    finally:
        farm.stop()
        for daemon in farm.daemons.values():
            if daemon.process.poll() is None:
                daemon.process.kill()


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser. Its loop must not be there while tests with a loop of their own run: one for each module."""
    if not CHROMIUM.exists():
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.fspath(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def logged_in(browser: Browser, where: Site, **settings: Any) -> Iterator[BrowserContext]:
    """A browser that has logged in as the administrator."""
    context = browser.new_context(**settings)
    context.set_default_timeout(20_000)
    answer = context.request.post(f"{where.url}/login", form={"token": where.token, "next": "/"}, max_redirects=0)
    assert answer.status == 303, answer.text()
    yield context
    context.close()


@dataclass
class Look:
    """A page that is looked at, and what went wrong in it."""

    page: Page
    problems: list[str]


@contextlib.contextmanager
def looking(context: BrowserContext) -> Iterator[Page]:
    """A page; that it says nothing wrong, and asks nobody but the farm, is checked in the end."""
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "console", lambda said: problems.append(said.text) if said.type == "error" and _matters(said.text) else None
    )
    page.on("request", lambda request: None if request.url.startswith(ALLOWED) else problems.append(request.url))
    yield page
    page.close()
    assert problems == []


ALLOWED = ("http://127.0.0.1:", "data:")


def _matters(text: str) -> bool:
    """Not what the browser says itself of a connection that is cut, or of an answer that is a problem."""
    return "net::ERR" not in text and "Failed to load resource" not in text and "WebSocket connection" not in text
