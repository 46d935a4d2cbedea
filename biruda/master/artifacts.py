"""Artifacts of the spool: found by name, and recognized by what they are, so that a page may show a part of them."""

from dataclasses import dataclass

from biruda.errors import NotFound, UserError
from biruda.master.intake import safe_path
from biruda.master.logs import FileReader, open_file
from biruda.master.service import Master

MAX_TEXT_BYTES = 256 * 1024
MAX_IMAGE_BYTES = 32 << 20
MAX_HTML_BYTES = 8 << 20

IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)
"""By their first bytes. No SVG: it is a document, which may have scripts."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a page may show of an artifact: so many of its first bytes, as this type."""

    content_type: str
    bytes: int


async def open_artifact(master: Master, job: int, path: str) -> FileReader:
    """An artifact of a job's last attempt. Raises UserError when there is none of that name."""
    view = master.view(job)
    if not safe_path(path) or path not in {item["path"] for item in view["artifacts"]}:
        raise NotFound(f"there is no artifact {path[:200]!r} of job {job}", hint=f"biruda show {job} lists them")
    return await open_file(master.spool.artifacts(view["spool"]) / path, f"the artifact {path!r} of job {job}")


def preview(path: str, reader: FileReader) -> Preview:
    """How an artifact may be shown. Raises UserError for one that only a program can read."""
    head = reader.head(4096)
    size = reader.size
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    image = "image/webp" if webp else next((kind for magic, kind in IMAGES if head.startswith(magic)), "")
    if image and size <= MAX_IMAGE_BYTES:
        return Preview(image, size)
    if b"\0" in head or image:
        raise UserError(f"{path[:200]!r} is neither text nor a small image", hint="download it")
    if path.lower().endswith((".html", ".htm", ".xhtml")) and size <= MAX_HTML_BYTES:
        return Preview("text/html", size)
    return Preview("text/plain", min(size, MAX_TEXT_BYTES))
