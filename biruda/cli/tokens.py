"""`biruda token --role`, `--list`, `--revoke`: what persons and programs show to come in."""

import time
from datetime import datetime

from biruda.cli.client import as_json, quote
from biruda.cli.command import settings
from biruda.cli.screen import out, tell
from biruda.cli.text import ago, escape


def make(name: str, role: str, ttl_s: float | None, *, json_wanted: bool) -> None:
    """Make a token and print it: nothing shows it again."""
    answer = settings().client().post("access-tokens", {"name": name, "role": role, "ttl_s": ttl_s})
    if json_wanted:
        print(as_json(answer.raw))
        return
    until = f", until {answer.text('expires')[:10]}" if answer.text("expires") else ""
    tell(f"for {escape(name)}, {role}{until}; it is shown only now. In a browser it is what to log in with:")
    print(escape(answer.text("token")))


def show(*, json_wanted: bool) -> None:
    """List the tokens, without their secrets."""
    answer = settings().client().get("access-tokens")
    if json_wanted:
        print(as_json(answer.raw))
        return
    found = answer.parts("tokens")
    if not found:
        out().line("there are none; biruda token --role viewer --name NAME makes one")
        return
    rows = [
        [
            item.text("name"),
            item.text("role"),
            ago(time.time() - datetime.fromisoformat(item.text("made")).timestamp()),
            item.text("made_by"),
            item.text("expires")[:10] or "never",
        ]
        for item in found
    ]
    out().table(("NAME", "ROLE", "MADE", "BY", "ENDS"), rows, flexible=(0, 3))


def revoke(name: str) -> None:
    """End one."""
    settings().client().delete(f"access-tokens/{quote(name)}")
    out().line(f"the token of {escape(name)} is good for nothing any more")
