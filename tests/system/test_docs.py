"""The commands that the documents show do what they say."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.farm import SOURCE

README = (SOURCE / "README.md").read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def documented_commands() -> list[str]:
    """Every line of a shell block in README and docs that calls biruda."""
    lines: list[str] = []
    for path in (SOURCE / "README.md", *sorted((SOURCE / "docs").glob("*.md"))):
        for block in blocks(path.read_text()):
            lines += [line.split(" #")[0].strip() for line in block.splitlines() if line.startswith("biruda ")]
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("line", documented_commands())
def test_every_documented_command_line_is_one(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    from biruda.cli.command import Settings
    from biruda.cli.main import biruda

    words = shlex.split(line)[1:]
    words = words[: next((index for index, word in enumerate(words) if word in ("|", ">", "&&", ";")), len(words))]
    if "--guess-env" in words:
        return
    try:
        context = biruda.make_context("biruda", list(words), obj=Settings())
        name, command, rest = biruda.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, list(rest), parent=context)
    except click.exceptions.Exit:
        pass  # --help, --version


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_readme_by_hand(tmp_path: Path) -> None:
    """The block of README, word for word, but for the set-up, which has been done, and the project, which is made."""
    if os.getuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("building a root tree needs root and mmdebstrap")
    block = next(text for text in blocks(README) if "biruda up" in text)
    lines = [line.split(" #")[0].rstrip() for line in block.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("make setup", "export PATH"))]
    project = tmp_path / "src" / "my-project"
    project.mkdir(parents=True)
    (project / "Makefile").write_text("check:\n\techo checked > /dev/stdout\n")
    env = {
        **os.environ,
        "PATH": f"{SOURCE}/.venv/bin:{os.environ['PATH']}",
        "BIRUDA_HOME": os.fspath(tmp_path / "h"),
        "HOME": os.fspath(tmp_path),
    }
    script = "set -e\ntrap 'biruda down >/dev/null 2>&1 || true' EXIT\n" + "\n".join(lines)
    result = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("checked") >= 4
    assert "log complete" in result.stderr
