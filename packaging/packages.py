"""A .deb and an .rpm with dist/biruda and its systemd unit, by the distributions' own tools."""

import shutil
import sys
import tempfile
from pathlib import Path

from problem import BuildProblem, clean_environment, run
from targets import own_arch
from toolchain import EPOCH

HERE = Path(__file__).parent
CHECKOUT = HERE.parent

SUMMARY = "build farm in one file"
DESCRIPTION = """\
biruda turns this host into a build farm: master, coordinator and workers from
one executable, which needs nothing of the system it runs on. It builds and
tests in processes, chroots, containers and virtual machines.
"""

_RPM_ARCH = {
    "amd64": "x86_64",
    "i386": "i686",
    "arm64": "aarch64",
    "armhf": "armv7hl",
    "riscv64": "riscv64",
    "ppc64el": "ppc64le",
}

DEB_CONTROL = """\
Package: biruda
Version: {version}
Architecture: {arch}
Maintainer: the developers of biruda <biruda@localhost>
Installed-Size: {kilobytes}
Section: devel
Priority: optional
Recommends: zstd
Suggests: mmdebstrap, docker.io, qemu-system, qemu-user-static
Description: {summary}
{description}"""

# Neither starts the daemon: whoever wants it enables the unit. Removal stops it; attempts that still run end with
# their lease.
DEB_PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
    systemctl --no-reload disable --now biruda.service >/dev/null 2>&1 || true
fi
"""
DEB_POSTRM = """\
#!/bin/sh
set -e
[ "$1" != purge ] || rm -rf "${DPKG_ROOT:-}/var/cache/biruda"
[ -n "${DPKG_ROOT:-}" ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload >/dev/null 2>&1 || true
"""

RPM_SPEC = """\
Name: biruda
Version: {version}
Release: 1
Summary: {summary}
License: see /usr/share/doc/biruda
AutoReqProv: no
%global _build_id_links none
%global __os_install_post %{{nil}}
%global debug_package %{{nil}}
%define _rpmfilename %%{{NAME}}-%%{{VERSION}}-%%{{RELEASE}}.%%{{ARCH}}.rpm

%description
{description}
%install
cp -a {tree}/. %{{buildroot}}/

%files
%attr(0755,root,root) /usr/bin/biruda
%attr(0644,root,root) /usr/lib/systemd/system/biruda.service
%attr(0644,root,root) /usr/share/doc/biruda/biruda.conf.example

%preun
if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then
    systemctl --no-reload disable --now biruda.service >/dev/null 2>&1 || :
fi
"""


def build_packages(executable: Path, output: Path) -> list[Path]:
    """Both packages in output. Raises BuildProblem, also where a tool is missing."""
    for tool, package in (("dpkg-deb", "dpkg"), ("rpmbuild", "rpm")):
        if shutil.which(tool) is None:
            raise BuildProblem(f"{tool} is not there, so the package cannot be made", hint=f"apt-get install {package}")
    with tempfile.TemporaryDirectory(prefix="biruda-packages-") as scratch:
        return [_deb(executable, output, Path(scratch) / "deb"), _rpm(executable, output, Path(scratch) / "rpm")]


def _version() -> str:
    sys.path.insert(0, str(CHECKOUT))
    from biruda import VERSION

    return VERSION


def _tree(executable: Path, tree: Path, units: str) -> None:
    for source, target, mode in (
        (executable, tree / "usr/bin/biruda", 0o755),
        (HERE / "system" / "biruda.service", tree / units / "biruda.service", 0o644),
        (CHECKOUT / "biruda.conf.example", tree / "usr/share/doc/biruda/biruda.conf.example", 0o644),
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(mode)
    for folder in (tree, *(path for path in tree.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def _deb(executable: Path, output: Path, work: Path) -> Path:
    _tree(executable, work, "lib/systemd/system")
    kilobytes = sum(path.stat().st_size for path in work.rglob("*") if path.is_file()) // 1024
    description = "".join(f" {line}\n" for line in DESCRIPTION.splitlines())
    control = work / "DEBIAN"
    control.mkdir()
    text = DEB_CONTROL.format(
        version=_version(), arch=own_arch(), kilobytes=kilobytes, summary=SUMMARY, description=description
    )
    (control / "control").write_text(text)
    for name, script in (("prerm", DEB_PRERM), ("postrm", DEB_POSTRM)):
        (control / name).write_text(script)
        (control / name).chmod(0o755)
    package = output / f"biruda_{_version()}_{own_arch()}.deb"
    # what is in it is compressed already
    argv = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", work, package]
    run(argv, cwd=work.parent, log=work.parent / "deb.log", env=clean_environment(SOURCE_DATE_EPOCH=EPOCH))
    return package


def _rpm(executable: Path, output: Path, work: Path) -> Path:
    _tree(executable, work / "tree", "usr/lib/systemd/system")
    spec = work / "biruda.spec"
    spec.write_text(RPM_SPEC.format(version=_version(), summary=SUMMARY, description=DESCRIPTION, tree=work / "tree"))
    arch = _RPM_ARCH[own_arch()]
    argv = [
        *("rpmbuild", "-bb", "--quiet", "--target", f"{arch}-linux"),
        *("--define", f"_topdir {work}/top", "--define", f"_rpmdir {output}", "--define", "_buildhost localhost"),
        *("--define", "use_source_date_epoch_as_buildtime 1", "--define", "clamp_mtime_to_source_date_epoch 1"),
        *("--define", "_binary_payload w1.gzdio", "--define", f"_dbpath {work}/db"),
        spec,
    ]
    run(argv, cwd=work, log=work / "log", env=clean_environment(SOURCE_DATE_EPOCH=EPOCH))
    return output / f"biruda-{_version()}-1.{arch}.rpm"
