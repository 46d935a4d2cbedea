"""libpython.a for a target, with musl and the C modules of worker/Setup.local, and a python that runs here.

The one for this machine's own architecture is built first: a static executable runs on any Linux, so it is the build
python of the others and freezes the modules of all.
"""

import os
import shutil
from pathlib import Path

import sources
from cache import key_of, stage
from problem import BuildProblem, run
from targets import TARGETS, Target, own_arch
from toolchain import LOCK, OPTIMIZE, compile_argv, compiler_environment, tool_scripts

HERE = Path(__file__).parent
MAIN = HERE / "native" / "build_python.c"
SETUP = HERE / "worker" / "Setup.local"

RECIPE = "1"  # to be changed with what _build() and _keep() do: it is part of the cache's key

CONFIGURE = (
    "--disable-shared",
    "--disable-test-modules",
    "--without-doc-strings",
    "--without-ensurepip",
    "--without-mimalloc",
    "--with-pymalloc",
    "--with-system-libmpdec=no",
)
# Answers that configure can find only by running a program of the target
SITE = (
    "ac_cv_file__dev_ptmx=no",
    "ac_cv_file__dev_ptc=no",
    "ac_cv_buggy_getaddrinfo=no",
    "ac_cv_computed_gotos=yes",
)

# Not of the standard library that freezing needs
NOT_KEPT = ("test", "idlelib", "ensurepip", "tkinter", "turtledemo", "lib2to3", "pydoc_data", "__pycache__")


def cpython(arch: str) -> Path:
    """A directory with libpython.a and include/ for arch; for this machine's bin/python too. Raises BuildProblem."""
    target = TARGETS[arch]
    pins = [sources.pinned(name)["sha256"] for name in ("python", "zlib")]
    words = "\n".join((target.zig, target.gnu, target.multiarch, *CONFIGURE, *SITE, *OPTIMIZE))
    key = key_of(RECIPE, *pins, words, SETUP, MAIN, LOCK)
    return stage(f"cpython-{arch}", key, lambda place: _build(target, place))


def build_python() -> Path:
    """The python that freezes modules, of the version that workers have."""
    arch = own_arch()
    if not arch:
        raise BuildProblem(
            f"workers cannot be built on {os.uname().machine}", hint=f"build on one of {', '.join(sorted(TARGETS))}"
        )
    return cpython(arch) / "bin" / "python"


def _build(target: Target, place: Path) -> None:
    is_own = target.arch == own_arch()
    helper = None if is_own else build_python()
    source, build, log = place / "source", place / "build", place / "log"
    sources.unpack("python", source)
    _add_zlib(source, place)
    (build / "Modules" / "_zlib").mkdir(parents=True)
    shutil.copy(SETUP, build / "Modules" / "Setup.local")
    tools = tool_scripts(target, place / "tools")
    env = compiler_environment(
        **tools,
        CFLAGS=" ".join(OPTIMIZE),
        OPT="-DNDEBUG -fwrapv",
        LDFLAGS="-static -s",
        PKG_CONFIG="false",
        MODULE_BUILDTYPE="static",
    )
    # Without a build python it is a native build, whatever the C library: what it compiles runs here.
    machine = TARGETS[own_arch()].gnu
    where = [f"--build={machine}", f"--host={machine if is_own else target.gnu}"]
    where += [f"--with-build-python={helper}"] if helper else []
    run(["../source/configure", *where, *CONFIGURE, *SITE], cwd=build, log=log, env=env)
    make = [
        "make",
        f"-j{os.cpu_count() or 1}",
        "LINKFORSHARED= ",
        f'MULTIARCH_CPPFLAGS=-DMULTIARCH=\\"{target.multiarch}\\"',
        "EXTRA_CFLAGS=-Wno-error=date-time",
        "LIBRARY=libpython.a",
        "libpython.a",
    ]
    run(make, cwd=build, log=log, env=env)
    if is_own:
        includes = [f"-I{folder}" for folder in (".", "../source/Include", "../source/Include/internal")]
        inputs = [MAIN, "../source/Modules/unicodedata.c", "libpython.a", "-lm"]
        own = [*compile_argv(target), "-static", "-s", "-DPy_BUILD_CORE_BUILTIN", *includes, "-o", "python", *inputs]
        run(own, cwd=build, log=log, env=env)
    _keep(place, is_own)


def _add_zlib(source: Path, place: Path) -> None:
    sources.unpack("zlib", place / "zlib")
    folder = source / "Modules" / "_zlib"
    folder.mkdir()
    for path in (place / "zlib").glob("*.[ch]"):
        shutil.copy(path, folder)
    shutil.rmtree(place / "zlib")


def _keep(place: Path, is_own: bool) -> None:
    """What linking and freezing need; the rest goes."""
    source, build = place / "source", place / "build"
    (build / "libpython.a").rename(place / "libpython.a")
    shutil.copytree(source / "Include", place / "include")
    (build / "pyconfig.h").rename(place / "include" / "pyconfig.h")
    if is_own:
        (place / "bin").mkdir()
        (build / "python").rename(place / "bin" / "python")
        version = ".".join(sources.pinned("python")["version"].split(".")[:2])
        library = place / "lib" / f"python{version}"
        shutil.copytree(source / "Lib", library, ignore=shutil.ignore_patterns(*NOT_KEPT))
        (library / "lib-dynload").mkdir()
    shutil.rmtree(source)
    shutil.rmtree(build)
