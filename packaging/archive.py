"""Trees as reproducible archives in zstd frames, and the executable that is made of them.

Run in the locked environment, which has zstd: archive.py TREE OUTPUT packs one tree.
"""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LEVEL = 19
WINDOW_LOG = 20  # a megabyte, which fits a processor's cache: unpacked a third faster than from zstd's own window
MAGIC = b"biruda payload\n\0"
KEY_DIGITS = 32


def write_executable(output: Path, *, launcher: Path, base: Path, app: Path, workers: Path, python: Path) -> Path:
    """The launcher, three frames and the trailer by which the launcher finds them; mode 0755, replaced in one step."""
    frames = b""
    for tree in (workers, app):
        _pack(python, tree, packed := tree.with_name(f"{tree.name}.zst"))
        frames += packed.read_bytes()
    frames += base.read_bytes()
    front = launcher.read_bytes()
    front += bytes(-len(front) % 4096)
    trailer = len(front).to_bytes(8, "little") + len(frames).to_bytes(8, "little")
    trailer += hashlib.sha256(frames).hexdigest()[:KEY_DIGITS].encode() + MAGIC
    whole = output.with_name(f".{output.name}.new")
    whole.write_bytes(front + frames + trailer)
    whole.chmod(0o755)
    return whole.rename(output)


def _pack(python: Path, source: Path, output: Path) -> None:
    subprocess.run([python, "-B", __file__, source, output], check=True)


def halves(tree: Path) -> list[list[Path]]:
    """The files of a tree in two lists of about the same size: each becomes a frame, both are unpacked at once."""
    files = sorted((path for path in tree.rglob("*") if path.is_symlink() or not path.is_dir()), key=_by_size)
    lists: list[list[Path]] = [[], []]
    sizes = [0, 0]
    for path in files:
        smaller = sizes.index(min(sizes))
        lists[smaller].append(path)
        sizes[smaller] += path.lstat().st_size
    return [names for names in lists if names]


def _by_size(path: Path) -> tuple[int, str]:
    return -path.lstat().st_size, path.as_posix()


def cpio(tree: Path, files: list[Path]) -> Iterator[bytes]:
    """These files and their directories in the format `newc`, without owners and times, nothing for other users."""
    folders = {parent for path in files for parent in path.relative_to(tree).parents} - {Path()}
    for number, path in enumerate(sorted([*files, *(tree / folder for folder in folders)])):
        status = path.lstat()
        name = path.relative_to(tree).as_posix().encode()
        if stat.S_ISDIR(status.st_mode):
            yield from _entry(number, stat.S_IFDIR | 0o700, name, b"")
        elif stat.S_ISLNK(status.st_mode):
            yield from _entry(number, stat.S_IFLNK | 0o777, name, os.readlink(path).encode())
        else:
            mode = 0o700 if status.st_mode & 0o100 else 0o600
            yield from _entry(number, stat.S_IFREG | mode, name, path.read_bytes())
    yield from _entry(0, 0, b"TRAILER!!!", b"")


def _entry(number: int, mode: int, name: bytes, data: bytes) -> Iterator[bytes]:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    yield head + bytes(-len(head) % 4)
    yield data + bytes(-len(data) % 4)


def main() -> int:
    from backports import zstd  # the locked environment has it, the Python that builds need not

    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    pieces = [source.read_bytes()] if source.is_file() else [b"".join(cpio(source, files)) for files in halves(source)]
    is_packed = source.is_dir() and any(source.rglob("*.zst"))
    level = 1 if is_packed else LEVEL
    options = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.window_log: WINDOW_LOG,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    output.write_bytes(b"".join(zstd.compress(piece, options=options) for piece in pieces))
    return 0


if __name__ == "__main__":
    sys.exit(main())
