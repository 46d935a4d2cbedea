"""What a guess is, and how it is shown."""

from biruda.guessenv.names import UNKNOWN

_COLUMNS = 80


class Guess:
    """What an environment is, with one sentence of evidence for each conclusion. Equal when all fields are."""

    __slots__ = (
        "arch",
        "bits",
        "emulated",
        "evidence",
        "libc",
        "platform",
        "pretty_name",
        "system_id",
        "system_version",
    )

    def __init__(
        self,
        *,
        arch: str = UNKNOWN,
        platform: str = UNKNOWN,
        libc: str = UNKNOWN,
        bits: int = 0,
        emulated: bool = False,
        evidence: tuple[str, ...] = (),
        system_id: str = "",
        system_version: str = "",
        pretty_name: str = "",
    ) -> None:
        self.arch = arch  # canonical: amd64, i386, ...
        self.platform = platform  # debian12, alpine3.19.1, arch: [A-Za-z0-9._] only
        self.libc = libc  # "glibc 2.36", "musl 1.2.4", "bionic", "none" for static programs
        self.bits = bits  # of the programs; 0 when nothing tells
        self.emulated = emulated
        self.evidence = evidence
        self.system_id = system_id  # as os-release has it
        self.system_version = system_version
        self.pretty_name = pretty_name

    def as_dict(self) -> dict[str, object]:
        """JSON builtins: arch, platform, libc, bits, emulated, evidence, pretty_name."""
        return {
            "arch": self.arch,
            "platform": self.platform,
            "libc": self.libc,
            "bits": self.bits,
            "emulated": self.emulated,
            "evidence": list(self.evidence),
            "pretty_name": self.pretty_name,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Guess):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __repr__(self) -> str:
        return f"Guess({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


def report(guess: Guess, as_json: bool = False) -> str:
    """The text that `biruda --guess-env` prints, without the last newline; at most 80 columns, or JSON."""
    if as_json:
        import json  # here: as dear as the whole guess, and only wanted by programs

        return json.dumps(guess.as_dict(), indent=2)
    name = f" ({guess.pretty_name})" if guess.pretty_name else ""
    lines = [
        *_wrap(f"arch:      {guess.arch}", 11),
        *_wrap(f"platform:  {guess.platform}{name}", 11),
        *_wrap(f"libc:      {guess.libc}", 11),
        *_wrap(f"bits:      {guess.bits or UNKNOWN}", 11),
        *_wrap(f"emulated:  {'yes' if guess.emulated else 'no'}", 11),
        "evidence:" if guess.evidence else "evidence:  none",
    ]
    for sentence in guess.evidence:
        lines += _wrap(f"  - {sentence}", 4)
    return "\n".join(lines)


def _wrap(text: str, indent: int) -> list[str]:
    """text in lines of at most 80 columns, broken at spaces where there are any. textwrap would import re."""
    lines = []
    while len(text) > _COLUMNS:
        space = text.rfind(" ", indent + 1, _COLUMNS + 1)
        cut = space if space > 0 else _COLUMNS
        lines.append(text[:cut].rstrip())
        text = " " * indent + text[cut:].lstrip()
    return [*lines, text]
