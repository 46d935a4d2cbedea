"""Templates to answers: Jinja2, compiled once, everything escaped, an unknown name is an error."""

from typing import Any

import jinja2
from aiohttp import web

from biruda import VERSION
from biruda.webui import marks, words
from biruda.webui.assets import Assets


class Templates:
    """The compiled templates."""

    def __init__(self, assets: Assets) -> None:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("biruda.webui", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.globals.update(
            static=assets.url,
            version=VERSION,
            states=words.STATES,
            state_of=words.state_of,
            seconds_between=words.seconds_between,
        )
        environment.filters.update(
            duration=words.duration,
            size=words.size,
            number=words.number,
            percent=words.percent,
            relative=words.relative,
            exact=words.exact,
            shown=marks.shown,
        )
        self._environment = environment

    def page(self, name: str, values: dict[str, Any], *, status: int = 200) -> web.Response:
        """A template as an answer, packed by gzip where the browser takes it."""
        text = self._environment.get_template(name).render(values)
        response = web.Response(text=text, status=status, content_type="text/html", charset="utf-8")
        response.headers["Cache-Control"] = "no-store"
        response.enable_compression()
        return response
