"""Which modules a static worker is made of, compiled into one blob and the table that CPython finds them by.

Run by the very CPython that is linked into the worker, which has no other C modules: what cannot be imported here could
not be imported there. biruda's imports are followed wherever they stand, also inside functions; those of the standard
library as far as importing it goes.
"""

import ast
import marshal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from lean import write_out  # noqa: E402 - along the path above, which an isolated Python has not

# As this process was started itself: it reads nothing that was compiled earlier
PYTHON = (sys.executable, "-I", "-S", "-B", "-X", f"pycache_prefix={sys.pycache_prefix}")

ROOTS = ("biruda.__main__", "biruda.cli.guess", "biruda.guessenv", "biruda.worker.serve", "biruda.sourcepack.unpack")
ENTRY = "biruda_worker"

NEVER = ("biruda.coordinator", "biruda.master", "biruda.webui", "biruda.config", "biruda.trust", "biruda.cli.main")

# imported late by the standard library itself, when an error is shown
LATE = ("encodings.ascii", "encodings.latin_1", "linecache", "tokenize", "traceback", "warnings")

# What the standard library makes at each start is taken from biruda_ready: (module, what stands there, what shall)
CHANGES = (
    ("dataclasses", "import inspect\n", "import biruda_ready as inspect\n"),
    ("dataclasses", "exec(txt, self.globals, ns)", "exec(inspect.code(txt), self.globals, ns)"),
    (
        "collections",
        "__new__ = eval(code, namespace)",
        "import biruda_ready; __new__ = eval(biruda_ready.code(code), namespace)",
    ),
    (
        "re._compiler",
        "def compile(p, flags=0):\n",
        "import biruda_ready\ndef compile(p, flags=0):\n"
        "    if ready := biruda_ready.pattern(p, flags): return _sre.compile(*ready)\n",
    ),
    ("socket", "import os, sys, io, selectors\n", "import os, sys, io\n"),  # for sendfile(), which no worker calls
    # nobody asks a worker for an AddressFamily: the numbers do
    *(
        ("socket", f"{kind}._convert_(\n        '{name}',", f"{name} = (lambda *names: int)(\n        '{name}',")
        for kind, name in (
            ("IntEnum", "AddressFamily"),
            ("IntEnum", "SocketKind"),
            ("IntFlag", "MsgFlag"),
            ("IntFlag", "AddressInfo"),
        )
    ),
)

# asked for on other systems than Linux only, or by type checkers
UNUSED = {"platform", "_typeshed"}

