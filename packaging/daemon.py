"""dist/biruda: PyInstaller collects what biruda imports, a launcher in front unpacks it and starts it.

Three parts lie behind the launcher, each a zstd frame with an archive: the base (Python and packages; slow, so it is
cached), biruda's own modules, and the static workers.
"""

import ast
import json
import os
import py_compile
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sources
from archive import write_executable
from cache import key_of, stage
from problem import BuildProblem, clean_environment, run
from targets import TARGETS, own_arch
from toolchain import EPOCH, compile_argv, compiler_environment

HERE = Path(__file__).parent
CHECKOUT = HERE.parent
LOCKS = (CHECKOUT / "requirements" / "runtime.txt", CHECKOUT / "requirements" / "static.txt")
RECIPE = "1"  # to be changed with what _base() does: it is part of the cache's key

LAUNCHER = ("launcher.c", "cachedir.c", "unpack.c")

# What the loader of another system would have to find, and must not
GLIBC = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2")
GLIBC_OPTIONAL = ("libnss_files.so.2", "libnss_dns.so.2")

# Imported by biruda where it runs from source only, or where they are there
OPTIONAL = {"_biruda", "_typeshed"}

DATA = (
    ".sql",
    ".html",
    ".css",
    ".js",
    ".mjs",
    ".svg",
    ".png",
    ".ico",
    ".json",
    ".txt",
    ".woff2",
    ".toml",
    ".xml",
    ".md",
)


def build_executable(workers: Path, output: Path) -> Path:
    """output/biruda, mode 0755, with the workers of that directory in it. Raises BuildProblem."""
    base = _base()
    with tempfile.TemporaryDirectory(prefix="biruda-executable-") as scratch:
        app, carried = Path(scratch) / "app", Path(scratch) / "workers"
        _own_modules(app)
        shutil.copy(_launcher(), app / "biruda")
        _workers(workers, carried)
        output.mkdir(parents=True, exist_ok=True)
        return write_executable(
            output / "biruda", launcher=_launcher(), base=base, app=app, workers=carried, python=_python()
        )


def _python() -> Path:
    """Of the locked environment that is collected from; installed where it is not cached."""
    place = stage("environment", key_of(*LOCKS, sys.version, sys.prefix), _install, in_place=True)
    return place / "bin" / "python"


def _install(place: Path) -> None:
    log, env = place / "log", clean_environment()
    run([sys.executable, "-m", "venv", place], cwd=place, log=log, env=env)
    pip = [place / "bin" / "pip", "install", "--no-deps", "--require-hashes"]
    for lock in LOCKS:
        run([*pip, "-r", lock], cwd=place, log=log, env=env)


def _launcher() -> Path:
    pins = sources.pinned("zstd")["sha256"]
    native = [HERE / "native" / name for name in (*LAUNCHER, "cachedir.h", "unpack.h")]
    words = " ".join((_loader_name(), *compile_argv(TARGETS[_arch()])[1:]))
    return stage("launcher", key_of(pins, words, *native), _compile_launcher) / "launcher"


def _arch() -> str:
    arch = own_arch()
    if not arch:
        raise BuildProblem(f"the executable cannot be built on {os.uname().machine}")
    return arch


def _compile_launcher(place: Path) -> None:
    sources.unpack("zstd", place / "zstd")
    library = place / "zstd" / "lib"
    files = [path for part in ("common", "decompress") for path in sorted((library / part).glob("*.[cS]"))]
    argv = [
        *compile_argv(TARGETS[_arch()]),
        *("-static", "-s", "-Wl,--gc-sections", "-Wall", "-Wextra", "-DZSTD_LEGACY_SUPPORT=0", "-DXXH_NAMESPACE=ZSTD_"),
        *(f'-DLOADER_NAME="{_loader_name()}"', "-I", "zstd/lib", "-o", "launcher"),
        *(str(HERE / "native" / name) for name in LAUNCHER),
        *(str(path.relative_to(place)) for path in files),
    ]
    run(argv, cwd=place, log=place / "log", env=compiler_environment())
    shutil.rmtree(place / "zstd")


# --- the base -----------------------------------------------------------------------------------------------------


def _base() -> Path:
    """A directory with `tree`, what PyInstaller collected and the C library, and `base.zst`, the same packed."""
    wanted = json.dumps(_wanted(), indent=1)
    python = _python()
    libraries = _glibc()
    recipe = [path for path in sorted((HERE / "daemon").iterdir()) if path.is_file()]
    key = key_of(RECIPE, *LOCKS, sys.version, wanted, *libraries, *recipe, HERE / "archive.py")

    def make(place: Path) -> None:
        _collect(place, python, wanted)
        _add_libraries(place / "tree", libraries)
        run(
            [python, HERE / "archive.py", place / "tree", place / "base.zst"],
            cwd=place,
            log=place / "log",
            env=_steady(),
        )
        shutil.rmtree(place / "tree")

    return stage("base", key, make) / "base.zst"


