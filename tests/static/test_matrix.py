"""The other half of the matrix: roots of other systems, all architectures. `make test-matrix` runs it: minutes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from biruda.model import Outcome
from tests.static.conftest import CHECKOUT, OWN_ARCH, build
from tests.static.hello import started
from tests.static.places import WITH_PROC, Maker, Place
from tests.static.test_kernel import BUILDER
from tests.static.test_packages import build_packages, by_dpkg, check_farm
from tests.static.test_places import check_guess, check_worker
from tests.worker.peer import recipe_of, shell, step

FETCH = "import sys; sys.path.insert(0, sys.argv[1]); import sources; print(sources.tarball(sys.argv[2]))"

pytestmark = pytest.mark.skipif("BIRUDA_MATRIX" not in os.environ, reason="takes minutes: make test-matrix runs it")

QEMU = {
    "amd64": "qemu-x86_64-static",
    "i386": "qemu-i386-static",
    "arm64": "qemu-aarch64-static",
    "armhf": "qemu-arm-static",
    "riscv64": "qemu-riscv64-static",
    "ppc64el": "qemu-ppc64le-static",
}
KEYRING = "ubuntu-keyring"  # of sources.toml: Debian packages what signs Ubuntu's old suites
NATIVE = {"amd64": ("amd64", "i386"), "arm64": ("arm64",)}
SUITES = ("bullseye", "bookworm", "trixie")


@pytest.fixture(scope="session")
def all_workers(dist: Path) -> Path:
    build("--workers")
    return dist / "workers"


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which environments are built; BIRUDA_MATRIX_ROOTS names one that is kept."""
    kept = os.environ.get("BIRUDA_MATRIX_ROOTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("roots")


def suite_root(roots: Path, suite: str, arch: str = OWN_ARCH) -> Path:
    """A root tree of a suite, by `biruda env build`; the test is skipped where that cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a root tree is built")
    name = f"{suite}-{arch}"
    root = roots / "environments" / name / "root"
    if not root.is_dir():
        words = ["env", "build", name, "--suite", suite, "--arch", arch, "--home", str(roots)]
        done = subprocess.run(
            [sys.executable, "-m", "biruda", *words], capture_output=True, text=True, check=False, cwd=CHECKOUT
        )
        if done.returncode != 0:
            pytest.skip(f"no root tree of {name}: {done.stderr.strip()[-300:]}")
    return root


def ubuntu_root(roots: Path) -> Path:
    """Of Ubuntu 16.04, unpacked but not set up: that takes an order of packages which mmdebstrap does not keep."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a root tree is built")
    root = roots / "xenial"
    if not root.is_dir():
        argv = ["mmdebstrap", "--mode=root", "--variant=extract", "--skip=check/qemu,output/dev"]
        argv += [f"--keyring={ubuntu_keyring(roots)}", "--include=apt,bash,coreutils,dash,dpkg", "xenial", str(root)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(root, ignore_errors=True)
            pytest.skip(f"no root tree of Ubuntu 16.04: {done.stderr.strip()[-300:]}")
    return root


def ubuntu_keyring(roots: Path) -> Path:
    """The keys of Ubuntu's archive, from the package that Debian has of them; skips where it cannot be had."""
    unpacked = roots / KEYRING
    argv = [BUILDER, "-B", "-c", FETCH, CHECKOUT / "packaging", KEYRING]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no {KEYRING}: {done.stderr.strip().splitlines()[-1:]}")
    subprocess.run(["dpkg-deb", "--extract", done.stdout.strip(), unpacked], check=True)
    return unpacked / "usr/share/keyrings/ubuntu-archive-keyring.gpg"


@pytest.mark.parametrize("kind", ["worker", "executable"])
@pytest.mark.parametrize("suite", SUITES)
def test_debian(suite: str, kind: str, roots: Path, maker: Maker, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(kind)
    place = maker.place(suite_root(roots, suite), file, mounts=[WITH_PROC], tool="apt-get --version")
    check_guess(place)
    check_worker(place)


@pytest.mark.parametrize("kind", ["worker", "executable"])
def test_ubuntu_16_04(kind: str, roots: Path, maker: Maker, request: pytest.FixtureRequest) -> None:
    file: Path = request.getfixturevalue(kind)
    place = maker.place(ubuntu_root(roots), file, mounts=[WITH_PROC], tool="apt-get --version")
    check_guess(place)
    check_worker(place)


def test_an_i386_root_on_amd64(roots: Path, maker: Maker, all_workers: Path) -> None:
    if OWN_ARCH != "amd64":
        pytest.skip("needs an amd64 machine")
    root = suite_root(roots, "bullseye", "i386")
    place = maker.place(root, all_workers / "i386", mounts=[WITH_PROC], tool="apt-get --version")
    with started(place.argv, guess=True, work="/tmp/work", personality32=True) as worker:
        assert worker.hello.arch == "i386"
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell("uname -m; dpkg --print-architecture")))
        assert worker.peer.result().outcome is Outcome.PASSED
        assert bytes(worker.peer.log.head) == b"i686\ni386\n"
        worker.peer.record()


