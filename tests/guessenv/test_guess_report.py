"""What is printed, and the key that says whether a guess still holds."""

import json
import os

import pytest

from biruda.guessenv import Guess, Seen, fingerprint, guess, report

KEYS = {"arch", "platform", "libc", "bits", "emulated", "evidence", "pretty_name"}


def test_report_of_a_debian():
    found = Guess(
        arch="amd64",
        platform="debian12",
        libc="glibc 2.36",
        bits=64,
        evidence=("/usr/bin/dash: ELF 64-bit x86-64, interpreter /lib64/ld-linux-x86-64.so.2 -> amd64, glibc",),
        pretty_name="Debian GNU/Linux 12 (bookworm)",
    )

    assert report(found) == (
        "arch:      amd64\n"
        "platform:  debian12 (Debian GNU/Linux 12 (bookworm))\n"
        "libc:      glibc 2.36\n"
        "bits:      64\n"
        "emulated:  no\n"
        "evidence:\n"
        "  - /usr/bin/dash: ELF 64-bit x86-64, interpreter /lib64/ld-linux-x86-64.so.2 ->\n"
        "    amd64, glibc"
    )


def test_report_of_nothing():
    assert report(Guess()).splitlines() == [
        "arch:      unknown",
        "platform:  unknown",
        "libc:      unknown",
        "bits:      unknown",
        "emulated:  no",
        "evidence:  none",
    ]


@pytest.mark.parametrize("sentence", ["x" * 300, "words " * 60, "x" * 80 + " y", " ".join(["z" * 76] * 3)])
def test_report_fits_80_columns(sentence):
    lines = report(Guess(pretty_name=sentence, evidence=(sentence,))).splitlines()

    assert max(map(len, lines)) <= 80
    assert "".join(lines).replace(" ", "").count(sentence[0]) >= sentence.count(sentence[0])


def test_json_is_the_dictionary(tree):
    found = guess(tree.program("/bin/sh", "amd64"))

    assert json.loads(report(found, as_json=True)) == found.as_dict()
    assert set(found.as_dict()) == KEYS


def test_guesses_compare_by_value(tree):
    tree.program("/bin/sh", "amd64")

    assert guess(tree) == guess(tree)
    assert guess(tree) != Guess()
    assert "arch='amd64'" in repr(guess(tree))
    assert Guess() != Seen(system="Linux", machine="x86_64")


def test_only_known_names_are_exported():
    import biruda.guessenv

    with pytest.raises(AttributeError, match="nonsense"):
        _ = biruda.guessenv.nonsense


def test_fingerprint_holds_while_nothing_changes(tree):
    tree.program("/bin/sh", "amd64").os_release("ID=debian\n").dpkg("amd64")
    key = fingerprint(tree)
    guess(tree)

    assert fingerprint(tree) == key
    assert len(key) == 64
    assert int(key, 16)


def later(path):
    """As if it were written again a second later."""
    seconds = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(seconds, seconds))


@pytest.mark.parametrize(
    "path",
    ["/", "/etc/os-release", "/bin/dash", "/var/lib/dpkg/status", "/var/lib/rpm", "/lib/apk/db/installed", "/usr/bin"],
)
def test_fingerprint_changes_with_the_environment(tree, path):
    tree.program("/bin/dash", "amd64").link("/bin/sh", "/bin/dash").os_release("ID=debian\n").dpkg("amd64")
    tree.file("/lib/apk/db/installed").file("/usr/bin/x").file("/var/lib/rpm/x")
    before = fingerprint(tree)
    later(tree.at(path))

    assert fingerprint(tree) != before


def test_fingerprint_changes_when_a_link_leads_elsewhere(tree):
    tree.program("/bin/dash", "amd64").program("/bin/bash", "amd64").link("/bin/sh", "dash")
    before, times = fingerprint(tree), tree.at("/bin").stat()
    tree.at("/bin/sh").unlink()
    tree.link("/bin/sh", "bash")
    os.utime(tree.at("/bin"), ns=(times.st_atime_ns, times.st_mtime_ns))

    assert fingerprint(tree) != before
