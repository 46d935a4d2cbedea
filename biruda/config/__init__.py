"""biruda.conf: every key, its type, default, bounds and doc; files to values; and what of the environment counts.

`load` reads files, `home_directory` and `find_config` say which, `recipe_of` and `expand` turn a [[worker]] into what
a worker is told, `docs_table` writes the reference. The keys are in schema.py.
"""

from biruda.config.home import docker_socket, find_config, home_directory, proxies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from biruda.config.public import (
        Accel,
        Address,
        Bind,
        Config,
        Coordinator,
        Environment,
        Master,
        Network,
        Worker,
        docs_table,
        expand,
        expand_text,
        in_environment,
        load,
        parse,
        parse_address,
        recipe_of,
    )

__all__ = [
    "Accel",
    "Address",
    "Bind",
    "Config",
    "Coordinator",
    "Environment",
    "Master",
    "Network",
    "Worker",
    "docker_socket",
    "docs_table",
    "expand",
    "expand_text",
    "find_config",
    "home_directory",
    "in_environment",
    "load",
    "parse",
    "parse_address",
    "proxies",
    "recipe_of",
]


def __getattr__(name: str) -> object:
    """Loads the keys when they are first wanted: most commands only ask where the home is, and start 30 ms sooner."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from biruda.config import public

    return getattr(public, name)
