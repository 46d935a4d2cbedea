"""What other parts import from biruda.config, which loads this when one of it is first wanted."""

from biruda.config.docs import docs_table
from biruda.config.files import load, parse
from biruda.config.recipe import expand, expand_text, in_environment, recipe_of
from biruda.config.schema import Config, Coordinator, Environment, Master, Worker
from biruda.config.values import Accel, Address, Bind, Network, parse_address

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
    "docs_table",
    "expand",
    "expand_text",
    "in_environment",
    "load",
    "parse",
    "parse_address",
    "recipe_of",
]
