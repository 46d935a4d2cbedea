"""What an environment is: architecture, platform, C library. Read from its root tree, or asked from inside.

`static` reads a tree and executes nothing; `here` adds what only a running program is told. `tree` keeps every read
inside the root; `programs`, `packages` and `systems` each know one kind of evidence; `names` knows the aliases.
Standard library only, and little of that: this runs in each new environment before any job does.
"""

from biruda.guessenv.answer import Guess, report
from biruda.guessenv.here import Seen, guess_here
from biruda.guessenv.names import ALIASES, canonical_arch, compare, relation
from biruda.guessenv.static import fingerprint, guess

__all__ = [
    "ALIASES",
    "Guess",
    "Seen",
    "canonical_arch",
    "compare",
    "fingerprint",
    "guess",
    "guess_here",
    "relation",
    "report",
]
