"""The authority's files: made once, kept, private, and never made anew behind anybody's back."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from biruda.errors import ConfigError, PeerError
from biruda.master.authority import Authority
from biruda.trust import certificates
from biruda.trust.tls import Role, owner_of


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "ca", "alder")
    made.ensure()
    return made


def test_it_is_made_once_and_private(authority: Authority, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()}
    assert sorted(before) == ["authority.key", "authority.pem", "master.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    Authority(tmp_path / "ca", "another name").ensure()
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "ca").iterdir()}
    assert owner_of(authority.master, authority.certificate).role is Role.MASTER


def test_a_start_with_all_files_does_not_load_what_signs(authority: Authority, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from biruda.master.authority import Authority\n"
        f"Authority(Path({str(tmp_path / 'ca')!r}), 'x').ensure()\n"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_it_signs_for_the_host_that_was_let_in_whatever_the_request_says(authority: Authority, tmp_path: Path) -> None:
    key = certificates.new_key()
    text, peer = authority.sign(certificates.new_request(key, "master"), "beech", issued_s=1e9, life_s=60)
    (tmp_path / "host.pem").write_text(key + text)
    assert owner_of(tmp_path / "host.pem", authority.certificate) == peer
    assert (peer.host, peer.role, peer.expires_s) == ("beech", Role.COORDINATOR, 1e9 + 60)
    with pytest.raises(PeerError):
        authority.sign("no request", "beech", issued_s=1e9, life_s=60)


def test_a_master_without_the_key_still_serves_and_cannot_sign(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "ca" / "authority.key").unlink()
    Authority(tmp_path / "ca", "alder").ensure()
    with pytest.raises(ConfigError, match=r"authority\.key: cannot be read: no such file"):
        authority.sign(certificates.new_request(certificates.new_key(), "x"), "x", issued_s=1e9, life_s=60)


@pytest.mark.parametrize("lost", ["authority.pem", "master.pem"])
def test_what_is_lost_is_not_replaced_by_another_authority(authority: Authority, tmp_path: Path, lost: str) -> None:
    pin = authority.pin()
    (tmp_path / "ca" / lost).unlink()
    if lost == "master.pem":  # the authority makes another one
        Authority(tmp_path / "ca", "alder").ensure()
        assert Authority(tmp_path / "ca", "alder").pin() == pin
        return
    with pytest.raises(ConfigError) as refused:
        Authority(tmp_path / "ca", "alder").ensure()
    assert str(refused.value) == f"{tmp_path}/ca/authority.pem: there is no such file"
    assert "every host joins again" in refused.value.hint


def test_files_of_two_authorities_are_not_mixed(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "beech")
    other.ensure()
    (tmp_path / "ca" / "authority.pem").write_text(other.text())
    with pytest.raises(ConfigError, match="not signed by this farm's authority"):
        authority.ensure()


def test_a_coordinators_certificate_is_no_masters(authority: Authority, tmp_path: Path) -> None:
    key = certificates.new_key()
    text, _ = authority.sign(certificates.new_request(key, "x"), "x", issued_s=1e9, life_s=60)
    (tmp_path / "ca" / "master.pem").write_text(key + text)
    with pytest.raises(ConfigError, match="is a coordinator's certificate"):
        authority.ensure()
