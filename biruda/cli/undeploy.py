"""`biruda deploy --remove`: the host is none of the farm's any more, and nothing of biruda is left on it."""

import time
from collections.abc import Sequence
from typing import Final

from biruda.cli.client import Client, quote
from biruda.cli.deploy import is_valid, step
from biruda.cli.jobview import job_of
from biruda.cli.remotehost import RemoteHost, There
from biruda.cli.screen import out
from biruda.cli.text import count, escape
from biruda.errors import EnvironmentFault, NoMaster, UserError

_ENDED_S: Final = 120.0


def undeploy(client: Client, remote: RemoteHost, name: str, *, force: bool) -> int:
    """Take everything away and say what it was. UserError while jobs run there, unless they are to be cancelled."""
    there = remote.look()
    host = name or there.joined.get("host") or there.name
    step(f"{escape(str(remote.target))} is {escape(host)}")
    if "master" in there.parts:
        raise UserError(
            f"{escape(str(remote.target))} has a farm of its own in {escape(there.home)}: that one stays",
            hint="--home DIR names the home of the coordinator that deploy made",
        )
    knows = _end_jobs(client, host, force=force)
    if there.pid or "unit" in there.parts:
        _stop(client, remote, there, host, force=force)
    said = remote.remove(there)
    if said.text("problem"):
        raise EnvironmentFault(f"{remote.target}: {said.text('problem')}", hint="nothing else was removed yet")
    for key, words in (
        ("killed", "killed process"),
        ("removed", "removed"),
        ("kept", "kept"),
    ):
        for what in said.texts(key):
            step(f"{words} {escape(what)}")
    if knows and is_valid(client, host):
        answer = client.post(f"hosts/{quote(host)}/revoke", {"reason": "removed by biruda deploy --remove"})
        step(f"{count(answer.number('revoked'), 'certificate')} of {escape(host)} revoked")
    left = said.texts("left")
    if left:
        raise EnvironmentFault(
            f"{remote.target}: {', '.join(left)[:500]}: still there",
            hint="log in and see who holds it, then run this again",
        )
    what = "nothing that deploy brought" if said.texts("kept") else "nothing of biruda"
    out().line(f"{what} is left on {escape(str(remote.target))}")
    return 0


def _running(client: Client, host: str) -> Sequence[int]:
    for item in client.get("coordinators").parts("coordinators"):
        if item.text("host") == host:
            return item.numbers("running")
    return ()


def _end_jobs(client: Client, host: str, *, force: bool) -> bool:
    """No job runs on the host on return; whether there is a master that can be asked."""
    try:
        numbers = _running(client, host)
    except NoMaster:
        if not force:
            raise
        out().line(f"{out().sign('infra')} no master answers, so the host's certificate is not revoked")
        return False
    if numbers and not force:
        raise _busy(host, numbers)
    for number in numbers:
        client.post(f"jobs/{number}/cancel", {"reason": f"{host} is removed from the farm"})
    deadline = time.monotonic() + _ENDED_S
    for number in numbers:
        while not job_of(client.get(f"jobs/{number}", wait_s=10)).finished:
            if time.monotonic() > deadline:
                raise UserError(f"job {number} on {escape(host)} has not ended", hint=f"biruda show {number}")
    if numbers:
        step(f"cancelled {count(len(numbers), 'job')}")
    return True


def _busy(host: str, numbers: Sequence[int]) -> UserError:
    shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
    return UserError(
        f"{count(len(numbers), 'job runs', 'jobs run')} on {escape(host)}: {shown}",
        hint="wait for them, or end them: --remove --force",
    )


def _stop(client: Client, remote: RemoteHost, there: There, host: str, *, force: bool) -> None:
    told = remote.stop(there)
    if told.status and there.pid:
        raise EnvironmentFault(f"{remote.target}: its coordinator cannot be stopped: {told.sentence}", hint=told.hint)
    try:
        numbers = _running(client, host)
    except NoMaster:
        numbers = ()
    if numbers and not force:  # one came between the question and the stop: it goes on as if nothing had been
        remote.start(there, there.joined.get("master", ""))
        raise _busy(host, numbers)
    step("its coordinator is stopped")
