"""Names of architectures, relations to a host, declared against guessed, and the four cases of a worker."""

import pytest

from biruda.guessenv import ALIASES, canonical_arch, compare, guess, relation


@pytest.mark.parametrize(
    ("arch", "aliases"),
    [
        ("amd64", "x86_64 x86_64-linux-gnu x86_64-pc-linux-gnu x86_64-linux-musl AMD64 linux/amd64 linux/amd64/v3 x64"),
        ("i386", "i486 i586 i686 i386-linux-gnu i686-linux-gnu i586-alpine-linux-musl 386 linux/386 x86"),
        ("x32", "x86_64-linux-gnux32 x86_64-pc-linux-gnux32"),
        ("arm64", "aarch64 aarch64-linux-gnu arm64/v8 linux/arm64 linux/arm64/v8 ARM64 arm64-apple-darwin"),
        ("armhf", "armv7l arm-linux-gnueabihf armv7l-unknown-linux-gnueabihf arm-linux-musleabihf arm/v7 linux/arm/v7"),
        ("armhf", "armv8l armhfp armv7hl"),
        ("armel", "armv5tel armv6l arm-linux-gnueabi arm/v5 arm/v6 linux/arm/v6"),
        ("riscv64", "riscv64-linux-gnu linux/riscv64"),
        ("ppc64el", "ppc64le powerpc64le powerpc64le-linux-gnu linux/ppc64le"),
        ("ppc64", "powerpc64 powerpc64-linux-gnu"),
        ("s390x", "s390x-linux-gnu linux/s390x"),
        ("mips64el", "mips64 mips64le mips64el-linux-gnuabi64 linux/mips64le"),
        ("mipsn32el", "mips64el-linux-gnuabin32"),
        ("loong64", "loongarch64 loongarch64-linux-gnu linux/loong64"),
        ("arm64ilp32", "aarch64-linux-gnu_ilp32"),
    ],
)
def test_aliases(arch, aliases):
    assert {canonical_arch(name) for name in (arch, *aliases.split())} == {arch}


@pytest.mark.parametrize(
    "name", ["", " ", "unknown", "frobnicator", "linux", "linux/", "arm/v9x", "arm/v4", "a/b/c", "-"]
)
def test_no_architecture(name):
    assert canonical_arch(name) is None


def test_canonical_names_stay():
    assert all(canonical_arch(arch) == arch for arch in ALIASES.values())


@pytest.mark.parametrize(
    ("arch", "host", "expected"),
    [
        ("amd64", "amd64", "native"),
        ("amd64", "x86_64", "native"),
        ("i386", "amd64", "personality32"),
        ("i686", "x86_64", "personality32"),
        ("armhf", "arm64", "personality32"),
        ("armel", "arm64", "personality32"),
        ("armel", "armhf", "native"),
        ("x32", "amd64", "native"),
        ("s390", "s390x", "personality32"),
        ("armhf", "armel", "foreign"),
        ("amd64", "i386", "foreign"),
        ("amd64", "x32", "foreign"),
        ("arm64", "amd64", "foreign"),
        ("ppc64", "ppc64el", "foreign"),
        ("unknown", "amd64", "foreign"),
        ("unknown", "unknown", "foreign"),
    ],
)
def test_relation(arch, host, expected):
    assert relation(arch, host) == expected


@pytest.mark.parametrize(
    ("declared", "guessed"),
    [
        ({}, {"arch": "amd64", "platform": "debian12"}),
        ({"arch": "", "platform": None}, {"arch": "amd64", "platform": "debian12"}),
        ({"arch": "x86_64"}, {"arch": "amd64"}),
        ({"arch": "linux/amd64", "platform": "debian12"}, {"arch": "amd64", "platform": "debian12"}),
        ({"arch": "arm64", "platform": "debian12"}, {"arch": "unknown", "platform": "unknown"}),
        ({"platform": "debian"}, {"platform": "debian12"}),
        ({"platform": "debian13"}, {"platform": "debian"}),
        ({"platform": "alpine3.19"}, {"platform": "alpine3.19.1"}),
        ({"platform": "opensuse-leap15.6"}, {"platform": "opensuse_leap15.6"}),
        ({"platform": "Arch"}, {"platform": "arch"}),
        ({"libc": "musl"}, {"libc": "glibc 2.36"}),
    ],
)
def test_nothing_contradicts(declared, guessed):
    assert compare(declared, guessed) == ()


@pytest.mark.parametrize(
    ("key", "declared", "guessed"),
    [
        ("arch", "arm64", "amd64"),
        ("arch", "x86_64-linux-gnux32", "amd64"),
        ("arch", "frobnicator", "amd64"),
        ("platform", "centos6", "debian12"),
        ("platform", "debian1", "debian12"),
        ("platform", "alpine3.1", "alpine3.19"),
        ("platform", "arch", "archlabs"),
        ("platform", "...", "debian12"),
    ],
)
def test_contradiction_is_one_sentence(key, declared, guessed):
    expected = f"declared {key} {declared!r} is used, but the environment looks like {guessed!r}"

    assert compare({key: declared}, {key: guessed}) == (expected,)


def test_both_contradict(tree):
    found = guess(tree.program("/bin/sh", "amd64").os_release("ID=debian\nVERSION_ID=12\n"))

    assert len(compare({"arch": "arm64", "platform": "centos6"}, found.as_dict())) == 2


ARCH = "NAME='Arch Linux'\nID=arch\nBUILD_ID=rolling\n"
CENTOS6 = "CentOS release 6.10 (Final)\n"


@pytest.mark.parametrize(
    ("arch", "release_file", "text", "same_platform", "expected"),
    [
        pytest.param("amd64", "/etc/os-release", ARCH, True, "native", id="a: same arch, same platform"),
        pytest.param("amd64", "/etc/centos-release", CENTOS6, False, "native", id="b: same arch, other platform"),
        pytest.param("i386", "/etc/os-release", ARCH, True, "personality32", id="c: other arch, same platform"),
        pytest.param("i386", "/etc/centos-release", CENTOS6, False, "personality32", id="d: both differ"),
    ],
)
def test_the_four_cases_of_a_worker(tree, other_tree, arch, release_file, text, same_platform, expected):
    host = guess(tree.program("/bin/sh", "amd64").os_release(ARCH))
    worker = guess(other_tree.program("/bin/sh", arch).file(release_file, text))

    assert (worker.arch, worker.platform) == (arch, "arch" if same_platform else "centos6")
    assert (worker.platform == host.platform) == same_platform
    assert relation(worker.arch, host.arch) == expected
