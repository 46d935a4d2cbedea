"""Root trees for each test."""

from pathlib import Path

import pytest
from roottrees import RootTree


@pytest.fixture
def tree(tmp_path: Path) -> RootTree:
    return RootTree(tmp_path / "root")


@pytest.fixture
def other_tree(tmp_path: Path) -> RootTree:
    return RootTree(tmp_path / "other")
