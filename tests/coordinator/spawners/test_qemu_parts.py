"""What machines are made of: archives, modules in order, command lines, verdicts. Nothing is started but cpio."""

import asyncio
import json
import lzma
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from biruda.config import Accel, Environment
from biruda.coordinator.spawners.qemu import accel, argv, images, machines, newc
from biruda.coordinator.spawners.qemu.modules import Modules, unsigned
from biruda.coordinator.spawners.qemu.qmp import Qmp
from biruda.errors import EnvironmentFault, UserError
from biruda.model import Kind
from tests.coordinator.spawners.support import BUSYBOX

MACHINE = argv.Machine(
    arch="amd64", type="pc", accel="tcg", memory_bytes=1 << 30, cpus=2, kernel="/k", initrd="/i", root="/a,b.squashfs"
)


def module(name: str, *, depends: str = "", **facts: str) -> bytes:
    texts = [f"{key}={value}" for key, value in facts.items()]
    texts += [f"depends={depends}", f"name={name}"]
    return b"\x7fELF" + b"".join(b"\0" + text.encode() for text in texts) + b"\0rest"


def put(directory: Path, path: str, data: bytes) -> None:
    file = directory / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def test_an_archive_is_read_by_cpio(tmp_path: Path) -> None:
    if not Path(BUSYBOX).exists():
        pytest.skip("no busybox, which unpacks it: apt-get install busybox-static")
    data = newc.archive(
        [newc.directory("dev"), newc.file("init", b"#!x", executable=True), newc.file("dev/odd name", b"abc\n" * 999)]
    )
    subprocess.run([BUSYBOX, "cpio", "-idm"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"#!x"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "dev/odd name").read_bytes() == b"abc\n" * 999


def test_the_same_entries_are_the_same_bytes() -> None:
    entries = [newc.directory("a"), newc.character_device("a/console", 5, 1)]
    assert newc.archive(entries) == newc.archive(entries)
    assert len(newc.archive(entries)) % 4 == 0


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    put(tmp_path, "kernel/a/top.ko", module("top", depends="middle-one,leaf", softdep="pre: crc32c post: later"))
    put(tmp_path, "kernel/a/middle-one.ko.xz", lzma.compress(module("middle_one", depends="leaf")))
    put(tmp_path, "kernel/a/leaf.ko", module("leaf"))
    put(tmp_path, "kernel/a/later.ko", module("later"))
    put(tmp_path, "kernel/crypto/crc32c_generic.ko", module("crc32c_generic", alias="crypto-crc32c"))
    put(tmp_path, "modules.builtin", b"kernel/fs/ext4/ext4.ko\n")
    order = Modules(tmp_path).in_load_order(["ext4", "top"])
    assert [each.name for each in order] == ["crc32c_generic", "leaf", "middle_one", "top"]
    assert order[2].data.startswith(b"\x7fELF")


def test_modules_that_need_each_other_end(tmp_path: Path) -> None:
    put(tmp_path, "a.ko", module("a", depends="b"))
    put(tmp_path, "b.ko", module("b", depends="a"))
    assert {each.name for each in Modules(tmp_path).in_load_order(["a"])} == {"a", "b"}


def test_a_kernel_without_a_needed_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no virtio_console"):
        Modules(tmp_path).in_load_order(["virtio_console"])


def test_a_signature_is_taken_off() -> None:
    signature = b"x" * 50
    tail = bytes(8) + struct.pack(">I", len(signature)) + b"~Module signature appended~\n"
    assert unsigned(b"code" + signature + tail) == b"code"
    assert unsigned(b"code") == b"code"
    lying = bytes(8) + struct.pack(">I", 1 << 30) + b"~Module signature appended~\n"
    assert unsigned(lying) == lying


def test_a_machine_has_no_card_and_nothing_by_default() -> None:
    line = argv.argv_of("/q", MACHINE)
    assert line[:6] == ("/q", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none")
    assert line[line.index("-nic") + 1] == "none"
    assert "-netdev" not in line
    assert any("file=/a,,b.squashfs" in word and "readonly=on" in word for word in line)
    assert "spawn=deny" in line[line.index("-sandbox") + 1]
    assert "-incoming" not in line


def test_a_clone_has_the_line_of_its_template_but_for_the_memory() -> None:
    original = argv.argv_of("/q", MACHINE, argv.Memory(path="ram", shared=True))
    clone = argv.argv_of("/q", MACHINE, argv.Memory(path="/t/ram", shared=False))
    assert clone[-2:] == ("-incoming", "defer")
    differing = [(one, other) for one, other in zip(original, clone, strict=False) if one != other]
    assert len(differing) == 1
    assert "share=off" in differing[0][1]


def test_each_worker_has_a_user_of_its_own() -> None:
    if os.geteuid() != 0:
        assert argv.user_of("a") == 0
        return
    users = {argv.user_of(f"{number:x}-1") for number in range(1000)}
    assert len(users) == 1000
    assert all(1 << 30 < user < 1 << 31 for user in users)


def test_what_needs_no_test_is_decided_without_one() -> None:
    assert accel.chosen(Accel.TCG, "amd64", "amd64") == accel.Verdict(Accel.TCG, "TCG: so it is configured")
    foreign = accel.chosen(Accel.AUTO, "arm64", "amd64")
    assert foreign is not None
    assert foreign.accel is Accel.TCG
    with pytest.raises(EnvironmentFault, match="cannot be"):
        accel.chosen(Accel.KVM, "arm64", "amd64")


def test_a_verdict_is_remembered_for_the_same_things(tmp_path: Path) -> None:
    verdict = accel.Verdict(Accel.TCG, "TCG: because")
    accel.remember(tmp_path / "c", "key", verdict)
    assert accel.remembered(tmp_path / "c", "key") == verdict
    assert accel.remembered(tmp_path / "c", "other") is None
    (tmp_path / "c/accel.json").write_text("{")
    assert accel.remembered(tmp_path / "c", "key") is None


@pytest.mark.parametrize(
    ("head", "arch"),
    [
        (bytes(0x202) + b"HdrS" + bytes(0x30) + b"\x01\x00", "amd64"),
        (bytes(0x202) + b"HdrS" + bytes(0x30) + b"\x00\x00", "i386"),
        (bytes(0x38) + b"ARM\x64" + bytes(512), "arm64"),
        (b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\x00" + bytes(512), "amd64"),
    ],
)
def test_a_kernel_says_its_architecture(tmp_path: Path, head: bytes, arch: str) -> None:
    (tmp_path / "k").write_bytes(head + bytes(600))
    assert machines.kernel_arch(str(tmp_path / "k"), "environment e") == arch


def test_what_is_wrong_with_an_environment_is_said(tmp_path: Path) -> None:
    kernel, root = tmp_path / "k", tmp_path / "r"
    environment = Environment(name="e", kind=Kind.QEMU, root=str(root), kernel=str(kernel))

    def fault() -> str:
        with pytest.raises(EnvironmentFault) as caught:
            machines.make(environment, "amd64", Accel.TCG, tmp_path / "cache")
        return str(caught.value)

    assert "no such file" in fault()
    kernel.write_bytes(b"no kernel" * 100)
    assert "is no kernel that a machine can start" in fault()
    with pytest.raises(EnvironmentFault, match="neither squashfs nor ext4"):
        machines.root_format(str(kernel), "environment e")


def test_holes_are_copied_as_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.truncate(1 << 30)
        os.pwrite(file.fileno(), b"begin", 0)
        os.pwrite(file.fileno(), b"middle", 500 << 20)
    images.copy_sparse(source, target)
    assert target.stat().st_size == 1 << 30
    assert target.stat().st_blocks * 512 < 1 << 20
    with target.open("rb") as file:
        assert (os.pread(file.fileno(), 5, 0), os.pread(file.fileno(), 6, 500 << 20)) == (b"begin", b"middle")


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"[1]\n", b"x" * (2 << 20)])
async def test_a_qemu_that_is_none_is_a_fault(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(asyncio.get_running_loop().sock_sendall(theirs, said), name="send")
            with pytest.raises(EnvironmentFault):
                if not said:
                    theirs.close()
                await Qmp(ours).greet()
            sending.cancel()


async def test_events_between_a_command_and_its_answer_are_left_out() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        lines = [{"event": "STOP"}, {"return": {"status": "paused"}}, {"error": {"desc": "no such thing"}}]
        theirs.sendall(b"".join(json.dumps(line).encode() + b"\r\n" for line in lines))
        qmp = Qmp(ours)
        assert await qmp.ask("query-status") == {"status": "paused"}
        with pytest.raises(EnvironmentFault, match="no such thing"):
            await qmp.ask("query-nothing")
