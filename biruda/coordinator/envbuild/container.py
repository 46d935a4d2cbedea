"""Images for environments of kind docker: pulled by name, or made of a root tree and removed with their environment."""

import asyncio
import hashlib
import os
import re
import tarfile
import time
import tomllib
from pathlib import Path
from typing import Any, Final

from biruda.coordinator.envbuild import tree
from biruda.coordinator.envbuild.suite import Progress
from biruda.coordinator.spawners.docker_api import Docker, DockerRefused
from biruda.coordinator.spawners.docker_container import Image
from biruda.errors import EnvironmentFault, UserError
from biruda.guessenv import ALIASES, Guess

_OURS: Final = "biruda-env/"
_TOLD_S: Final = 3.0
_REMOVE_S: Final = 15.0
_OCI: Final = {"amd64": "amd64", "i386": "386", "arm64": "arm64", "armhf": "arm/v7", "armel": "arm/v6"} | {
    "ppc64el": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}


def pull(address: str, name: str, progress: Progress, *, fresh: bool) -> tuple[dict[str, str], str]:
    """Have an image on this host; the keys of its environment.toml, by digest, and a sentence about it.

    One that is there is not pulled again, unless `fresh`. Raises UserError.
    """
    try:
        return asyncio.run(_pull(Docker(address), name, progress, fresh=fresh))
    except EnvironmentFault as fault:
        raise UserError(str(fault), hint=fault.hint) from None


async def _pull(docker: Docker, name: str, progress: Progress, *, fresh: bool) -> tuple[dict[str, str], str]:
    about = None if fresh else await _described(docker, name)
    if about is None:
        progress(f"pulling the image {name}")
        await _fetch(docker, name, progress)
        about = await _described(docker, name)
        if about is None:
            raise UserError(f"the image {name} was pulled, but is not there")
    image = Image.of(about)
    kept = [each for each in about.get("RepoDigests") or [] if isinstance(each, str)]
    progress(f"it is {image.arch}, {image.id}")
    return {"kind": "docker", "image": kept[0] if kept else name}, f"{image.arch}, the image {name}, {image.id}"


async def _described(docker: Docker, name: str) -> Any:
    try:
        return await docker.call("GET", f"/images/{name}/json")
    except DockerRefused as refusal:
        if refusal.status == 404:
            return None
        raise


async def _fetch(docker: Docker, name: str, progress: Progress) -> None:
    base, at, digest = name.partition("@")
    repository, colon, tag = base.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = base, "latest"
    layers: dict[str, tuple[int, int]] = {}
    told_s = time.monotonic()
    try:
        async for line in docker.follow("POST", "/images/create", fromImage=repository, tag=digest if at else tag):
            detail = line.get("progressDetail") or {}
            if line.get("status") == "Downloading" and detail.get("total"):
                layers[str(line.get("id"))] = (int(detail["current"]), int(detail["total"]))
            if layers and time.monotonic() > told_s + _TOLD_S:
                told_s = time.monotonic()
                done, total = (sum(numbers) for numbers in zip(*layers.values(), strict=True))
                progress(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")
    except DockerRefused as refusal:
        raise UserError(
            f"the image {name} cannot be pulled: {refusal}",
            hint="is the name right, and can this host reach where it is kept? --tarball takes a root tree instead",
        ) from None


def make(
    address: str, home: Path, name: str, root: Path, facts: Guess, work: Path, progress: Progress
) -> dict[str, str]:
    """Make an image of a tree, which is gone then; the keys of its environment.toml. Raises UserError, OSError."""
    archive = work / "image.tar"
    progress("making the image")
    digest = _pack(root, archive)
    tree.remove(root)
    image = f"{repository_of(home, name)}:{digest[:24]}"
    try:
        asyncio.run(_import(Docker(address), archive, image, facts.arch))
    except EnvironmentFault as fault:
        raise UserError(f"Docker does not take the image: {fault}", hint=fault.hint) from None
    archive.unlink()
    progress(f"it is called {image}")
    return {"kind": "docker", "image": image} | ({"arch": facts.arch} if facts.arch in ALIASES.values() else {})


def repository_of(home: Path, name: str) -> str:
    """What images made for an environment are called, apart from those of other homes on this host."""
    of_home = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:8]
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"
    return f"{_OURS}{of_home}-{plain}"


def _pack(root: Path, archive: Path) -> str:
    """Write a tree as tar; the digest of what is in it, whatever the time."""

    def own(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if os.geteuid() != 0:  # all of it belongs to this user, who is root inside
            member.uid = member.gid = 0
            member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(root, arcname=".", filter=own)
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _import(docker: Docker, archive: Path, image: str, arch: str) -> None:
    repository, _, tag = image.rpartition(":")
    platform = {"platform": f"linux/{_OCI[arch]}"} if arch in _OCI else {}
    with archive.open("rb") as file:
        async for _ in docker.follow(
            "POST", "/images/create", data=file, fromSrc="-", repo=repository, tag=tag, **platform
        ):
            pass


def image_of(directory: Path) -> str:
    """The image that was made for the environment in this directory; "" where there is none."""
    try:
        settings = tomllib.loads((directory / "environment.toml").read_text())
    except (OSError, ValueError):
        return ""
    image = settings.get("image", "")
    return image if isinstance(image, str) and image.startswith(_OURS) else ""


def remove_image(address: str, image: str) -> None:
    """The image is gone on return. Raises UserError, with how to remove it by hand."""
    try:
        asyncio.run(_remove(Docker(address), image))
    except EnvironmentFault as fault:
        raise UserError(
            f"the environment is removed, but its image {image} stays: {fault}", hint=f"docker rmi {image}"
        ) from None


async def _remove(docker: Docker, image: str) -> None:
    end_s = time.monotonic() + _REMOVE_S
    while True:
        try:
            await docker.call("DELETE", f"/images/{image}")
        except DockerRefused as refusal:
            if refusal.status == 404:
                return
            if refusal.status != 409 or time.monotonic() > end_s:
                raise
            await asyncio.sleep(0.2)  # a container of it is just being removed
        else:
            return
