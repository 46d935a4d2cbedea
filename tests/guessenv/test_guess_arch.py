"""Architecture and C library of a root tree, by its programs and its package databases."""

import pytest

from biruda.guessenv import guess

WIDE = ["amd64", "arm64", "riscv64", "loong64", "ppc64el", "ppc64", "s390x", "mips64el", "mips64eb", "sparc64"]
NARROW = ["i386", "x32", "armhf", "armel", "powerpc", "mipsel", "mipsn32el"]


@pytest.mark.parametrize("arch", [*WIDE, *NARROW])
def test_program_decides(tree, arch):
    found = guess(tree.program("/bin/sh", arch))

    assert (found.arch, found.libc) == (arch, "glibc")
    assert found.bits == (32 if arch in NARROW else 64)
    assert not found.emulated
    assert found.evidence[0].startswith("/bin/sh: ELF ")
    assert found.evidence[0].endswith(f" -> {arch}, glibc")


@pytest.mark.parametrize(
    ("arch", "interpreter", "libc"),
    [
        ("amd64", "/lib/ld-musl-x86_64.so.1", "musl"),
        ("arm64", "/system/bin/linker64", "bionic"),
        ("i386", "/lib/ld-uClibc.so.0", "uclibc"),
        ("amd64", "/libexec/ld-elf.so.1", "freebsd"),
        ("amd64", "/usr/libexec/ld.elf_so", "netbsd"),
        ("amd64", "/usr/libexec/ld.so", "openbsd"),
        ("amd64", "/nix/store/0123-glibc-2.38/lib/ld-linux-x86-64.so.2", "glibc"),
        ("amd64", "/opt/own/loader", "unknown"),
        ("amd64", "", "none"),
    ],
)
def test_interpreter_names_the_libc(tree, arch, interpreter, libc):
    found = guess(tree.program("/bin/sh", arch, interpreter=interpreter))

    assert (found.arch, found.libc) == (arch, libc)


@pytest.mark.parametrize(
    ("interpreter", "recorded", "arch"),
    [
        ("/lib/ld-linux-armhf.so.3", "", "armhf"),
        ("/lib/ld-linux.so.3", "", "armel"),
        ("/lib/ld-musl-armhf.so.1", "", "armhf"),
        ("/lib/ld-musl-arm.so.1", "", "armel"),
        ("", "armhf", "armhf"),
        ("", "armel", "armel"),
        ("", "amd64", "armel"),
        ("/lib/ld-linux-armhf.so.3", "armel", "armhf"),
    ],
)
def test_arm_without_float_flags(tree, interpreter, recorded, arch):
    tree.program("/bin/sh", "armhf", flags=0x05000000, interpreter=interpreter)
    if recorded:
        tree.dpkg(recorded)

    found = guess(tree)

    assert found.arch == arch
    assert any("no float ABI" in sentence for sentence in found.evidence)


def test_programs_win_over_packages_and_evidence_says_so(tree):
    found = guess(tree.program("/bin/sh", "amd64").dpkg("i386"))

    assert found.arch == "amd64"
    assert "the packages are recorded as i386, but the programs are amd64: the programs decide" in found.evidence


def test_float_flags_win_over_packages(tree):
    assert guess(tree.program("/bin/sh", "armhf").dpkg("armel")).arch == "armhf"


def test_packages_decide_where_no_program_is(tree):
    found = guess(tree.dpkg("s390x"))

    assert (found.arch, found.bits, found.libc) == ("s390x", 64, "glibc 2.36")


@pytest.mark.parametrize(
    ("path", "content", "arch"),
    [
        ("/etc/apk/arch", "aarch64\n", "arm64"),
        ("/etc/rpm/platform", "i686-redhat-linux\n", "i386"),
        ("/etc/rpm/platform", "frobnicator-acme-os\n", "unknown"),
        ("/var/lib/dpkg/status.d/libc6", "Package: libc6\nVersion: 2.36-9\nArchitecture: arm64\n", "arm64"),
    ],
)
def test_other_records_of_the_architecture(tree, path, content, arch):
    assert guess(tree.file(path, content)).arch == arch


def test_script_is_followed(tree):
    tree.program("/usr/lib/real", "riscv64").file("/bin/wrapped", "#! /usr/lib/real -x\n").link("/bin/sh", "wrapped")

    found = guess(tree)

    assert found.arch == "riscv64"
    assert found.evidence[0].startswith("/usr/lib/real: ELF 64-bit RISC-V")


@pytest.mark.parametrize("first_line", ["#!/bin/sh\n", "#!\n", "#!   ", "#!\0\0\n", "#!/no/such\n", "# a comment"])
def test_scripts_that_lead_nowhere(tree, first_line):
    assert guess(tree.file("/bin/sh", first_line)).arch == "unknown"


