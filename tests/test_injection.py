"""Where worker executables are found, and what is said when they are not."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
from backports import zstd

from biruda import injection
from biruda.errors import EnvironmentFault


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injection, "_known", {})


def executable(path: Path, content: bytes = b"\x7fELF worker", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_directory_that_is_named_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path / "frozen"), raising=False)
    monkeypatch.setattr(injection, "_CHECKOUT", tmp_path / "checkout")
    named = executable(tmp_path / "named" / "arm64", b"a")
    frozen = executable(tmp_path / "frozen" / "workers" / "arm64", b"b")
    checkout = executable(tmp_path / "checkout" / "dist" / "workers" / "arm64", b"c")
    for path, content in ((named, b"a"), (frozen, b"b"), (checkout, b"c")):
        found = injection.find("arm64", tmp_path / "cache", {"BIRUDA_WORKERS": str(tmp_path / "named")})
        assert (found.path, found.arch, found.sha256) == (path, "arm64", hashlib.sha256(content).hexdigest())
        path.unlink()
    with pytest.raises(EnvironmentFault, match="there is no worker executable for arm64 on this host") as fault:
        injection.find("arm64", tmp_path / "cache", {})
    assert "make dist/workers/arm64 with ./build-static.sh" in fault.value.hint


def test_a_compressed_one_is_unpacked_once_and_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    monkeypatch.setattr(injection, "_CHECKOUT", tmp_path / "nowhere")
    content = os.urandom(300_000)
    executable(tmp_path / "workers" / "amd64.zst", zstd.compress(content))
    cache, digest = tmp_path / "cache", hashlib.sha256(content).hexdigest()
    found = injection.find("amd64", cache, {})
    assert found.path == cache / f"{digest}-amd64"
    assert (found.path.read_bytes(), found.path.stat().st_mode & 0o777) == (content, 0o555)
    made_ns = found.path.stat().st_mtime_ns
    assert injection.find("amd64", cache, {}) == found
    assert found.path.stat().st_mtime_ns == made_ns
    found.path.unlink()
    executable(found.path, b"something else")
    injection._known.clear()  # as in another daemon
    assert injection.find("amd64", cache, {}).path.read_bytes() == content
    assert [path.name for path in cache.iterdir()] == [f"{digest}-amd64"]


def test_a_new_file_in_its_place_is_another(tmp_path: Path) -> None:
    path = executable(tmp_path / "amd64", b"one")
    environ = {"BIRUDA_WORKERS": str(tmp_path)}
    first = injection.find("amd64", tmp_path, environ)
    executable(path, b"other")
    assert injection.find("amd64", tmp_path, environ).sha256 != first.sha256


@pytest.mark.parametrize(
    ("content", "name", "mode", "said"),
    [
        (b"no zstd", "amd64.zst", 0o644, "amd64.zst: the worker executable is damaged"),
        (b"plain", "amd64", 0o644, "amd64: the worker executable may not be executed"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    content: bytes, name: str, mode: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    executable(tmp_path / "workers" / name, content, mode)
    with pytest.raises(EnvironmentFault, match=said):
        injection.find("amd64", tmp_path / "cache", {})
    assert not (tmp_path / "cache").exists()
