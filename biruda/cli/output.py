"""`biruda log` and `get`: what a job put out."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import click

from biruda.cli.client import Client, quote
from biruda.cli.command import command, settings
from biruda.cli.follower import PATIENCE_S, Follower, Patience
from biruda.cli.http import ConnectionLost
from biruda.cli.jobview import Artifact, artifact_of, job_of
from biruda.cli.parameters import DURATION, JOB
from biruda.cli.screen import tell
from biruda.cli.sinks import Output, Plain, Voice, standard_output
from biruda.cli.text import count, escape, size
from biruda.errors import BirudaError, PeerError, UserError


@command(
    "log",
    """
    biruda log 12                     the log of its last attempt, byte for byte
    biruda log 12 -f                  as it grows, until the job has ended
    biruda log 12 --attempt 1         of an earlier attempt
    biruda log 12 --offset 1048576    from that byte on
    biruda log 12 --offset -2000      the last 2000 bytes
    """,
)
@click.argument("number", metavar="JOB", type=JOB)
@click.option("-f", "--follow", is_flag=True, help="Stay until the job has ended.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Of that attempt, not of the last.")
@click.option("--offset", type=int, default=0, metavar="N", help="Begin at that byte; below 0: so many before the end.")
@click.option("--patience", type=DURATION, help="How long to ask again when no master answers.  [default: 10m with -f]")
def log(number: int, follow: bool, attempt: int | None, offset: int, patience: float | None) -> None:
    """Print a job's log, byte for byte."""
    client, output = settings().client(), standard_output()
    if offset < 0:
        job = job_of(client.get(f"jobs/{number}"))
        known = next((earlier for earlier in job.earlier if earlier.attempt == attempt), job).log
        offset = max(0, (known.bytes if known else 0) + offset)
    if follow:
        voice = Voice(output)
        waiting = Patience(voice, PATIENCE_S if patience is None else patience)
        one = attempt is not None
        sink = Plain(output.write)
        Follower(client, number, sink, voice, waiting, attempt=attempt, offset=offset, one_attempt=one).follow()
    else:
        _print_log(client, output, number, attempt, offset)


def _print_log(client: Client, output: Output, number: int, attempt: int | None, offset: int) -> None:
    with client.open(f"jobs/{number}/log", {"offset": offset, "attempt": attempt}) as exchange:
        exchange.answer()
        client.check(exchange, f"GET jobs/{number}/log")
        try:
            while data := exchange.read_some():
                output.write(data)
                offset += len(data)
        except ConnectionLost as error:
            error.hint = f"the rest begins at byte {offset}: biruda log {number} --offset {offset}"
            raise


@command(
    "get",
    """
    biruda get 12                          all artifacts, into this directory
    biruda get 12 '*.deb' --to packages
    biruda get 12 report.xml --to - | less
    """,
)
@click.argument("number", metavar="JOB", type=JOB)
@click.argument("pattern", required=False)
@click.option("--to", "target", default=".", metavar="DIR", help="Where to put them; '-': one to standard output.")
@click.option("--force", is_flag=True, help="Replace files that are there and differ.")
def get(number: int, pattern: str | None, target: str, force: bool) -> int:
    """Fetch a job's artifacts, each checked against its sha256. A pattern is of a path or of a file's name."""
    client = settings().client()
    found = [artifact_of(part) for part in client.get(f"jobs/{number}/artifacts").parts("artifacts")]
    wanted = [artifact for artifact in found if pattern is None or _matches(artifact.path, pattern)]
    if not wanted:
        what = f"no artifact of job {number} is called {pattern!r}" if found else f"job {number} has no artifacts"
        raise UserError(escape(what), hint=f"biruda show {number}")
    if target == "-":
        if len(wanted) > 1:
            raise UserError(f"{count(len(wanted), 'artifact')} fit: standard output takes one")
        output = standard_output()
        for piece in _content(client, number, wanted[0]):
            output.write(piece)
        return 0
    for artifact in wanted:
        path = Path(target, *_parts(artifact.path))
        if _fetch(client, number, artifact, path, force=force):
            print(f"{escape(str(path))}  {size(artifact.bytes)}")
    return 0


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or ("/" not in pattern and fnmatchcase(path.rpartition("/")[2], pattern))


def _parts(path: str) -> list[str]:
    """A path of the farm as parts that lead nowhere but below the target."""
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise PeerError(f"the master names an artifact {escape(path)!r}: that leads out of the target directory")
    return parts


def _fetch(client: Client, number: int, artifact: Artifact, path: Path, *, force: bool) -> bool:
    """Whether it was written: a file that is there and equal stays as it is."""
    if path.exists() and not force:
        if path.is_file() and path.stat().st_size == artifact.bytes and _sha256(path) == artifact.sha256:
            tell(f"{escape(str(path))} is here already, and equal")
            return False
        raise UserError(f"{escape(str(path))} is here and differs", hint="choose another --to DIR, or --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, prefix=".biruda-", delete=False) as file:
            try:
                _write(file, _content(client, number, artifact))
                os.chmod(file.name, 0o666 & ~_umask())
                os.replace(file.name, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        raise BirudaError(f"cannot write {escape(str(path))}: {error.strerror}") from error
    return True


def _write(file: IO[bytes], pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        file.write(piece)
    file.flush()


def _content(client: Client, number: int, artifact: Artifact) -> Iterator[bytes]:
    """The bytes of an artifact; PeerError at their end when they are not those that the farm recorded."""
    path = "/".join(map(quote, artifact.path.split("/")))
    digest = hashlib.sha256()
    with client.open(f"jobs/{number}/artifacts/{path}", {}) as exchange:
        exchange.answer()
        client.check(exchange, f"GET jobs/{number}/artifacts/{path}")
        while piece := exchange.read_some():
            digest.update(piece)
            yield piece
    if artifact.sha256 and digest.hexdigest() != artifact.sha256:
        raise PeerError(f"artifact {escape(artifact.path)} of job {number} is damaged: its sha256 is another one")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
