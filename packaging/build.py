"""What build-static.sh does, by stages: workers, the executable, packages."""

import argparse
import sys
import time
from pathlib import Path

from problem import BuildProblem
from targets import TARGETS, own_arch

CHECKOUT = Path(__file__).resolve().parent.parent

DESCRIPTION = """\
Make dist/workers/ARCH, the static workers, and dist/biruda, the one executable that carries them. Without options all
is made: the workers of every architecture, then the executable. What is slow is cached by content in
$BIRUDA_BUILD_CACHE, else in biruda-build of the user's cache directory.
"""


def main() -> int:
    """Build what the command line asks for; the status to exit with."""
    options = _options()
    began = time.monotonic()
    try:
        _build(options)
    except BuildProblem as problem:
        sys.stderr.write(f"build-static: {problem}\n" + (f"hint: {problem.hint}\n" if problem.hint else ""))
        return 1
    print(f"== done after {time.monotonic() - began:.1f} s")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build-static.sh", description=DESCRIPTION)
    parser.add_argument(
        "--arch",
        action="append",
        choices=["own", *sorted(TARGETS)],
        help="only this worker; may be repeated; the executable then carries what is in dist/workers",
    )
    parser.add_argument("--workers", action="store_true", help="the workers, and no executable")
    parser.add_argument("--packages", action="store_true", help="also a .deb and an .rpm of the executable")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "dist", metavar="DIR", help="instead of dist")
    return parser.parse_args()


def _build(options: argparse.Namespace) -> None:
    from workers import build_workers

    output: Path = options.output.resolve()
    # this machine's own first: its Python builds the others
    wanted = {own_arch() if arch == "own" else arch for arch in options.arch or TARGETS} - {""}
    arches = sorted(wanted, key=lambda arch: (arch != own_arch(), arch))
    print(f"== workers: {' '.join(arches)}", flush=True)
    for worker in build_workers(arches, output / "workers"):
        print(f"   {worker}  {worker.stat().st_size / 1e6:.1f} MB", flush=True)
    if options.workers:
        return
    from daemon import build_executable

    print("== the executable", flush=True)
    executable = build_executable(output / "workers", output)
    print(f"   {executable}  {executable.stat().st_size / 1e6:.1f} MB", flush=True)
    if options.packages:
        from packages import build_packages

        print("== packages", flush=True)
        for package in build_packages(executable, output):
            print(f"   {package}  {package.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
