"""Where a daemon keeps its things, and what of the process's environment counts. Nothing else reads the environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from biruda.errors import ConfigError

_SYSTEM_HOME: Final = Path("/var/lib/biruda")
_SYSTEM_CONFIG: Final = Path("/etc/biruda/biruda.conf")
_DOCKER_SOCKET: Final = "/var/run/docker.sock"
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy")


def home_directory(cli_home: str | None, environ: Mapping[str, str], uid: int) -> Path:
    """The home, absolute: --home, else $BIRUDA_HOME, else the system's for root and the user's own for others."""
    if chosen := cli_home or environ.get("BIRUDA_HOME"):
        if "\0" in chosen:
            raise ConfigError("the home directory's name contains a NUL character")
        return Path(chosen).absolute()
    if uid == 0:
        return _SYSTEM_HOME
    state = environ.get("XDG_STATE_HOME", "")
    # the XDG specification says that a relative path is to be ignored
    return (Path(state) if state.startswith("/") else _user_home(environ, uid) / ".local/state") / "biruda"


def _user_home(environ: Mapping[str, str], uid: int) -> Path:
    import pwd

    if environ.get("HOME", "").startswith("/"):
        return Path(environ["HOME"])
    try:
        return Path(pwd.getpwuid(uid).pw_dir)
    except KeyError:
        raise ConfigError(f"user {uid} has no home directory", hint="give one with --home or $BIRUDA_HOME") from None


def find_config(home: Path, explicit: str | Path | None, *, system: Path = _SYSTEM_CONFIG) -> Path | None:
    """The configuration file: the explicit one, else HOME/biruda.conf, else the system's, else None."""
    if explicit is not None:
        if not os.path.lexists(explicit):
            raise ConfigError(f"{explicit}: there is no such file", hint="biruda.conf.example is a file to start from")
        return Path(explicit)
    if os.path.lexists(home / "biruda.conf"):
        return home / "biruda.conf"
    # an administrator may keep the system's file from other users, whose daemons then have nothing to do with it
    return system if os.access(system, os.R_OK) else None


def docker_socket(chosen: str, environ: Mapping[str, str]) -> str:
    """Where Docker's daemon listens: the configured socket, else $DOCKER_HOST, else the usual one."""
    return chosen or environ.get("DOCKER_HOST", "") or _DOCKER_SOCKET


def proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """The proxy variables that tools which fetch packages are to see, in the spelling they all understand."""
    found = {name: environ.get(name) or environ.get(name.upper(), "") for name in _PROXIES}
    return {name: value for name, value in found.items() if value}
