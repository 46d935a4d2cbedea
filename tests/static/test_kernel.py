"""The builtin of static workers, called in namespaces of its own by a Python that has nothing else new."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from biruda.worker import kernel
from tests.static.conftest import CHECKOUT, OWN_ARCH

# as build-static.sh chooses it, so that zig is not installed once more
BUILDER = shutil.which("/usr/bin/python3") or sys.executable

MAIN = """
#include <Python.h>
PyMODINIT_FUNC PyInit__biruda(void);
int main(int argc, char **argv)
{
    return PyImport_AppendInittab("_biruda", PyInit__biruda) != 0 ? 125 : Py_BytesMain(argc, argv);
}
"""

BUILD = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from cpython import cpython
from targets import TARGETS
from toolchain import compile_argv, compiler_environment
arch, scratch = sys.argv[2:]
python = cpython(arch)
argv = [*compile_argv(TARGETS[arch]), "-static", f'-DBIRUDA_ARCH="{arch}"', "-I", f"{python}/include"]
argv += ["-o", f"{scratch}/python"]
native = [f"{sys.argv[1]}/native/{name}" for name in ("biruda_module.c", "sha256.c")]
argv += [f"{scratch}/main.c", *native, f"{python}/libpython.a", "-lm"]
subprocess.run(argv, check=True, env=compiler_environment())
print(python)
"""

CALLS = """
import _biruda as k, errno, hashlib, os, struct
def fails(codes, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        assert error.errno in (codes if isinstance(codes, tuple) else (codes,)), error
        return error
    raise AssertionError(function)
print(k.arch)
scratch = os.environ["SCRATCH"]
k.mount("tmpfs", scratch, "tmpfs", 6, "size=64k")
open(scratch + "/file", "w").close()
k.mount(None, scratch, None, 32 | 1, None)
fails(errno.EROFS, open, scratch + "/other", "w")
k.umount2(scratch, 2)
assert not os.path.exists(scratch + "/file")
error = fails(errno.ENODEV, k.mount, "none", scratch, "no-such-filesystem", 0, None)
assert error.filename == scratch, error.filename
k.sethostname("guest")
assert os.uname().nodename == "guest"
os.mkdir(scratch + "/old")
k.mount(scratch, scratch, None, 4096, None)
os.chdir(scratch)
k.pivot_root(".", "old")
assert os.listdir("/") == ["old"]
k.umount2("/old", 2)
assert k.prctl(36, 1) == 0
fails(errno.EINVAL, k.prctl, 123456, 0)
assert k.personality(0xffffffff) == 0
assert k.personality(8) == 0
assert k.personality(0) == 8
k.unshare(0)
fails(errno.EINVAL, k.unshare, 1)
fails(errno.EINVAL, k.set_time, 0, 2_000_000_000)
fails(errno.EINVAL, k.reboot, 42)
fails((errno.EBADF, errno.ENOSYS), k.finit_module, -1)  # a kernel may have no modules
fails(errno.ENOENT, k.add_entropy, b"x")
for size in (0, 1025):
    try:
        k.add_entropy(bytes(size))
    except ValueError:
        continue
    raise AssertionError(size)
if k.has_sha256:
    first = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
    state, data = bytearray(struct.pack("=8I", *first)), os.urandom(6400)
    k.sha256_blocks(state, data[:64])
    k.sha256_blocks(state, data[64:] + b"\\x80" + bytes(55) + struct.pack(">Q", 8 * len(data)))
    assert struct.pack(">8I", *struct.unpack("=8I", state)) == hashlib.sha256(data).digest()
for wrong in ((bytearray(31), bytes(64)), (bytearray(32), bytes(63))):
    try:
        k.sha256_blocks(*wrong)
    except ValueError:
        continue
    raise AssertionError(wrong)
try:
    k.mount("a", "b\\0c", None, 0, None)
except ValueError:
    print("done")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
def test_each_call_does_what_it_says(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(MAIN)
    built = subprocess.run(
        [BUILDER, "-B", "-c", BUILD, CHECKOUT / "packaging", OWN_ARCH, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {"SCRATCH": str(scratch), "PYTHONHOME": built.stdout.splitlines()[-1], "PATH": os.environ["PATH"]}
    enter = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--propagation", "private"]
    done = subprocess.run(
        [*enter, tmp_path / "python", "-S", "-c", CALLS],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (f"{OWN_ARCH}\ndone\n", "")


def test_elsewhere_it_is_missing_in_words() -> None:
    assert not kernel.has_builtin()
    assert kernel.built_for() == ""
    with pytest.raises(kernel.MissingBuiltin, match=r"sethostname\(\) is not there in this Python"):
        kernel.sethostname("x")
