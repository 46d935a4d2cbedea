"""Whatever a root tree holds, a guess ends, stays inside it and answers with safe names."""

import os
import socket
import string
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roottrees import MACHINES, elf

from biruda.guessenv import ALIASES, fingerprint, guess, guess_here
from biruda.guessenv.static import PROGRAMS
from biruda.guessenv.systems import RELEASE_FILES

SAFE = set(string.ascii_letters + string.digits + "._")
DEBIAN = "ID=debian\nVERSION_ID=12\n"


def assert_safe(found):
    assert found.arch in {*ALIASES.values(), "unknown"}
    assert found.bits in (0, 32, 64)
    assert set(found.platform) <= SAFE
    assert found.platform[0] not in "._"
    assert len(found.platform) <= 64
    for text in (found.libc, found.pretty_name, found.system_id, found.system_version, *found.evidence):
        assert text.isprintable()
        assert len(text) < 600
        text.encode()


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory; give the directory that holds the root tree"):
        guess(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        fingerprint(tmp_path / "none")


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "root.tar").touch()

    with pytest.raises(NotADirectoryError, match="unpack it first"):
        guess(tmp_path / "root.tar")


def test_empty_root(tree):
    found = guess(tree)

    assert (found.arch, found.platform, found.libc, found.bits) == ("unknown", "unknown", "unknown", 0)
    assert len(found.evidence) == 2


@pytest.mark.parametrize("leads_to", ["/usr/lib/os-release", "../usr/lib/os-release", "../../../../usr/lib/os-release"])
def test_links_stay_in_the_root(tree, leads_to):
    tree.file("/usr/lib/os-release", DEBIAN).link("/etc/os-release", leads_to)

    found = guess(tree)

    assert found.platform == "debian12"
    assert any(sentence.startswith("/usr/lib/os-release: ") for sentence in found.evidence)


def test_usrmerge_with_absolute_links(tree):
    tree.program("/usr/bin/dash", "amd64").link("/usr/bin/sh", "dash").link("/bin", "/usr/bin")
    tree.at("/lib64").rename(tree.at("/usr/lib64"))
    tree.link("/lib64", "/usr/lib64")

    found = guess(tree)

    assert found.arch == "amd64"
    assert found.evidence[0].startswith("/usr/bin/dash: ELF 64-bit x86-64, interpreter /lib64/ld-linux-x86-64.so.2")
    assert not any("missing" in sentence for sentence in found.evidence)


@pytest.mark.parametrize("up", ["", "../", "../../../../../../../../../../../../../../"])
def test_links_to_the_outside_do_not_leave_the_root(tree, other_tree, up):
    other_tree.os_release("ID=secret\n").program("/bin/sh", "s390x")
    tree.file("/etc/x").link("/etc/os-release", f"{up}{other_tree.at('/etc/os-release')}")
    tree.link("/bin", str(other_tree.at("/bin"))).link("/lib", f"{up}..")

    found = guess(tree)

    assert (found.arch, found.platform) == ("unknown", "unknown")
    assert any("is a symlink to" in sentence and "missing" in sentence for sentence in found.evidence)


def test_loops(tree):
    tree.link("/etc/os-release", "os-release").link("/usr/lib", "/usr/lib").link("/bin", "sbin").link("/sbin", "bin")

    found = guess(tree)

    assert (found.arch, found.platform) == ("unknown", "unknown")
    assert "/etc/os-release: leads through too many symlinks; not read" in found.evidence


def test_long_ways(tree):
    tree.file("/a/x").link("/etc/os-release", "/a/.." * 600 + "/usr/lib/os-release")
    tree.link("/bin/sh", "/" + "d/" * 300 + "sh").at("/" + "d/" * 200).mkdir(parents=True)

    assert "/etc/os-release: leads through too many directories; not read" in guess(tree).evidence


@pytest.mark.parametrize("make", ["fifo", "directory", "socket"])
def test_other_than_files_are_not_opened(tree, make, monkeypatch):
    tree.file("/etc/x").file("/bin/x")
    monkeypatch.chdir(tree.path)  # a socket's path has to be short
    for path in ("etc/os-release", "bin/sh"):
        if make == "fifo":
            os.mkfifo(path)
        elif make == "directory":
            os.mkdir(path)
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path)

    found = guess(tree)

    assert (found.arch, found.platform) == ("unknown", "unknown")
    assert "/etc/os-release: not a regular file; not read" in found.evidence
    fingerprint(tree)


def test_fifo_behind_a_link_and_the_second_file_is_used(tree):
    tree.file("/usr/lib/os-release", DEBIAN).file("/etc/x").link("/etc/os-release", "/etc/pipe")
    os.mkfifo(tree.at("/etc/pipe"))

    assert guess(tree).platform == "debian12"


def test_giant_files_are_read_in_part(tree):
    tree.os_release(DEBIAN).program("/bin/sh", "amd64").dpkg("amd64")
    for path in ("/etc/os-release", "/bin/sh", "/var/lib/dpkg/status", "/lib64/ld-linux-x86-64.so.2"):
        os.truncate(tree.at(path), 1 << 40)

    found = guess(tree)

    assert (found.arch, found.platform, found.libc) == ("amd64", "debian12", "glibc 2.36")


def test_giant_files_that_say_nothing(tree):
    for path in ("/etc/os-release", "/bin/sh", "/var/lib/dpkg/status", "/lib/apk/db/installed"):
        os.truncate(tree.file(path).at(path), 1 << 40)

    assert guess(tree).arch == "unknown"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_said(tree):
    tree.os_release(DEBIAN).at("/etc/os-release").chmod(0)

    assert "/etc/os-release: permission denied; not read" in guess(tree).evidence


