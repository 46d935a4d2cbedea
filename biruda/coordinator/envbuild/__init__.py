"""`biruda env build`: makes environments from a suite, a tarball, a directory or a container image, and removes them.

making.py says what is done in which order, shelf.py where it is kept, suite.py knows Debian and Ubuntu suites and the
tools that make them, tools.py how tools are run, tree.py how a tree is packed, unpacked and removed. What of a tree
becomes an image is in container.py for kind docker, in machine.py and kernel.py for kind qemu.
"""

from biruda.coordinator.envbuild.container import remove_image
from biruda.coordinator.envbuild.making import build, listing, remove
from biruda.coordinator.envbuild.shelf import Built

__all__ = ["Built", "build", "listing", "remove", "remove_image"]
