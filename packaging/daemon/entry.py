"""The first lines that run in the daemon executable: the process forgets how it was started, and becomes biruda."""

import os
import sys

for _name in [name for name in os.environ if name.startswith(("_PYI_", "PYINSTALLER_"))]:
    del os.environ[_name]  # children must not take themselves for parts of this program

_top = os.path.dirname(sys._MEIPASS)
sys.executable = os.path.join(_top, "biruda")  # the launcher among the unpacked files, which can be started alone
try:
    # the one file that all this was unpacked from, for who brings it to another host
    os.environ["BIRUDA_EXECUTABLE"] = os.readlink(os.path.join(_top, "origin"))
except OSError:
    os.environ.pop("BIRUDA_EXECUTABLE", None)
sys.path.insert(0, os.path.join(_top, "app"))

from biruda.__main__ import main  # noqa: E402 - found along the path above

sys.exit(main())
