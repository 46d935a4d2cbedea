"""Platform of a root tree, by os-release and by what systems had before it."""

import pytest

from biruda.guessenv import guess

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nID=debian\n'


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        (DEBIAN, "debian12"),
        ("ID=alpine\nVERSION_ID=3.19.1\n", "alpine3.19.1"),
        ('ID="centos"\nVERSION_ID="7"\n', "centos7"),
        ("ID='fedora'\nVERSION_ID='39'\n", "fedora39"),
        ('ID="opensuse-leap"\nVERSION_ID="15.6"\n', "opensuse_leap15.6"),
        ('ID="opensuse-tumbleweed"\nVERSION_ID="20240131"\n', "opensuse_tumbleweed"),
        ("ID=arch\nBUILD_ID=rolling\n", "arch"),
        ("ID=arch\nBUILD_ID=rolling\nVERSION_ID=20240101.0.204074\n", "arch"),
        ("ID=another\nBUILD_ID=rolling\nVERSION_ID=7\n", "another"),
        ("ID=arch32\n", "arch"),
        ("ID=archarm\nID_LIKE=arch\n", "arch"),
        ("ID=gentoo\nVERSION_ID=2.14\n", "gentoo"),
        ("ID=debian\nID=ubuntu\nVERSION_ID=24.04\n", "ubuntu24.04"),
        ("# a comment\n\n  ID=spaced  \nVERSION_ID = 3\n", "spaced"),
        ('ID=a\\b"c"\n', "ab_c_"),
        ('ID="quo\\"ted"\n', "quo_ted"),
        ("ID=../../etc\nVERSION_ID=/1\n", "etc_1"),
        ("ID=\x1b[31mred\n", "31mred"),
        ("ID=debian\r\nVERSION_ID=12\r\n", "debian12"),
        ("ID=" + "x" * 500 + "\n", "x" * 64),
        ("ID=---\n", "unknown"),
        ("ID=\n", "unknown"),
        ("NAME=Nothing\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_os_release(tree, text, platform):
    assert guess(tree.os_release(text)).platform == platform


def test_fields_of_the_system(tree):
    found = guess(tree.os_release(DEBIAN))

    assert (found.system_id, found.system_version) == ("debian", "12")
    assert found.pretty_name == "Debian GNU/Linux 12 (bookworm)"
    assert "/etc/os-release: ID debian, VERSION_ID 12 -> debian12" in found.evidence


def test_debian_testing_has_no_version(tree):
    found = guess(tree.os_release('PRETTY_NAME="Debian GNU/Linux trixie/sid"\nID=debian\nVERSION_CODENAME=trixie\n'))

    assert found.platform == "debian"
    assert "/etc/os-release: ID debian, no VERSION_ID, codename trixie -> debian" in found.evidence


def test_not_utf8(tree):
    found = guess(tree.file("/etc/os-release", b'PRETTY_NAME="Caf\xe9 \xff"\nID=caf\xe9\nVERSION_ID=1\n'))

    assert found.platform == "caf_1"
    assert found.pretty_name.startswith("Caf")


@pytest.mark.parametrize(
    ("path", "text", "platform"),
    [
        ("/etc/centos-release", "CentOS release 6.10 (Final)\n", "centos6"),
        ("/etc/redhat-release", "CentOS release 5.11 (Final)\n", "centos5"),
        ("/etc/redhat-release", "CentOS Linux release 7.9.2009 (Core)\n", "centos7"),
        ("/etc/redhat-release", "Red Hat Enterprise Linux Server release 6.10 (Santiago)\n", "rhel6.10"),
        ("/etc/fedora-release", "Fedora release 14 (Laughlin)\n", "fedora14"),
        ("/etc/oracle-release", "Oracle Linux Server release 6.10\n", "ol6.10"),
        ("/etc/redhat-release", "Scientific Linux release 6.10 (Carbon)\n", "scientific6.10"),
        ("/etc/system-release", "Amazon Linux AMI release 2018.03\n", "amzn2018.03"),
        ("/etc/redhat-release", "nonsense\n", "unknown"),
        ("/etc/SuSE-release", "openSUSE 11.4 (x86_64)\nVERSION = 11.4\nCODENAME = Celadon\n", "opensuse11.4"),
        (
            "/etc/SuSE-release",
            "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\nPATCHLEVEL = 4\n",
            "sles11.4",
        ),
        ("/etc/slackware-version", "Slackware 14.2\n", "slackware14.2"),
        ("/etc/gentoo-release", "Gentoo Base System release 2.2\n", "gentoo"),
        ("/etc/alpine-release", "3.4.6\n", "alpine3.4.6"),
        ("/etc/arch-release", "", "arch"),
        ("/etc/debian_version", "6.0.10\n", "debian6"),
        ("/etc/debian_version", "bullseye/sid\n", "debian"),
        ("/etc/lsb-release", 'DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=10.04\nDISTRIB_DESCRIPTION="x"\n', "ubuntu10.04"),
        ("/etc/lsb-release", "DISTRIB_ID=Arch\nDISTRIB_RELEASE=rolling\n", "arch"),
        ("/system/build.prop", "ro.product.model=x\nro.build.version.release=14\n", "android14"),
        ("/bin/freebsd-version", '#!/bin/sh\nUSERLAND_VERSION="14.1-RELEASE-p5"\n', "freebsd14.1"),
    ],
)
def test_older_release_files(tree, path, text, platform):
    found = guess(tree.file(path, text))

    assert found.platform == platform
    if platform != "unknown":
        assert found.evidence[-1].startswith(f"{path}: ")


def test_os_release_wins_over_older_files(tree):
    found = guess(tree.os_release(DEBIAN).file("/etc/redhat-release", "CentOS release 6.10 (Final)\n"))

    assert found.platform == "debian12"


def test_ubuntu_before_os_release_is_not_the_debian_it_was_made_from(tree):
    tree.file("/etc/debian_version", "squeeze/sid\n").file(
        "/etc/lsb-release", "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=10.10\n"
    )

    assert guess(tree).platform == "ubuntu10.10"


def test_os_release_without_an_id_falls_back(tree):
    assert guess(tree.os_release("NAME=x\n").file("/etc/alpine-release", "3.19.1\n")).platform == "alpine3.19.1"