@pytest.mark.parametrize("kind", ["worker", "executable"])
def test_the_amd64_ones_in_an_i386_root(kind: str, roots: Path, maker: Maker, request: pytest.FixtureRequest) -> None:
    if OWN_ARCH != "amd64":
        pytest.skip("needs an amd64 machine")
    file: Path = request.getfixturevalue(kind)
    place = maker.place(suite_root(roots, "bullseye", "i386"), file, mounts=[WITH_PROC], tool="apt-get --version")
    assert json.loads(place.run("--guess-env", "--json").stdout)["arch"] == "i386", "the programs decide"
    check_worker(place)


@pytest.mark.parametrize("arch", QEMU)
def test_every_architecture_starts(arch: str, all_workers: Path, maker: Maker) -> None:
    """In an empty root its own word counts; by its emulator where this machine is of another architecture."""
    emulator = [] if arch in NATIVE.get(OWN_ARCH, (OWN_ARCH,)) else [shutil.which(QEMU[arch]) or ""]
    if emulator == [""]:
        pytest.skip(f"needs {QEMU[arch]}: apt-get install qemu-user-static")
    argv = [*emulator, str(all_workers / arch)]
    said = subprocess.run([*argv, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.endswith(f"(static worker, {arch})\n")
    empty = maker.empty()
    guess = Place(tuple(argv)).run("--guess-env", "--json", "--root", str(empty))
    assert (guess.returncode, guess.stderr) == (0, "")
    with started(argv, guess=True) as worker:
        assert worker.hello.arch == arch
        worker.peer.attach()
        worker.peer.assign(recipe_of(shell("echo a job of $(uname -s)"), step("/bin/false", name="ends")))
        assert worker.peer.result().outcome is Outcome.FAILED
        assert bytes(worker.peer.log.head) == b"a job of Linux\n"
        worker.peer.record()


def test_the_deb_in_debian(dist: Path, roots: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", suite_root(roots, "bookworm"), root], check=True)
    check_farm(by_dpkg, build_packages(dist), root)


IGNORED = shutil.ignore_patterns(".git", ".venv", "dist", "__pycache__", ".mypy_cache", ".demo", ".six", "spool")
SHARED = ("cpython-", "zig-", "sources", "environment-")  # of the cache: what is not biruda's own


def build_apart(where: Path, *options: str) -> Path:
    """What a copy of the sources makes in a directory of its own, with a cache that holds nothing of biruda's own."""
    shutil.copytree(CHECKOUT, where / "sources", ignore=IGNORED)
    cache = where / "cache"
    cache.mkdir()
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for path in Path(os.environ.get("BIRUDA_BUILD_CACHE") or user / "biruda-build").iterdir():
        if path.name.startswith(SHARED) and path.is_dir() and path.name != "zig-cache":
            (cache / path.name).symlink_to(path)
    env = {**os.environ, "BIRUDA_BUILD_CACHE": str(cache)}
    words = [where / "sources" / "build-static.sh", *options, "--output", where / "out"]
    done = subprocess.run(words, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return where / "out"


def test_two_builds_are_identical(dist: Path, tmp_path: Path) -> None:
    """Of all but the interpreter and the packages: in two directories, each with an empty cache for the rest."""
    (tmp_path / "one").mkdir()
    (tmp_path / "another").mkdir()
    one = build_apart(tmp_path / "one", "--arch", OWN_ARCH)
    other = build_apart(tmp_path / "another", "--arch", OWN_ARCH)
    for name in (f"workers/{OWN_ARCH}", "biruda"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_workers_of_all_architectures_are_identical(all_workers: Path, tmp_path: Path) -> None:
    other = build_apart(tmp_path, "--workers")
    for arch in QEMU:
        assert (other / "workers" / arch).read_bytes() == (all_workers / arch).read_bytes(), arch
