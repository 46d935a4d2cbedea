"""The guess from inside, on this machine as it is and on others by what they would say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from biruda.guessenv import Seen, canonical_arch, guess, guess_here

DEBIAN = "ID=debian\nVERSION_ID=12\n"
LINUX = "6.1.0-18-generic"
CPU_X86 = b"processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n"
CPU_ARM = b"processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n"


def linux(machine, **said):
    return Seen(system="Linux", machine=machine, **{"release": LINUX, **said})


@pytest.mark.skipif(not shutil.which("dpkg"), reason="compares with dpkg, which is not here")
def test_this_machine_agrees_with_its_dpkg():
    said = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()

    assert guess().arch == guess_here().arch == canonical_arch(said)


@pytest.mark.skipif(not Path("/etc/os-release").exists(), reason="compares with os-release, which is not here")
def test_this_machine_agrees_with_its_os_release():
    script = '. /etc/os-release; printf "%s %s %s" "$ID" "$VERSION_ID" "$BUILD_ID"'
    said = subprocess.run(["/bin/sh", "-c", script], check=True, capture_output=True, text=True).stdout.split(" ")

    found = guess()

    assert (found.system_id, found.system_version) == (said[0], "" if said[2] == "rolling" else said[1])
    assert found.platform.startswith(said[0].replace("-", "_"))


def test_this_interpreter_is_in_the_evidence():
    found = guess_here()

    assert found.bits in (32, 64)
    assert any(sentence.startswith("the running interpreter: ") for sentence in found.evidence)
    assert any(sentence.startswith("uname: ") and os.uname().machine in sentence for sentence in found.evidence)
    assert not found.emulated


def test_uname_that_lies_to_32_bit_programs(tree):
    seen = linux("x86_64", bits=32, multiarch="i386-linux-gnu", cpuinfo=CPU_X86)

    found = guess_here(seen, tree.program("/bin/sh", "i386").os_release(DEBIAN))

    assert (found.arch, found.platform, found.bits, found.emulated) == ("i386", "debian12", 32, False)
    assert f"uname: Linux {LINUX} x86_64, which a 64-bit kernel also says to 32-bit programs" in found.evidence


@pytest.mark.parametrize(
    ("arch", "seen", "why"),
    [
        ("amd64", linux("x86_64", cpuinfo=CPU_X86), ""),
        ("i386", linux("x86_64"), ""),
        ("x32", linux("x86_64"), ""),
        ("armhf", linux("aarch64", cpuinfo=CPU_ARM), ""),
        ("armel", linux("armv7l"), ""),
        ("ppc64el", linux("ppc64le"), ""),
        ("mipsel", linux("mips64"), ""),
        ("arm64", linux("aarch64", release="6.1.0-18-arm64"), ""),
        ("arm64", linux("aarch64", release="6.1.0-alpha"), ""),
        ("arm64", linux("aarch64", release="5.4.386"), ""),
        ("arm64", linux("unheard-of"), ""),
        ("arm64", linux("x86_64"), "uname"),
        ("amd64", linux("aarch64"), "uname"),
        ("s390x", linux("x86_64"), "uname"),
        ("arm64", linux("aarch64", release="6.1.0-18-amd64"), "the kernel's release"),
        ("arm64", linux("aarch64", release="6.5.6-300.fc39.x86_64"), "the kernel's release"),
        ("riscv64", linux("riscv64", cpuinfo=CPU_ARM), "/proc/cpuinfo"),
        ("arm64", linux("aarch64", cpuinfo=CPU_X86), "/proc/cpuinfo"),
    ],
)
def test_emulated_when_the_machine_is_of_another_family(tree, arch, seen, why):
    found = guess_here(seen, tree.program("/bin/sh", arch))

    assert found.emulated == bool(why)
    assert bool(why) == found.evidence[-1].endswith("-> emulated")
    assert found.evidence[-1].startswith(why)


def test_root_decides_when_the_interpreter_was_put_into_it(tree):
    found = guess_here(linux("x86_64", multiarch="x86_64-linux-gnu"), tree.program("/bin/sh", "i386"))

    assert (found.arch, found.bits) == ("i386", 32)
    assert "the running interpreter is amd64 and the programs of / are i386: the programs decide" in found.evidence


@pytest.mark.parametrize(
    ("seen", "arch", "bits"),
    [
        (linux("x86_64", multiarch="x86_64-linux-gnux32", bits=32), "x32", 32),
        (linux("x86_64", bits=32), "i386", 32),
        (linux("aarch64", bits=32), "armhf", 32),
        (linux("riscv64"), "riscv64", 64),
        (linux("unheard-of"), "unknown", 64),
    ],
)
def test_interpreter_decides_in_an_empty_root(tree, seen, arch, bits):
    found = guess_here(seen, tree)

    assert (found.arch, found.bits, found.platform) == (arch, bits, "unknown")


@pytest.mark.parametrize(
    ("seen", "arch", "platform", "libc"),
    [
        (Seen(system="Windows", machine="AMD64", version="11", release="10.0.22631"), "amd64", "windows11", "ucrt"),
        (Seen(system="Windows", machine="ARM64", version="server2022"), "arm64", "windowsserver2022", "ucrt"),
        (Seen(system="Windows", machine="AMD64", version="10", bits=32), "i386", "windows10", "ucrt"),
        (Seen(system="Darwin", machine="arm64", version="14.1.2", release="23.1.0"), "arm64", "macos14", "libsystem"),
        (Seen(system="Darwin", machine="x86_64", version="10.15.7"), "amd64", "macos10.15", "libsystem"),
        (Seen(system="FreeBSD", machine="amd64", release="14.1-RELEASE-p5"), "amd64", "freebsd14.1", "unknown"),
        (Seen(system="OpenBSD", machine="arm64", release="7.5"), "arm64", "openbsd7.5", "unknown"),
    ],
)
def test_other_systems(tree, seen, arch, platform, libc):
    found = guess_here(seen, tree)

    assert (found.arch, found.platform, found.libc, found.emulated) == (arch, platform, libc, False)


def test_freebsd_with_its_own_programs(tree):
    tree.program("/bin/sh", "amd64", interpreter="/libexec/ld-elf.so.1").os_release('ID=freebsd\nVERSION_ID="14.1"\n')

    found = guess_here(Seen(system="FreeBSD", machine="amd64", release="14.0-RELEASE"), tree)

    assert (found.platform, found.libc) == ("freebsd14.1", "freebsd")  # the userland's version, not the kernel's


@pytest.mark.parametrize(
    ("version", "server", "name"),
    [
        ((10, 0, 22631), False, "11"),
        ((10, 0, 19045), False, "10"),
        ((6, 1, 7601), False, "7"),
        ((10, 0, 20348), True, "server2022"),
        ((10, 0, 26100), True, "server2025"),
        ((6, 1, 7601), True, "server"),
        ((12, 3, 1), False, "12.3"),
    ],
)
def test_names_of_windows(version, server, name):
    from biruda.guessenv.here import windows_name

    assert windows_name(*version, server=server) == name


def test_import_is_light():
    """It runs in every new environment before any job: no dataclasses, typing, re or subprocess behind it."""
    code = (
        "import os, sys; before = set(sys.modules); import biruda.guessenv as g; g.guess_here();"
        "print(*set(sys.modules) - before)"
    )
    top = str(Path(__file__).parents[2])
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=top, check=True, capture_output=True, text=True)

    assert {name for name in run.stdout.split() if not name.startswith("biruda")} <= {"errno"}


def test_own_machine_is_seen_without_a_release_file_of_linux(tree):
    """Linux alone is a kernel and no platform."""
    assert guess_here(linux("x86_64"), tree).platform == "unknown"
