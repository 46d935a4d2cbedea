"""A kernel's modules: which of them a machine needs, and in which order they are loaded.

A distribution's package holds no modules.dep, which is made where it is installed. Each module says itself what it
depends on, in NUL-separated texts of its section .modinfo.
"""

import gzip
import lzma
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backports import zstd

from biruda.errors import UserError

WANTED: Final = (
    *("virtio_pci", "virtio_mmio", "virtio_console", "virtio_blk"),
    *("squashfs", "ext4", "overlay", "virtio_net"),
)
"""What a machine's kernel has to do: find its devices, talk, and mount."""

OPTIONAL: Final = frozenset({"virtio_net"})

_OPENERS: Final[Mapping[str, Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstd.open}
_FILE: Final = re.compile(r"(?P<name>[A-Za-z0-9_-]+)\.ko(?P<packed>\.gz|\.xz|\.zst)?")
_FACT: Final = re.compile(rb"(?:\A|\0)(depends|softdep|alias)=([^\0]{0,4096})(?=\0)")
_SIGNATURE: Final = b"~Module signature appended~\n"
_CRYPTO: Final = ("crypto", "lib")  # directories in which a module is named by what it can do


@dataclass(frozen=True, slots=True)
class Module:
    """One module, unpacked."""

    name: str
    data: bytes
    depends: tuple[str, ...] = ()
    before: tuple[str, ...] = ()  # to be loaded before it where they are there
    aliases: tuple[str, ...] = ()


@dataclass(slots=True)
class Modules:
    """The modules below one directory, /lib/modules/RELEASE of some tree."""

    directory: Path
    _paths: dict[str, Path] = field(default_factory=dict)
    _built_in: set[str] = field(default_factory=set)
    _read: dict[str, Module] = field(default_factory=dict)
    _by_ability: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for path in sorted(self.directory.rglob("*.ko*")):
            if match := _FILE.fullmatch(path.name):
                self._paths[_name(match["name"])] = path
        listed = self.directory / "modules.builtin"
        if listed.exists():
            self._built_in = {_name(Path(line).stem) for line in listed.read_text().split()}

    def in_load_order(self, wanted: Sequence[str] = WANTED) -> list[Module]:
        """These modules and all that they need, each after what it needs. Raises UserError for one that is missing."""
        order: dict[str, Module] = {}
        for name in wanted:
            if name not in self._paths and name not in self._built_in and name not in OPTIONAL:
                raise UserError(
                    f"{self.directory}: this kernel has no {name}, which a machine needs",
                    hint="take a kernel with virtio, squashfs, ext4 and overlay, as modules or built in",
                )
            self._add(name, order, ())
        return list(order.values())

    def _add(self, name: str, order: dict[str, Module], above: tuple[str, ...]) -> None:
        if name in order or name in above or name not in self._paths:
            return
        module = self._module(name)
        for each in (*self._able(module.before), *module.depends):
            self._add(each, order, (*above, name))
        order[name] = module

    def _module(self, name: str) -> Module:
        if name not in self._read:
            self._read[name] = read(name, self._paths[name])
        return self._read[name]

    def _able(self, names: Iterable[str]) -> Iterator[str]:
        """The modules of these names, or those that say of themselves that they can do what these names stand for."""
        for name in names:
            if name in self._paths:
                yield name
            else:
                if self._by_ability is None:
                    self._by_ability = dict(self._abilities())
                if ability := self._by_ability.get(name) or self._by_ability.get(f"crypto_{name}"):
                    yield ability

    def _abilities(self) -> Iterator[tuple[str, str]]:
        for name, path in self._paths.items():
            if any(part in _CRYPTO for part in path.relative_to(self.directory).parts):
                for alias in self._module(name).aliases:
                    yield alias, name


def read(name: str, path: Path) -> Module:
    """A module, and what it says of itself. Raises UserError for a damaged one, OSError."""
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            data: bytes = file.read()
    except (EOFError, lzma.LZMAError, zstd.ZstdError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: a damaged module: {error}") from None
    facts: dict[str, list[str]] = {"depends": [], "softdep": [], "alias": []}
    for key, value in _FACT.findall(data):
        facts[key.decode()].append(value.decode("ascii", "replace"))
    before: list[str] = []
    for text in facts["softdep"]:
        before += re.sub(r"\bpost:.*?(?=\bpre:|$)", "", text).replace("pre:", " ").split()
    return Module(
        name,
        unsigned(data),
        depends=tuple(_name(each) for text in facts["depends"] for each in text.split(",") if each),
        before=tuple(map(_name, before)),
        aliases=tuple(map(_name, facts["alias"])),
    )


def unsigned(data: bytes) -> bytes:
    """A module without its distributor's signature, which an emulated processor takes long to verify.

    The machine's kernel is as trustworthy as the file that it came in; where it insists on signatures, it says so.
    """
    if not data.endswith(_SIGNATURE):
        return data
    (size_bytes,) = struct.unpack(">I", data[-len(_SIGNATURE) - 4 : -len(_SIGNATURE)])
    end = len(data) - len(_SIGNATURE) - 12 - size_bytes
    return data[:end] if end > 0 else data


def _name(text: str) -> str:
    return text.replace("-", "_")