def test_dynamic_program_wins_over_a_static_helper_of_another_architecture(tree):
    tree.program("/bin/sh", "amd64", interpreter="").program("/usr/bin/env", "arm64")

    found = guess(tree)

    assert (found.arch, found.libc) == ("arm64", "glibc")
    assert found.evidence[0] == "/bin/sh: ELF 64-bit x86-64, set aside for /usr/bin/env"


def test_static_shell_beside_an_installed_libc(tree):
    assert guess(tree.program("/bin/busybox", "amd64", interpreter="").dpkg("amd64")).libc == "glibc 2.36"


def test_unknown_machine_number(tree):
    found = guess(tree.program("/bin/sh", "amd64", code=4711))

    assert (found.arch, found.bits) == ("unknown", 64)
    assert "machine 4711" in found.evidence[0]


def test_object_file_is_no_program(tree):
    content = tree.program("/bin/sh", "amd64", interpreter="").at("/bin/sh").read_bytes()
    tree.file("/bin/sh", content[:16] + b"\x01\x00" + content[18:])

    assert guess(tree).arch == "unknown"


def test_linker_alone(tree):
    """An image that holds one application and its libraries."""
    tree.program("/app/server", "amd64")

    found = guess(tree)

    assert (found.arch, found.libc) == ("amd64", "glibc")
    assert "a dynamic linker, no program beside it" in found.evidence[0]


def test_missing_interpreter_is_said(tree):
    tree.program("/bin/sh", "amd64").at("/lib64/ld-linux-x86-64.so.2").unlink()

    assert "/lib64/ld-linux-x86-64.so.2: missing here, so programs of this tree cannot start" in guess(tree).evidence


@pytest.mark.parametrize(
    ("version", "libc"),
    [
        ("2.36-9+deb12u4", "glibc 2.36"),
        ("2.19-0ubuntu6.15", "glibc 2.19"),
        ("1:2.11.3-4", "glibc 2.11.3"),
        ("odd", "glibc"),
    ],
)
def test_libc_version_of_dpkg(tree, version, libc):
    assert guess(tree.program("/bin/sh", "amd64").dpkg("amd64", version)).libc == libc


def test_libc_that_is_not_installed_any_more(tree):
    tree.program("/bin/sh", "amd64").file(
        "/var/lib/dpkg/status",
        "Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n"
        "Package: libc6\nStatus: deinstall ok config-files\nArchitecture: i386\nVersion: 2.3\n\n",
    )

    assert guess(tree).libc == "glibc"


def test_stanza_across_chunks_and_without_a_last_newline(tree):
    """Stanzas of all lengths are put before the wanted one, so that it meets every border of a read."""
    wanted = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.31-13"
    for size in range((64 << 10) - 120, (64 << 10) + 20, 7):
        filler = f"Package: filler\nArchitecture: amd64\nDescription: {'x' * size}\n\n"
        assert guess(tree.file("/var/lib/dpkg/status", filler + wanted)).libc == "glibc 2.31", size


def test_libc_version_of_apk(tree):
    tree.program("/bin/busybox", "i386", interpreter="/lib/ld-musl-i386.so.1").link("/bin/sh", "/bin/busybox")
    tree.file("/lib/apk/db/installed", "C:Q1\nP:alpine-base\nV:3.19.1-r0\nA:x86\n\nC:Q2\nP:musl\nV:1.2.4-r2\nA:x86\n\n")

    found = guess(tree)

    assert (found.arch, found.libc) == ("i386", "musl 1.2.4")
    assert "/lib/apk/db/installed: musl 1.2.4-r2, x86 -> i386, musl 1.2.4" in found.evidence


def test_glibc_version_by_the_name_of_the_linker(tree):
    tree.program("/bin/sh", "amd64").file("/lib64/ld-2.12.so", "x").at("/lib64/ld-linux-x86-64.so.2").unlink()
    tree.link("/lib64/ld-linux-x86-64.so.2", "ld-2.12.so")

    assert guess(tree).libc == "glibc 2.12"


def test_glibc_version_by_the_name_of_the_library(tree):
    tree.program("/bin/sh", "amd64").file("/lib64/libc-2.17.so", "x").link("/lib64/libc.so.6", "libc-2.17.so")

    found = guess(tree)

    assert found.libc == "glibc 2.17"
    assert "/lib64/libc.so.6: leads to libc-2.17.so -> glibc 2.17" in found.evidence


def test_glibc_version_by_its_banner(tree):
    tree.program("/bin/sh", "amd64")
    tree.file(
        "/lib64/ld-linux-x86-64.so.2", b"\x7fELF" + bytes(5000) + b"ld.so (GNU libc) stable release version 2.39.\n\0"
    )

    assert guess(tree).libc == "glibc 2.39"