SHOW = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name, module in sorted(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if name != "__main__" and spec and spec.name == name and spec.has_location and spec.origin.endswith(".py"):
        print(name, spec.origin)
"""


class CannotFreeze(Exception):
    """A worker would not have what it imports."""


def main() -> int:
    """freeze.py CHECKOUT OUTPUT: writes OUTPUT/frozen.bin and OUTPUT/frozen.c."""
    checkout, output = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        ours, foreign = closure(checkout)
        own = {name: write_out(path.read_bytes()) for name, path in ours.items()}
        modules = {**standard_library(foreign), ENTRY: HERE / f"{ENTRY}.py"}
        sources = {name: (own[name], path) for name, path in ours.items()}
        sources |= {name: (text_of(name, path), path) for name, path in modules.items()}
        sources["biruda_ready"] = (ready(own, ours, output), HERE / "biruda_ready.py")
    except CannotFreeze as error:
        sys.stderr.write(f"build-static: {error}\n")
        return 1
    write(sources, output)
    size = (output / "frozen.bin").stat().st_size
    print(f"{len(sources)} modules, {len(ours)} of them biruda's, {size} bytes")
    return 0


def closure(checkout: Path) -> tuple[dict[str, Path], set[str]]:
    """biruda's modules by name, and the names of the others that they import."""
    waiting = [*ROOTS, *worker_modules(checkout)]
    ours: dict[str, Path] = {}
    foreign: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in ours:
            continue
        if name.partition(".")[0] != "biruda":
            foreign.add(name)
            continue
        path = path_of(checkout, name)
        if path is None:
            raise CannotFreeze(f"{name}: no such module; something that a worker carries imports it")
        if name.startswith(NEVER):
            raise CannotFreeze(
                f"{name} would get into the worker: follow the imports of biruda.worker and of biruda.guessenv"
            )
        ours[name] = path
        waiting.extend(parents(name))
        if name != "biruda.__main__":  # which names all that any executable of biruda does
            waiting.extend(imports(checkout, path))
    return ours, foreign - UNUSED


def worker_modules(checkout: Path) -> list[str]:
    """Every module of biruda.worker: also those that are imported by a name given over the wire."""
    found = sorted((checkout / "biruda" / "worker").glob("*.py"))
    return [f"biruda.worker.{path.stem}" for path in found if path.stem != "__init__"]


def parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def path_of(checkout: Path, name: str) -> Path | None:
    base = checkout.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def imports(checkout: Path, path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, except for type checkers."""
    for node in statements(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if node.module.startswith("biruda") and path_of(checkout, inner):
                    yield inner


def statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (inner for other in child.orelse for inner in [other, *statements(other)])
        else:
            yield child
            yield from statements(child)


def standard_library(names: set[str]) -> dict[str, Path]:
    """Everything that importing these, and starting, brings in: path by name."""
    wanted = sorted(name for name in names if name not in sys.builtin_module_names and name != "_biruda")
    done = subprocess.run(
        [*PYTHON, "-X", "frozen_modules=off", "-c", SHOW, *wanted, *LATE],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotFreeze(f"the worker's Python cannot import what biruda does:\n{done.stderr}")
    found = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {name: Path(path) for name, path in found}


def text_of(name: str, path: Path) -> bytes:
    """A module's source, with the changes that are made to it."""
    text = path.read_bytes()
    for changed, old, new in CHANGES:
        if changed == name:
            if text.count(old.encode()) != 1:
                raise CannotFreeze(f"{path}: {old!r} does not stand there once; look at CHANGES in {__file__}")
            text = text.replace(old.encode(), new.encode())
    return text


def ready(own: dict[str, ast.Module], ours: dict[str, Path], output: Path) -> bytes:
    """The source of biruda_ready with what importing biruda's modules, as they are frozen, generated."""
    recorded, lean = output / "recorded", output / "lean"
    for name, path in ours.items():
        module = lean.joinpath(*name.split("."))
        module = module / "__init__.py" if path.name == "__init__.py" else module.with_suffix(".py")
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(ast.unparse(own[name]))
    names = sorted(name for name in ours if name != "biruda.__main__")
    done = subprocess.run(
        [*PYTHON, HERE / "rehearse.py", recorded, HERE, lean, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotFreeze(f"the worker's modules cannot be imported:\n{done.stderr}")
    text = (HERE / "biruda_ready.py").read_text()
    return text.replace('RECORDED = b""', f"RECORDED = {recorded.read_bytes()!r}").encode()


def write(sources: dict[str, tuple[bytes | ast.Module, Path]], output: Path) -> None:
    """frozen.bin: the code objects one after the other; frozen.c: their names, places and sizes."""
    blob = bytearray()
    rows = []
    for name in sorted(sources):
        text, path = sources[name]
        filename = f"<biruda>/{name.replace('.', '/')}.py"  # what a traceback shows: no path of this machine
        code = marshal.dumps(compile(text, filename, "exec", dont_inherit=True, optimize=2))
        blob += bytes(-len(blob) % 16)
        rows.append(f'    {{"{name}", blob + {len(blob)}, {len(code)}, {int(path.name == "__init__.py")}}},')
        blob += code
    (output / "frozen.bin").write_bytes(blob)
    (output / "frozen.c").write_text(TABLE.replace("ROWS", "\n".join(rows)))


TABLE = """\
#include <Python.h>

__asm__(".section .rodata\\n.balign 16\\n.globl biruda_blob\\nbiruda_blob:\\n.incbin \\"frozen.bin\\"\\n.previous\\n");
extern const unsigned char biruda_blob[];
#define blob biruda_blob

const struct _frozen biruda_frozen[] = {
ROWS
    {NULL, NULL, 0, 0},
};
"""

if __name__ == "__main__":
    sys.exit(main())
