"""Where a job's files lie, as the person who asks would name them."""

import os

from biruda.cli.client import Client
from biruda.cli.jobview import Job
from biruda.errors import BirudaError


class Spool:
    """The spool of the master; asked for once, when it is first wanted."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._directory: str | None = None

    def path_of(self, job: Job) -> str:
        """`spool/amd64-debian12-alder-12.log`; the name alone where the spool is on another host."""
        if not job.spool:
            return ""
        path = os.path.join(self._find(), f"{job.spool}.log")
        below = os.getcwd().rstrip("/") + "/"
        return path.removeprefix(below) if below != "/" else path

    def _find(self) -> str:
        if self._directory is None:
            self._directory = ""
            if self._client.address.socket_path:
                try:
                    self._directory = self._client.get("status").text("spool")
                except BirudaError:
                    pass  # it was only for a nicer line
        return self._directory
