"""The packages: what is in them, and that they can be installed and removed, in a root of their own."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from biruda import VERSION
from tests.coordinator.spawners.support import busybox_root
from tests.static.conftest import OWN_ARCH, build
from tests.static.places import BareHost

Install = Callable[[Path, Path], list[str]]

FILES = {"/usr/bin/biruda", "/usr/share/doc/biruda/biruda.conf.example"}


@pytest.fixture(scope="module")
def packages(dist: Path) -> Path:
    return build_packages(dist)


def build_packages(dist: Path) -> Path:
    """Where they lie; the test is skipped where a tool is missing."""
    for tool in ("dpkg-deb", "rpmbuild", "rpm"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install dpkg rpm")
    build("--arch", OWN_ARCH, "--packages")
    return dist


def said(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def deb_of(packages: Path) -> Path:
    return packages / f"biruda_{VERSION}_{OWN_ARCH}.deb"


def rpm_of(packages: Path) -> Path:
    (found,) = packages.glob(f"biruda-{VERSION}-1.*.rpm")
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dpkg changes owners")
def test_the_deb_is_installed_and_removed(packages: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("var/lib/dpkg/info", "var/lib/dpkg/updates"):
        (root / name).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    # the maintainer scripts run on this machine, where they find no systemd of that root
    dpkg = ["dpkg", f"--root={root}", "--force-not-root", "--force-script-chrootless", "--log=/dev/null"]
    said(*dpkg, "--install", deb_of(packages))
    installed = root / "usr/bin/biruda"
    assert installed.read_bytes() == (packages / "biruda").read_bytes()
    env = {"PATH": os.environ["PATH"], "BIRUDA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == f"biruda {VERSION}\n"
    unit = (root / "lib/systemd/system/biruda.service").read_text()
    assert "KillMode=process" in unit
    assert "Delegate=yes" in unit
    said(*dpkg, "--purge", "biruda")
    assert not installed.exists()
    assert not (root / "lib/systemd").exists()


def by_dpkg(packages: Path, root: Path) -> list[str]:
    """Install the .deb in a root that has a shell; what removes it."""
    for name in ("info", "updates"):
        (root / "var/lib/dpkg" / name).mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/status").touch()
    dpkg = ["dpkg", f"--root={root}", "--log=/dev/null"]
    said(*dpkg, "--install", deb_of(packages))
    return [*dpkg, "--purge", "biruda"]


def by_rpm(packages: Path, root: Path) -> list[str]:
    """Install the .rpm in a root that has a shell; what removes it."""
    rpm = ["rpm", "--force-debian", f"--root={root}", "--dbpath=/var/lib/rpm", "--nodeps"]
    said(*rpm, "--install", rpm_of(packages))
    return [*rpm, "--erase", "biruda"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another root is entered")
@pytest.mark.parametrize("install", [by_dpkg, by_rpm])
def test_a_farm_from_the_installed_package(install: Install, packages: Path, tmp_path: Path) -> None:
    check_farm(install, packages, busybox_root(tmp_path / "root"))


def check_farm(install: Install, packages: Path, root: Path) -> None:
    """Install, up, a green job, down, remove; nothing that was installed is left."""
    remove = install(packages, root)
    assert (root / "usr/bin/biruda").read_bytes() == (packages / "biruda").read_bytes()
    host = BareHost(root)
    try:
        version = host.run("biruda", "--version")
        assert (version.stdout, version.stderr) == (f"biruda {VERSION}\n", "")
        up = host.run("biruda", "up")
        assert (up.returncode, up.stderr) == (0, "")
        job = host.run("biruda", "run", "--no-source", "--", "sh", "-c", "echo from a package")
        assert (job.returncode, job.stdout) == (0, "from a package\n"), job.stderr
        assert host.run("biruda", "down").returncode == 0
    finally:
        host.run("biruda", "down")
        host.close()
    said(*remove)
    assert [path for path in FILES if (root / path.lstrip("/")).exists()] == []


def test_the_rpm_has_the_same_files(packages: Path, tmp_path: Path) -> None:
    rpm = ["rpm", "--dbpath", str(tmp_path / "db"), "-qp"]
    listed = set(said(*rpm, "--list", rpm_of(packages)).split())
    assert listed == FILES | {"/usr/lib/systemd/system/biruda.service"}
    assert said(*rpm, "--queryformat", "%{NAME} %{VERSION}", rpm_of(packages)) == f"biruda {VERSION}"
    assert "/usr/lib" not in said(*rpm, "--requires", rpm_of(packages))


def test_systemd_understands_the_unit(packages: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / "biruda.service"
    text = (Path(__file__).parents[2] / "packaging/system/biruda.service").read_text()
    unit.write_text(text.replace("/usr/bin/biruda", str(packages / "biruda")))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "biruda.service" not in done.stderr, done.stderr
