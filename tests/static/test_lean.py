"""Data classes as static workers have them, written out, behave as those that @dataclass makes."""

import dataclasses
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from biruda.convert import decode, encode

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = (
    *("biruda.messages", "biruda.model", "biruda.frames", "biruda.process", "biruda.worker.opening"),
    *("biruda.worker.steps", "biruda.worker.processes", "biruda.worker.artifacts", "biruda.worker.machine"),
)


@pytest.fixture(scope="module", autouse=True)
def _builder() -> Iterator[None]:
    sys.path.insert(0, str(CHECKOUT / "packaging" / "worker"))
    yield
    sys.path.remove(str(CHECKOUT / "packaging" / "worker"))
    for name in ("lean", "biruda_ready"):
        sys.modules.pop(name, None)


def pairs(name: str) -> dict[str, tuple[Any, Any]]:
    """Of a module: each data class as it stands there, and written out."""
    original = importlib.import_module(name)
    written = types.ModuleType(name)
    tree = importlib.import_module("lean").write_out(Path(str(original.__file__)).read_bytes())
    exec(compile(tree, name, "exec"), written.__dict__)
    return {
        kind.__name__: (kind, getattr(written, kind.__name__))
        for kind in vars(original).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == name
    }


@pytest.mark.parametrize("name", MODULES)
def test_all_are_written_out(name: str) -> None:
    found = pairs(name)
    assert found
    for original, written in found.values():
        assert "__dataclass_params__" not in vars(written), (
            f"{original.__name__}: has a form that lean.py does not know"
        )


@pytest.mark.parametrize("name", MODULES)
def test_the_fields_are_the_same(name: str) -> None:
    for original, written in pairs(name).values():
        for one, other in zip(dataclasses.fields(original), dataclasses.fields(written), strict=True):
            assert (one.name, one.kw_only) == (other.name, other.kw_only)
            for asked in ("default", "default_factory", "type"):
                assert repr(getattr(one, asked)) == repr(getattr(other, asked))
        assert original.__slots__ == written.__slots__
        assert original.__match_args__ == written.__match_args__
        assert (original.__hash__ is None) == (written.__hash__ is None)


def test_values_behave_the_same() -> None:
    for kind in pairs("biruda.model")["Step"]:
        one = kind(name="a", argv=("b",))
        assert one == kind(name="a", argv=("b",), env={})
        assert one != dataclasses.replace(one, name="c")
        assert one.env is not kind(name="a", argv=()).env
        assert repr(one).startswith("Step(name='a', argv=('b',), script=None, env={}, cwd=''")
        assert encode(decode(kind, encode(one))) == encode(one)
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.name = "c"
        with pytest.raises(dataclasses.FrozenInstanceError):
            del one.name
        with pytest.raises(AttributeError):
            object.__setattr__(one, "other", 1)
        with pytest.raises(TypeError):
            kind(name="a")
        with pytest.raises(TypeError):
            kind("a", ("b",))
    for kind in pairs("biruda.frames")["DataHeader"]:
        assert hash(kind(1, 2, 3, 4)) == hash(kind(1, 2, 3, 4))
        assert {kind(1, 2, 3, 4): "found"}[kind(1, 2, 3, 4)] == "found"
        assert kind(1, 2, 3, 4) != (1, 2, 3, 4)


def test_every_line_keeps_its_number() -> None:
    """A traceback of a static worker points at the source."""
    compared = 0
    for module in MODULES:
        for original, written in pairs(module).values():
            for name, method in vars(original).items():
                code = getattr(method, "__code__", None)
                if code is not None and code.co_filename == sys.modules[module].__file__:
                    assert code.co_firstlineno == vars(written)[name].__code__.co_firstlineno
                    compared += 1
    assert compared
