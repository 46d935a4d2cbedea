"""How coordinators on other hosts get to this master: by its TLS listener, or by being dialled."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from biruda.config import Master as Settings
from biruda.master.api_joining import LINKS, Links
from biruda.master.service import Master

log = logging.getLogger("biruda.master")


@asynccontextmanager
async def linking(
    home: Path, settings: Settings, host: str, master: Master, app: web.Application
) -> AsyncIterator[None]:
    """Within it other hosts may link, as far as the settings let them; the API's application learns how.

    The authority is made where it is first needed. Raises ConfigError.
    """
    if settings.link_listen is None and not settings.dial:
        app[LINKS] = Links(plain=settings.plain_links)
        yield
        return
    from biruda.master import linkserver  # ssl and what signs: a farm of one host needs none of it
    from biruda.master.authority import Authority
    from biruda.master.dialling import dialling
    from biruda.master.joining import Joining
    from biruda.master.joinrecords import JoinRecords
    from biruda.trust import tls
    from biruda.trust.acceptor import Complaints

    authority = Authority(home / "ca", host)
    authority.ensure()
    joining = Joining(authority, JoinRecords(master.store), life_s=settings.certificate_s)
    async with AsyncExitStack() as stack:
        url, address = "", settings.link_listen
        if address is not None:
            served = linkserver.application(joining, master.hosts, Complaints())
            context = tls.listening(authority.master, authority.certificate)
            port = await stack.enter_async_context(linkserver.serving(served, address.host, address.port, context))
            url = f"https://{replace(address, host=address.host or host, port=port)}"
            log.info("coordinators join and link at %s", url)
        await stack.enter_async_context(dialling([str(each) for each in settings.dial], joining, master.hosts))
        app[LINKS] = Links(joining=joining, url=url, plain=settings.plain_links)
        yield
