"""Text of others, made visible: what would steer a terminal or turn the writing direction is shown as a mark.

static/text.js does the same, with colours.
"""

import re
from typing import Final

_COLOURS: Final = re.compile(r"\x1b\[[0-9;:]{0,64}m")
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def shown(text: str) -> str:
    """The text with a mark for each character that is not seen: `^[`, `[U+202E]`. Colours are left out."""
    return _UNSEEN.sub(_mark, _COLOURS.sub("", text))


def _mark(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"^{chr(code ^ 0x40)}" if code < 0x20 or code == 0x7F else f"[U+{code:04X}]"
