"""What is done from pages: starting and stopping, with the refusals that the command line gives."""

import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.web.site import Site


def log_of(page: Page, it: Site) -> str:
    page.wait_for_url(re.compile(r"/jobs/\d+$"))
    job = int(page.url.rpartition("/")[2])
    it.farm.finished(job)
    return it.farm.log(job).decode()


def choose(page: Page, name: str) -> None:
    """Only this environment."""
    for box in page.locator("[name=on]:checked").all():
        box.uncheck()
    page.locator(f'[name=on][value^="env={name},"]').check()


def test_tokens_are_made_listed_and_ended_from_the_command_line(lived: Site, tmp_path: Path) -> None:
    farm = lived.farm
    made = farm.command("token", "--role", "viewer", "--name", "ann", "--ttl", "1d")
    assert made.returncode == 0, made.stderr
    file = tmp_path / "token"
    file.write_text(made.stdout)
    there = ("--url", lived.url, "--token-file", os.fspath(file))
    assert farm.command("farm", *there).returncode == 0
    refused = farm.command("run", *there, "--no-source", "--", "true")
    assert "ann has the role viewer, and POST needs user" in refused.stderr
    assert re.search(r"ann +viewer", farm.command("token", "--list").stdout)
    assert farm.command("token", "--revoke", "ann").returncode == 0
    assert farm.command("farm", *there).returncode == 1
    assert "ann" not in farm.command("token", "--list").stdout
    assert "go together" in farm.command("token", "--role", "viewer").stderr


def test_a_named_worker_is_started_and_stopped(lived: Site) -> None:
    with lived.open("/workers/sleeper") as page:
        page.get_by_role("button", name="start", exact=True).click()
        expect(page.locator("#said")).to_contain_text("start: done")
        job = int(page.locator("#said a").inner_text())
        assert lived.farm.job(job)["worker"] == "sleeper"
        expect(page.locator(f'#live tr[data-key="{job}"]')).to_be_visible()
        page.get_by_role("button", name="stop", exact=True).click()
        assert lived.farm.finished(job)["outcome"] == "cancelled"
        expect(page.locator(f'#live tr[data-key="{job}"]')).to_contain_text("cancelled")


def test_an_ambiguous_start_is_refused_with_what_may_be_meant(lived: Site) -> None:
    refused = lived.farm.command("start", "two-faced")
    with lived.open("/workers/two-faced") as page:
        page.get_by_role("button", name="start", exact=True).click()
        expect(page.locator("#said")).to_contain_text("names workers on 2 systems")
        assert "names workers on 2 systems" in refused.stderr
        candidates = page.locator("#said button").all_inner_texts()
        assert len(candidates) == 2
        assert "arm64 debian13 on alder" in candidates


def test_a_user_may_not_end_what_is_anothers(lived: Site) -> None:
    job = lived.farm.post("/api/v1/workers/sleeper/start", {"host": "alder"})["jobs"][0]
    with lived.open("/workers/sleeper", "user") as page:
        page.get_by_role("button", name="stop", exact=True).click()
        expect(page.locator("#said")).to_contain_text(f"job {job} is")
    lived.farm.post(f"/api/v1/jobs/{job}/cancel", {})
    lived.farm.finished(job)


def test_an_uploaded_tree_is_built(lived: Site, tmp_path: Path) -> None:
    path = tmp_path / "tree.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("tree-1.0/greeting")
        info.size = 6
        tar.addfile(info, io.BytesIO(b"hello\n"))
    with lived.open("/start?env=thread", "user") as page:
        choose(page, "thread")
        page.fill("[name=lines]", "cat greeting\necho it\\'s built")
        page.check("[name=source][value=tarball]")
        page.set_input_files("[name=tarball]", path)
        expect(page.locator("#line")).to_contain_text(
            "tar -C tree -xf tree.tar.gz && biruda run --source tree --on env=thread"
        )
        page.locator("#go").click()
        assert log_of(page, lived) == "hello\nit's built\n"


def test_a_repository_is_built(lived: Site, tmp_path: Path) -> None:
    def git(*argv: str) -> None:
        names = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(
            ["git", *names, *argv], cwd=tmp_path, check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
        )

    git("init", "-q")
    (tmp_path / "greeting").write_text("from git\n")
    git("add", ".")
    git("commit", "-qm", "one")
    with lived.open("/start") as page:
        choose(page, "thread")
        page.fill("[name=lines]", "cat greeting")
        page.check("[name=source][value=git]")
        page.fill("[name=url]", f"file://{tmp_path}")
        page.locator("#go").click()
        assert log_of(page, lived) == "from git\n"
    with lived.open("/start") as page:
        page.fill("[name=lines]", "cat greeting")
        page.check("[name=source][value=git]")
        page.fill("[name=url]", "ext::sh")
        page.locator("#go").click()
        expect(page.locator("#said")).to_contain_text("no address to clone from")


def test_the_line_that_is_shown_does_the_same(lived: Site) -> None:
    with lived.open("/start") as page:
        choose(page, "thread")
        page.fill("[name=lines]", 'echo "it\'s $((1+1))"\nexit 3')
        page.fill("[name=name]", "a name")
        line = page.locator("#line").inner_text()
    words = " ".join(lived.farm.argv())
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("biruda", words, 1)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (3, "it's 2\n"), done.stderr
