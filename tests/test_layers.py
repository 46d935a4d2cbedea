"""The layout is the architecture: which module may import which, and who may start processes, print or speak SQL.

Every import counts: those inside functions and those under `if TYPE_CHECKING:` too.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "biruda"

SHARED = {
    "messages",
    "config",
    "process",
    "link",
    "transports",
    "frames",
    "sourcepack",
    "spoolname",
    "convert",
    "wire",
    "injection",
    "trust",
}
ROLES = {"master", "coordinator", "worker"}
STANDARD = {*sys.stdlib_module_names, "_biruda"}  # linked into the static worker as the standard library's are
RANKS = [{"errors"}, {"model"}, SHARED, ROLES, {"webui"}, {"cli"}, {"__main__"}]
"""Each may import what stands before it; among SHARED there are no cycles."""


@dataclass(frozen=True)
class Module:
    name: str  # biruda.master.farm
    path: Path

    @property
    def unit(self) -> str:
        """master"""
        return ([*self.name.split("."), ""])[1]

    def is_under(self, prefix: str) -> bool:
        return self.name == prefix or self.name.startswith(prefix + ".")


@dataclass(frozen=True)
class Import:
    module: Module
    target: str
    line: int

    @property
    def unit(self) -> str:
        return ([*self.target.split("."), ""])[1]

    @property
    def is_ours(self) -> bool:
        return self.target == "biruda" or self.target.startswith("biruda.")

    def __str__(self) -> str:
        return f"{self.module.path.relative_to(ROOT)}:{self.line} imports {self.target}"


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append(Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return tuple(found)


@cache
def tree(module: Module) -> ast.Module:
    return ast.parse(module.path.read_bytes())


@cache
def imports() -> tuple[Import, ...]:
    names = {module.name for module in modules()}
    return tuple(item for module in modules() for item in imports_of(module, names))


def imports_of(module: Module, names: set[str]) -> Iterator[Import]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(module, inner if inner in names else node.module, node.lineno)


def ours() -> Iterator[Import]:
    return (item for item in imports() if item.is_ours)


def rank(unit: str) -> int:
    return next(number for number, units in enumerate(RANKS) if unit in units)


def is_allowed(item: Import) -> bool:
    source, target = item.module.unit, item.unit
    if target in ("", source) or source in ("cli", "__main__"):
        return source != "guessenv" or target == source
    if source in ("", "guessenv"):
        return False
    if target == "guessenv":
        return source in ("coordinator", "worker", "config")  # config: the aliases of architectures
    if source in SHARED and target in SHARED:
        return True  # see test_what_the_roles_share_has_no_cycle
    if source == "worker" and target == "sourcepack":
        return item.target == "biruda.sourcepack.unpack"
    if (source, target) == ("coordinator", "worker"):
        return item.module.is_under("biruda.coordinator.spawners")
    return rank(target) < rank(source)


def sentences(items: Iterator[Import]) -> list[str]:
    return [str(item) for item in items]


def test_every_module_has_its_place() -> None:
    units = {module.unit for module in modules()} - {"", "guessenv"}
    assert units <= set.union(*RANKS)


def test_imports_go_one_way() -> None:
    assert sentences(item for item in ours() if not is_allowed(item)) == []


def test_the_roles_share_values_and_not_code() -> None:
    wrong = [
        item
        for item in ours()
        if {item.module.unit, item.unit} <= ROLES
        and item.module.unit != item.unit
        and not (item.module.is_under("biruda.coordinator.spawners") and item.unit == "worker")
    ]
    assert sentences(iter(wrong)) == []


def test_what_the_roles_share_has_no_cycle() -> None:
    edges: dict[str, set[str]] = {unit: set() for unit in SHARED}
    for item in ours():
        if item.module.unit in SHARED and item.unit in SHARED - {item.module.unit}:
            edges[item.module.unit].add(item.unit)
    while leaves := {unit for unit, targets in edges.items() if not targets & set(edges)}:
        for unit in leaves:
            del edges[unit]
    assert edges == {}


def test_guessenv_and_the_worker_need_the_standard_library_only() -> None:
    foreign = [
        item
        for item in imports()
        if item.module.unit in ("worker", "guessenv", "model", "errors", "frames", "convert", "messages", "process")
        and not item.is_ours
        and item.target.partition(".")[0] not in STANDARD
    ]
    assert sentences(iter(foreign)) == []


def test_what_the_worker_loads_is_standard_library_too() -> None:
    """Over all that it imports at its start, directly or not."""
    by_name = {module.name: module for module in modules()}
    waiting, seen = ["biruda.worker.serve", "biruda.guessenv"], set[str]()
    foreign: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])
        for item in imports_of(by_name[name], set(by_name)):
            if item.is_ours:
                waiting.append(item.target)
            elif item.target.partition(".")[0] not in STANDARD:
                foreign.append(str(item))
    assert foreign == []
    assert not {name.split(".")[1] for name in seen if "." in name} & {
        "master",
        "coordinator",
        "webui",
        "cli",
        "config",
    }


ONLY = {
    "sqlite3": ("biruda.master.store",),
    "pyroute2": ("biruda.coordinator.spawners",),
    "ctypes": ("biruda.coordinator.spawners", "biruda.master.spool"),
    "subprocess": ("biruda.process", "biruda.coordinator.spawners"),
    "aiohttp": (
        *("biruda.master.api", "biruda.master.api_joining", "biruda.master.api_logs", "biruda.master.api_jobs"),
        *("biruda.master.responses", "biruda.master.asking", "biruda.master.access", "biruda.master.api_access"),
        *("biruda.master.api_statistics", "biruda.master.api_farm", "biruda.master.api_importing"),
        *("biruda.master.linking", "biruda.master.linkserver", "biruda.master.dialling", "biruda.master.connections"),
        *("biruda.transports", "biruda.cli", "biruda.webui"),
        "biruda.coordinator.spawners.docker_api",
    ),
    "jinja2": ("biruda.webui",),
    "cryptography": ("biruda.trust.certificates",),
    "click": ("biruda.cli", "biruda.__main__"),
}


@pytest.mark.parametrize(("target", "places"), ONLY.items(), ids=ONLY)
def test_one_subject_one_place(target: str, places: tuple[str, ...]) -> None:
    strays = (
        item
        for item in imports()
        if item.target.partition(".")[0] == target and not any(item.module.is_under(place) for place in places)
    )
    assert sentences(strays) == []


STARTERS = {"fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "popen"}


def calls(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of what is called or passed on by name."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id


def test_processes_are_started_in_one_place() -> None:
    strays = [
        f"{module.path.relative_to(ROOT)}:{line}: {name}"
        for module in modules()
        if not module.is_under("biruda.process") and not module.is_under("biruda.coordinator.spawners")
        for line, name in calls(module)
        if name.startswith("os.") and name.removeprefix("os.") in STARTERS
    ]
    assert strays == []


def test_only_the_command_line_prints() -> None:
    strays = [
        f"{module.path.relative_to(ROOT)}:{line}"
        for module in modules()
        if not module.is_under("biruda.cli") and not module.is_under("biruda.__main__")
        for line, name in calls(module)
        if name == "print"
    ]
    assert strays == []