def _steady() -> dict[str, str]:
    return clean_environment(PYTHONHASHSEED="0", SOURCE_DATE_EPOCH=EPOCH, PYINSTALLER_ZLIB_COMPRESSION_LEVEL="0")


def _collect(place: Path, python: Path, wanted: str) -> None:
    work = place / "work"
    shutil.copytree(HERE / "daemon", work, ignore=shutil.ignore_patterns("__pycache__"))
    (work / "wanted.json").write_text(wanted)
    argv = [
        python,
        "-m",
        "PyInstaller",
        "--noconfirm",
        "--log-level=WARN",
        "--distpath=.",
        "--workpath=made",
        "biruda.spec",
    ]
    run(argv, cwd=work, log=place / "log", env={**_steady(), "PYINSTALLER_CONFIG_DIR": str(work / "config")})
    (work / "collected").rename(place / "tree")
    shutil.rmtree(work)


def _wanted() -> dict[str, list[str]]:
    """All that biruda imports and is not its own: modules for certain, and names that may be modules too."""
    certain, perhaps = {"biruda"}, set()
    for path in sorted((CHECKOUT / "biruda").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
            if isinstance(node, ast.Import):
                certain.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                certain.add(node.module)
                perhaps.update(f"{node.module}.{alias.name}" for alias in node.names)

    def foreign(names: set[str]) -> list[str]:
        return sorted(name for name in names if name.partition(".")[0] != "biruda")

    return {"certain": foreign(certain), "perhaps": foreign(perhaps), "optional": sorted(OPTIONAL)}


def _glibc() -> list[Path]:
    """The C library of this system: the executable brings it along, so it starts where there is another or none."""
    folders = [Path(name) for name in ("/lib", "/usr/lib", "/lib64", "/usr/lib64")]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [*(folder / multiarch for folder in folders[:2] if multiarch), *folders]
    found = []
    for name in (_loader_name(), *GLIBC, *GLIBC_OPTIONAL):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None:
            found.append(path)
        elif name not in GLIBC_OPTIONAL:
            raise BuildProblem(
                f"{name}: not found on this system", hint="build the executable on a system with glibc, Debian for one"
            )
    return found


def _loader_name() -> str:
    return {
        "amd64": "ld-linux-x86-64.so.2",
        "i386": "ld-linux.so.2",
        "arm64": "ld-linux-aarch64.so.1",
        "armhf": "ld-linux-armhf.so.3",
        "riscv64": "ld-linux-riscv64-lp64d.so.1",
        "ppc64el": "ld64.so.2",
    }[_arch()]


def _add_libraries(tree: Path, libraries: list[Path]) -> None:
    for library in libraries:
        shutil.copy(library, tree / "_internal" / library.name)
    (tree / "_internal" / _loader_name()).chmod(0o755)


# --- biruda's own -------------------------------------------------------------------------------------------------


def _own_modules(app: Path) -> None:
    """app/app/biruda: compiled modules without their sources, and the files beside them that they read."""
    for path in _files(CHECKOUT / "biruda"):
        target = app / "app" / path.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            name = f"<biruda>/{path.relative_to(CHECKOUT / 'biruda')}"
            # docstrings stay: the command line shows them as its help
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(
                str(path), str(target.with_suffix(".pyc")), name, doraise=True, optimize=0, invalidation_mode=mode
            )
        else:
            shutil.copyfile(path, target)


def _files(package: Path) -> Iterator[Path]:
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in (".py", *DATA):
            yield path


def _workers(workers: Path, carried: Path) -> None:
    """Each packed for itself: it is unpacked alone, when it is first injected."""
    target = carried / "_internal" / "workers"
    target.mkdir(parents=True)
    for arch in TARGETS:
        if (worker := workers / arch).is_file():
            shutil.copyfile(_packed(worker), target / f"{arch}.zst")


def _packed(worker: Path) -> Path:
    def pack(place: Path) -> None:
        run(
            [_python(), "-B", HERE / "archive.py", worker, place / "packed"],
            cwd=place,
            log=place / "log",
            env=_steady(),
        )

    return stage(f"packed-{worker.name}", key_of(worker, HERE / "archive.py"), pack) / "packed"
