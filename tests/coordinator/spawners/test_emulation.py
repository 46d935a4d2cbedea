"""Foreign programs need an emulator that the kernel finds inside any root."""

from pathlib import Path

import pytest

from biruda.coordinator.spawners import emulation
from biruda.errors import EnvironmentFault

ENTRY = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\nmagic 7f454c46\n"


def binfmt(directory: Path, **entries: str) -> str:
    (directory / "register").touch()
    (directory / "status").write_text("enabled\n")
    for name, text in entries.items():
        (directory / name).write_text(text)
    return str(directory)


def problem(directory: str, arch: str = "arm64") -> str:
    try:
        emulation.require("environment e", arch, "amd64", directory)
    except EnvironmentFault as fault:
        return str(fault).partition("amd64: ")[2] if "qemu-user-static" in fault.hint else "no hint"
    return ""


def test_an_enabled_entry_with_flag_f_will_do(tmp_path: Path) -> None:
    assert problem(binfmt(tmp_path, anything=ENTRY)) == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ENTRY.replace("enabled", "disabled"), "qemu-aarch64 is registered with binfmt_misc, but disabled"),
        (ENTRY.replace("OCF", "OC"), "qemu-aarch64 is registered with binfmt_misc without flag F"),
        (ENTRY.replace("aarch64", "aarch64_be"), "qemu-aarch64 is not registered with binfmt_misc"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, says: str) -> None:
    assert problem(binfmt(tmp_path, entry=text)).startswith(says)


def test_without_binfmt_misc(tmp_path: Path) -> None:
    assert problem(str(tmp_path)) == f"binfmt_misc is not mounted on {tmp_path}"
    assert problem(str(tmp_path / "none")).endswith("none")
    directory = binfmt(tmp_path, entry=ENTRY)
    (tmp_path / "status").write_text("disabled\n")
    assert problem(directory) == "binfmt_misc is disabled"


LINE = r":qemu-aarch64:M::\x7f\x45\x4c\x46:\xff\xff\xff\xff:/usr/libexec/qemu-binfmt/aarch64-binfmt-P:OP"


def test_what_is_registered_is_the_package_s_entry_with_flag_f(tmp_path: Path) -> None:
    """The files of a kernel that takes nothing: what would be said to it stands in `register`."""
    entries = tmp_path / "binfmt.d"
    entries.mkdir()
    directory = tmp_path / "kernel"
    directory.mkdir()
    binfmt(directory)
    with pytest.raises(EnvironmentFault, match="qemu-aarch64 is not installed here"):
        emulation.register("arm64", str(directory), [str(entries)])
    (entries / "qemu-aarch64.conf").write_text(f"# a comment\n{LINE}\n")
    with pytest.raises(EnvironmentFault, match="was registered, and yet qemu-aarch64 is not registered"):
        emulation.register("arm64", str(directory), [str(entries)])
    assert (directory / "register").read_text() == LINE + "F"
    binfmt(directory, anything=ENTRY)
    assert emulation.register("arm64", str(directory), [str(entries)]) == ""


@pytest.mark.parametrize("line", ["", "qemu-aarch64", ":a:b", ":../x:M::a:b:/i:F", ":a/b:M::a:b:/i:F"])
def test_a_line_that_is_no_entry_is_not_given_to_the_kernel(tmp_path: Path, line: str) -> None:
    (tmp_path / "qemu-aarch64.conf").write_text(line + "\n")
    with pytest.raises(EnvironmentFault, match="is not installed here"):
        emulation.register("arm64", str(tmp_path / "none"), [str(tmp_path)])
