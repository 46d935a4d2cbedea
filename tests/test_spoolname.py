"""Names in the spool: they always parse, and to the parts they were made of."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biruda.model import AttemptNumber, JobId
from biruda.spoolname import SpoolName, parse

numbers = st.integers(1, 2**63)


def named(arch: str, platform: str, host: str, job: int, attempt: int = 1) -> SpoolName:
    return SpoolName(arch, platform, host, JobId(job), AttemptNumber(attempt))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (named("amd64", "debian12", "build1", 7), "amd64-debian12-build1-7"),
        (named("amd64", "debian12", "build1", 7, 2), "amd64-debian12-build1-7.2"),
        (named("i386", "centos6", "h", 1234567), "i386-centos6-h-1234567"),
        (named("arm64", "alpine3.19.1", "pi-4.lan", 3, 10), "arm64-alpine3.19.1-pi-4.lan-3.10"),
        (named("riscv64", "arch", "a-1-2", 5), "riscv64-arch-a-1-2-5"),
        (named("amd64", "opensuse-leap15.6", "h", 1), "amd64-opensuse_leap15.6-h-1"),
        (named("amd64", "Gentoo/Linux 2.15", "büro", 1), "amd64-Gentoo_Linux_2.15-b_ro-1"),
        (named("", "", "", 1), "_-_-_-1"),
        (named("..", "../..", "../../etc", 1), "..-.._..-.._.._etc-1"),
    ],
)
def test_names_of_the_design(name: SpoolName, text: str) -> None:
    assert str(name) == text
    assert str(parse(text)) == text


@given(st.text(), st.text(), st.text(), numbers, numbers)
def test_any_name_parses_to_its_sanitised_parts(arch: str, platform: str, host: str, job: int, attempt: int) -> None:
    parsed = parse(str(named(arch, platform, host, job, attempt)))
    assert parsed.arch == (re.sub(r"[^A-Za-z0-9._]", "_", arch) or "_")
    assert parsed.platform == (re.sub(r"[^A-Za-z0-9._]", "_", platform) or "_")
    assert parsed.host == (re.sub(r"[^A-Za-z0-9._-]", "_", host) or "_")
    assert (parsed.job, parsed.attempt) == (job, attempt)
    assert parse(str(parsed)) == parsed


@given(st.text(), st.text(), st.text(), numbers)
def test_a_name_is_one_file_name(arch: str, platform: str, host: str, job: int) -> None:
    name = str(named(arch, platform, host, job))
    assert "/" not in name
    assert "\0" not in name
    assert name.isascii()
    assert not name.startswith("-")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "amd64-debian12-7",
        "amd64-debian12-host-",
        "amd64-debian12-host-0",
        "amd64-debian12-host-07",
        "amd64-debian12-host-7.0",
        "amd64-debian12-host-7.",
        "amd64-debian12-host-x",
        "amd64-debian12-host-7\n",
        "amd64-debian12-ho/st-7",
        "-debian12-host-7",
        "amd64-debian12-host-٧",
    ],
)
def test_what_is_no_spool_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a spool name"):
        parse(text)
