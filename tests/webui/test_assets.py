"""What pages load: the right bytes, from this address alone, kept by browsers for as long as they are the same."""

import gzip
import hashlib
import json
import re
from importlib import resources
from pathlib import Path

import aiohttp
import jinja2
import pytest

from biruda.webui import assets
from biruda.webui import routes as webui
from tests.master.test_api import served

STATIC = resources.files("biruda.webui") / "static"
SOURCE = Path(str(resources.files("biruda.webui")))
MOST_SHEET_BYTES = 12 * 1024


def test_what_is_others_is_what_the_manifest_says() -> None:
    vendor = STATIC / "vendor"
    manifest = json.loads((vendor / "manifest.json").read_text())
    named = set()
    for package in manifest["packages"]:
        assert package["licence"]
        assert package["version"]
        assert package["integrity"].startswith("sha512-")
        for file in package["files"]:
            named.add(file["to"])
            assert hashlib.sha256((vendor / file["to"]).read_bytes()).hexdigest() == file["sha256"], file["to"]
    there = {
        str(path.relative_to(SOURCE / "static" / "vendor")) for path in (SOURCE / "static" / "vendor").rglob("*.*")
    }
    assert there == named | {"manifest.json"}


def test_no_script_sets_html_and_none_asks_another_host() -> None:
    for path in (SOURCE / "static").glob("*.js"):
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert set(re.findall(r"https?://[^\"'`\s)]+", text)) <= {"http://www.w3.org/2000/svg"}, path
        for imported in re.findall(r'from "([^"]+)"', text):
            assert imported.startswith("./"), path
            assert (path.parent / imported).is_file(), f"{path}: {imported}"


def test_no_page_has_anything_inline() -> None:
    for path in (SOURCE / "templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|\|\s*safe\b", text), path
        for script in re.findall(r"<script[^>]*>", text):
            assert "src=" in script, path
        assert not re.search(r"https?://(?!git\.example\.org)", text), path


def test_the_sheet_stays_small() -> None:
    assert len((STATIC / "style.css").read_bytes()) < MOST_SHEET_BYTES


@pytest.mark.parametrize("path", sorted(path.name for path in (SOURCE / "templates").glob("*.html")))
def test_every_template_is_sound(path: str) -> None:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("biruda.webui", "templates"), autoescape=True)
    environment.filters |= dict.fromkeys(
        ("duration", "size", "number", "percent", "relative", "exact", "shown"), lambda value: value
    )
    environment.get_template(path)


async def test_assets_are_kept_and_packed(tmp_path: Path) -> None:
    loaded = assets.load(STATIC)
    url = loaded.url("style.css")
    async with served(tmp_path, mount=webui.mount) as client, aiohttp.ClientSession(auto_decompress=False) as session:
        async with session.get(client.tcp + url, headers={"Accept-Encoding": "gzip"}) as answer:
            assert "immutable" in answer.headers["Cache-Control"]
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await answer.read()) == (STATIC / "style.css").read_bytes()
            etag = answer.headers["ETag"]
        async with session.get(client.tcp + url, headers={"Accept-Encoding": "identity"}) as answer:
            assert await answer.read() == (STATIC / "style.css").read_bytes()
        async with session.get(client.tcp + url, headers={"If-None-Match": etag}) as answer:
            assert answer.status == 304
        async with session.get(client.tcp + "/static/old/style.css") as answer:
            assert answer.headers["Cache-Control"] == "no-cache"
        for name in ("../routes.py", "%2e%2e/routes.py", "vendor", "nothing.css", "vendor/../../routes.py"):
            async with session.get(f"{client.tcp}/static/{loaded.digest}/{name}", allow_redirects=False) as answer:
                assert answer.status in (401, 303, 404), name
                assert b"import" not in await answer.read()
