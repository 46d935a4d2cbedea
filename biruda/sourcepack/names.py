"""What a path in a pack may be, and how one is shown. Standard library only: the worker imports this."""

import re

MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255

_BAD_PART = re.compile(rb"(?:\A|/)\.{0,2}(?:/|\Z)|\0")


def shown(path: bytes) -> str:
    """The path as one printable line; what is not printable UTF-8 stands as an escape."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def fault_in_path(path: bytes) -> str:
    """Why no entry may have this path, "" when it may: relative, "/"-separated, without `.`, `..` and empty parts."""
    if _BAD_PART.search(path):
        if not path:
            return "an empty name"
        if path.startswith(b"/"):
            return "an absolute name"
        return 'a NUL byte, or an empty, "." or ".." part in the name'
    if len(path) > MAX_NAME_BYTES:
        if len(path) > MAX_PATH_BYTES:
            return f"a name of {len(path)} bytes; at most {MAX_PATH_BYTES}"
        longest = max(map(len, path.split(b"/")))
        if longest > MAX_NAME_BYTES:
            return f"a part of {longest} bytes in the name; at most {MAX_NAME_BYTES}"
    return ""


def fault_in_target(target: bytes) -> str:
    """Why no symlink may have this target, "" when it may: any text that the kernel takes, outside or dangling too."""
    if not target or b"\0" in target:
        return "a link target that is empty or holds a NUL byte"
    if len(target) > MAX_PATH_BYTES:
        return f"a link target of {len(target)} bytes; at most {MAX_PATH_BYTES}"
    return ""
