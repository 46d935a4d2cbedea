"""`biruda env build`: makes environments of kind chroot from a suite, a tarball or a directory, and removes them.

making.py says what is done in which order, shelf.py where it is kept, suite.py knows Debian and Ubuntu suites and the
tools that make them, tools.py how tools are run, tree.py how a tree is packed, unpacked and removed.
"""

from biruda.coordinator.envbuild.making import build, listing, remove
from biruda.coordinator.envbuild.shelf import Built

__all__ = ["Built", "build", "listing", "remove"]
