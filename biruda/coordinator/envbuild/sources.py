"""Where this host gets its own packages from, for the suites of its own distribution."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_DEBIAN_SUITES: Final = frozenset(
    (
        *("buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid"),
        *("oldoldstable", "oldstable", "stable", "testing", "unstable"),
    )
)
_ROLLING: Final = frozenset(("sid", "unstable"))
_COMPONENTS: Final = frozenset(
    (*("main", "contrib", "non-free", "non-free-firmware"), *("universe", "restricted", "multiverse"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One line of sources.list, or a bare mirror of which the tool makes the line itself."""

    uri: str
    suite: str = ""
    components: tuple[str, ...] = ("main",)
    signed_by: str = ""

    def __str__(self) -> str:
        if not self.suite:
            return self.uri
        options = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {options}{self.uri} {self.suite} {' '.join(self.components)}"


def host_sources(suite: str, arch: str, host_arch: str, etc: Path = Path("/etc")) -> tuple[Source, ...]:
    """The lines that a suite has, or would have, in this host's own apt sources; none where it is not of its kind."""
    release = _os_release(etc / "os-release")
    distribution, codename = release.get("ID", ""), release.get("VERSION_CODENAME", "")
    debian = suite in _DEBIAN_SUITES
    if not codename or debian != (distribution == "debian") or distribution not in ("debian", "ubuntu"):
        return ()
    if distribution == "ubuntu" and arch != host_arch:
        return ()  # the other architectures live on other mirrors, which the tool knows
    pockets = (codename,) if suite in _ROLLING else (codename, f"{codename}-updates", f"{codename}-security")
    found = [
        replace(source, suite=suite + source.suite.removeprefix(codename))
        for source in _sources(etc / "apt", distribution, arch)
        if source.suite in pockets
    ]
    return tuple(dict.fromkeys(found)) if any(source.suite == suite for source in found) else ()


def _os_release(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in lines)}


def _sources(apt: Path, distribution: str, arch: str) -> Iterator[Source]:
    """The distribution's own entries, not those of others that happen to use its code names."""
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        entries = _deb822(text) if file.suffix == ".sources" else _one_line(text) if file.suffix == ".list" else ()
        for archs, source in entries:
            own = source.uri.rstrip("/").rpartition("/")[2].startswith(distribution)
            components = tuple(each for each in source.components if each in _COMPONENTS)
            if own and "main" in components and re.match(r"https?://", source.uri) and (not archs or arch in archs):
                yield replace(source, components=components)


def _one_line(text: str) -> Iterator[tuple[list[str], Source]]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line.strip())
        if match:
            options = dict(part.split("=", 1) for part in (match[1] or "").split() if "=" in part)
            archs = [each for each in options.get("arch", "").split(",") if each]
            source = Source(uri=match[2], suite=match[3], components=tuple(match[4].split()))
            yield archs, replace(source, signed_by=_keyring(options.get("signed-by", "")))


def _deb822(text: str) -> Iterator[tuple[list[str], Source]]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.strip().lower(): re.sub(r"\s+", " ", value).strip()
            for name, _, value in (part.partition(":") for part in re.split(r"\n(?=\S)", stanza.strip()))
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                keyring = _keyring(fields.get("signed-by", ""))
                source = Source(uri=uri, suite=suite, components=components, signed_by=keyring)
                yield fields.get("architectures", "").split(), source


def _keyring(signed_by: str) -> str:
    """A keyring that the finished tree has too; others and inline keys are left to apt's own trust."""
    return signed_by if re.fullmatch(r"/usr/share/keyrings/[\w.-]+", signed_by) else ""
