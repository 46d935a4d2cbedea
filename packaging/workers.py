"""Static workers: interpreter, kernel builtin and frozen modules, linked into one file for each target."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cpython import build_python, cpython
from problem import BuildProblem, clean_environment, run
from targets import TARGETS
from toolchain import compile_argv, compiler_environment

HERE = Path(__file__).parent
CHECKOUT = HERE.parent


def build_workers(arches: Sequence[str], output: Path) -> list[Path]:
    """output/ARCH for each, mode 0755; an older one is replaced in one step. Raises BuildProblem."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="biruda-worker-") as scratch:
        frozen = Path(scratch)
        _freeze(frozen)
        return [_link(arch, frozen, output) for arch in arches]


def _freeze(frozen: Path) -> None:
    """The modules are the same for every target: bytecode knows no architecture."""
    # Nothing compiled earlier is read: what marshal writes depends on whether a constant came from such a file.
    python = [build_python(), "-I", "-S", "-B", "-X", f"pycache_prefix={frozen}/none"]
    argv = [*python, HERE / "worker" / "freeze.py", CHECKOUT, frozen]
    done = subprocess.run(argv, capture_output=True, text=True, env=clean_environment(), check=False)
    if done.returncode != 0:
        raise BuildProblem(done.stderr.strip().removeprefix("build-static: "))
    print(f"   worker modules: {done.stdout.strip()}")


def _link(arch: str, frozen: Path, output: Path) -> Path:
    target, python = TARGETS[arch], cpython(arch)
    unlinked = frozen / arch
    native = [HERE / "native" / name for name in ("worker.c", "biruda_module.c", "sha256.c")]
    argv = [
        *compile_argv(target),
        *("-static", "-s", "-Wl,--gc-sections", "-Wall", "-Wextra", "-Wno-unused-parameter"),
        f'-DBIRUDA_ARCH="{arch}"',
        *("-I", str(python / "include"), "-o", str(unlinked)),
        *map(str, native),
        *("frozen.c", str(python / "libpython.a"), "-lm"),
    ]
    run(argv, cwd=frozen, log=frozen / f"{arch}.log", env=compiler_environment())
    unlinked.chmod(0o755)
    whole = output / f".{arch}.new"
    whole.write_bytes(unlinked.read_bytes())
    whole.chmod(0o755)
    return whole.rename(output / arch)
