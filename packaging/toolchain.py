"""The compiler: zig from PyPI, by its lock file. It carries musl for every target: no cross compiler is needed."""

import sys
from pathlib import Path

from cache import cache_root, key_of, stage
from problem import BuildProblem, clean_environment, run
from targets import Target

LOCK = Path(__file__).parent.parent / "requirements" / "zig.txt"
EPOCH = "1700000000"  # of every date that a tool insists on

OPTIMIZE = ("-O3", "-g0", "-fno-sanitize=undefined", "-ffunction-sections", "-fdata-sections")


def zig() -> Path:
    """The zig executable; installed where it is not cached. Raises BuildProblem."""
    place = stage("zig", key_of(LOCK, sys.version), _install, in_place=True)
    found = next(place.glob("lib/python*/site-packages/ziglang/zig"), None)
    if found is None:
        raise BuildProblem(f"{place}: zig is not in it", hint="remove that directory; it is made again")
    return found


def _install(place: Path) -> None:
    env = clean_environment()
    run([sys.executable, "-m", "venv", place], cwd=place, log=place / "log", env=env)
    pip = [place / "bin" / "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", LOCK]
    run(pip, cwd=place, log=place / "log", env=env)


def compiler_environment(**more: str) -> dict[str, str]:
    """For zig: its caches lie in ours, and what it writes down as now is always the same."""
    caches = str(cache_root() / "zig-cache")
    return clean_environment(ZIG_GLOBAL_CACHE_DIR=caches, ZIG_LOCAL_CACHE_DIR=caches, SOURCE_DATE_EPOCH=EPOCH, **more)


def compile_argv(target: Target) -> list[str]:
    """zig as the C compiler for a target: the baseline CPU of its architecture."""
    return [str(zig()), "cc", "-target", target.zig, *OPTIMIZE]


def tool_scripts(target: Target, folder: Path) -> dict[str, str]:
    """CC, AR and RANLIB as one word each, for configure."""
    folder.mkdir()
    words = {"CC": f"cc -target {target.zig}", "AR": "ar", "RANLIB": "ranlib"}
    for name, command in words.items():
        script = folder / name.lower()
        script.write_text(f'#!/bin/sh\nexec {zig()} {command} "$@"\n')
        script.chmod(0o755)
    return {name: str(folder / name.lower()) for name in words}
