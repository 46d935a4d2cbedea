"""Source tarballs: from the mirrors that this machine's apt knows, checked against the digests in sources.toml."""

import hashlib
import shutil
import subprocess
import tomllib
from pathlib import Path

from cache import cache_root
from problem import BuildProblem, clean_environment, run

HERE = Path(__file__).parent


def pinned(name: str) -> dict[str, str]:
    """version, path and sha256 of a source."""
    with (HERE / "sources.toml").open("rb") as file:
        found: dict[str, str] = tomllib.load(file)[name]
    return found


def unpack(name: str, target: Path) -> None:
    """Fetch a source where it is not cached, and unpack it as target. Raises BuildProblem."""
    target.mkdir(parents=True)
    argv = ["tar", "-xf", tarball(name), "-C", target, "--strip-components=1", "--no-same-owner"]
    run(argv, cwd=target, log=target.with_name(f"unpack-{name}.log"), env=clean_environment())


def tarball(name: str) -> Path:
    """The file as it was fetched, now or earlier. Raises BuildProblem."""
    pin = pinned(name)
    folder = cache_root() / "sources"
    folder.mkdir(exist_ok=True)
    file = folder / Path(pin["path"]).name
    if not file.is_file():
        _fetch(pin, file)
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != pin["sha256"]:
        raise BuildProblem(
            f"{file}: its SHA-256 is {found}, not {pin['sha256']}", hint="remove it; it is fetched again"
        )
    return file


def _fetch(pin: dict[str, str], tarball: Path) -> None:
    part = tarball.with_name(tarball.name + ".part")
    helper = shutil.which("apt-helper", path="/usr/lib/apt")
    tried = []
    for mirror in _mirrors() if helper else []:
        url = mirror.rstrip("/") + "/" + pin["path"]
        done = subprocess.run(
            [
                str(helper),
                "-q",
                "-o",
                "APT::Sandbox::User=",
                "download-file",
                url,
                str(part),
                f"SHA256:{pin['sha256']}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            part.rename(tarball)
            return
        part.unlink(missing_ok=True)
        tried.append(mirror)
    where = f"not at {', '.join(tried)}" if tried else "this machine's apt knows no mirror"
    raise BuildProblem(
        f"the source {tarball.name} cannot be fetched: {where}",
        hint=f"run apt-get update, or put that file of Debian's archive into {tarball.parent}",
    )


def _mirrors() -> list[str]:
    """Those of Debian first; one whose lists were never fetched does not say whose it is."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)"], capture_output=True, text=True, check=False
    )
    rows = sorted({tuple(line.split("|", 1)) for line in done.stdout.splitlines() if "|" in line})
    known = [uri for origin, uri in rows if origin == "Debian"]
    return known or [uri for origin, uri in rows if not origin]