def test_no_descriptor_is_left_open(tree):
    tree.os_release(DEBIAN).program("/bin/sh", "amd64").dpkg("amd64").link("/usr/lib", "/usr/lib")
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        guess(tree)
        fingerprint(tree)

    assert len(os.listdir("/dev/fd")) == before


def test_interpreter_with_odd_characters_is_shown_safely(tree):
    found = guess(tree.program("/bin/sh", "amd64", interpreter="/lib/\x1b[31m\u202eld.so"))

    assert_safe(found)
    assert "\x1b" not in found.evidence[0]


ELF_HEADS = [b"\x7fELF" + bytes([width, order, 1]) for width in (1, 2) for order in (1, 2)]
ELF_BYTES = st.builds(lambda head, rest: head + rest, st.sampled_from([b"", *ELF_HEADS]), st.binary(max_size=300))
RELEASE_BYTES = st.lists(
    st.builds(
        lambda name, equals, value: name + equals + value,
        st.sampled_from([b"ID", b"VERSION_ID", b"PRETTY_NAME", b"VERSION_CODENAME", b"BUILD_ID", b""]),
        st.sampled_from([b"=", b'="', b"='", b" release ", b""]),
        st.binary(max_size=40),
    ),
    max_size=6,
).map(b"\n".join)


@given(content=ELF_BYTES)
@settings(deadline=None)
def test_any_bytes_as_a_program(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("root")
    (root / "bin").mkdir()
    (root / "bin/sh").write_bytes(content)

    assert_safe(guess(root))


@given(content=RELEASE_BYTES, path=st.sampled_from(RELEASE_FILES))
@settings(deadline=None)
def test_any_bytes_as_a_release_file(tmp_path_factory, content, path):
    root = tmp_path_factory.mktemp("root")
    file = root / path[1:]
    file.parent.mkdir(parents=True)
    file.write_bytes(content)

    assert_safe(guess(root))
    assert_safe(guess_here(root=str(root)))


@given(content=st.binary(max_size=400), head=st.sampled_from([b"Package: libc6\n", b"C:\nP:musl\n", b""]))
@settings(deadline=None)
def test_any_bytes_as_a_package_database(tmp_path_factory, content, head):
    root = tmp_path_factory.mktemp("root")
    for path in ("var/lib/dpkg/status", "lib/apk/db/installed", "etc/apk/arch", "etc/rpm/platform"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(head + content)

    assert_safe(guess(root))


TARGETS = st.lists(st.sampled_from(["", ".", "..", "a", "b", "etc", "bin", "sh", "os-release"]), max_size=8).map(
    "/".join
)


@given(links=st.dictionaries(st.sampled_from(["a", "b", "a/a", "etc", "bin", "etc/a", "bin/sh"]), TARGETS, max_size=6))
@settings(deadline=None)
def test_any_links_stay_inside(tmp_path_factory, links):
    """Above the root lie files that every escape by ".." would find."""
    top = tmp_path_factory.mktemp("top")
    for directory in (top, top / "etc"):
        directory.mkdir(exist_ok=True)
        (directory / "os-release").write_text("ID=secret\n")
    root = top / "root"
    root.mkdir()
    for path, leads_to in sorted(links.items()):
        link = root / path
        if leads_to and not os.path.lexists(link) and not link.parent.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(leads_to)

    found = guess(root)

    assert found.platform == "unknown"
    assert_safe(found)
    fingerprint(root)


def test_all_programs_are_looked_for(tree):
    for path in PROGRAMS:
        guess(tree.program(path, "ppc64el"))
        assert guess(tree).arch == "ppc64el", path
        tree.at(path).unlink()


PATHS = sorted(
    {path[1:] for path in (*RELEASE_FILES, *PROGRAMS)}
    | {
        "var/lib/dpkg/status",
        "lib/apk/db/installed",
        "etc/apk/arch",
        "etc/rpm/platform",
        "lib64",
        "lib",
        "usr/lib",
        "usr",
    }
)
REAL_ELF = st.builds(
    lambda machine, kind, places: _damaged(elf(machine, kind=kind), places),
    st.sampled_from(sorted(MACHINES.values(), key=repr)),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
)
NODES = st.one_of(
    st.tuples(st.just("file"), st.one_of(REAL_ELF, ELF_BYTES, RELEASE_BYTES, st.just(DEBIAN.encode()))),
    st.tuples(st.just("link"), TARGETS.map(str.encode)),
    st.sampled_from([("directory", b""), ("pipe", b""), ("socket", b""), ("closed", b"ID=x\n")]),
)


def _damaged(content, places):
    content = bytearray(content)
    for place, value in places:
        content[place % len(content)] = value
    return bytes(content)


def _make(path, kind, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, 0o140644)
    elif kind == "link":
        path.symlink_to(content.decode() or ".")
    else:
        path.write_bytes(content)
        path.chmod(0 if kind == "closed" else 0o755)


@given(nodes=st.dictionaries(st.sampled_from(PATHS), NODES, max_size=8))
@settings(deadline=None, max_examples=200)
def test_any_root_tree(tmp_path_factory, nodes):
    root = tmp_path_factory.mktemp("root")
    for path, (kind, content) in nodes.items():
        with suppress(OSError):  # it lies below something that is no directory, or is there by now
            _make(root / path, kind, content)

    before = len(os.listdir("/dev/fd"))
    assert_safe(guess(root))
    assert fingerprint(root) == fingerprint(root)
    assert len(os.listdir("/dev/fd")) == before
