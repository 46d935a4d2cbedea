"""Joining, renewal, revocation and the link over a real TLS listener: who is let in, and what the others are told."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biruda.coordinator.credentials import Credentials, Joined
from biruda.errors import NotFound, PeerError, UserError
from biruda.link import Link, dial, new_session_id
from biruda.master import joining as joining_module
from biruda.master import linkserver, tries
from biruda.master.authority import Authority
from biruda.master.joining import Joining
from biruda.master.joinrecords import JoinRecords
from biruda.master.service import Master
from biruda.transports import WebSocketTransport, open_websocket
from biruda.trust import certificates, tls
from biruda.trust.acceptor import Complaints
from biruda.trust.tls import MASTER_NAME
from tests.fakes import running_master

DAY_S = 86400.0


@dataclass
class Farm:
    """A master that hosts may join."""

    master: Master
    joining: Joining
    authority: Authority
    url: str
    session: aiohttp.ClientSession
    home: Path

    async def token(self, **more: Any) -> bytes:
        return (await self.joining.make_token(**{"host": "", "ttl_s": 900.0, "made_by": "root", **more})).token.secret

    async def ask(self, method: str, path: str, body: Any = None, own: Path | None = None) -> tuple[int, Any]:
        context = tls.dialling_master(self.authority.certificate, own)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.session.request(
            method, f"{self.url}{path}", data=data, ssl=context, server_hostname=MASTER_NAME
        ) as answer:
            value = await answer.json(content_type=None)
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json"
                assert (value["type"], value["status"]) == ("about:blank", answer.status)
            return answer.status, value

    async def join(self, secret: bytes, host: str = "beech", instance: str = "i1") -> tuple[int, Any]:
        key, request = certificates.new_key(), ""
        request = certificates.new_request(key, host)
        wanted = {"secret": secret.hex(), "host": host, "instance": instance, "request": request}
        status, answer = await self.ask("POST", "/api/v1/join", wanted)
        if status == 201:
            credentials = self.credentials(host)
            credentials.save(key, answer["certificate"], answer["authority"], Joined(url=self.url, host=host))
        return status, answer

    async def joined(self, host: str = "beech") -> Path:
        """The key and certificate of a host that has joined."""
        status, answer = await self.join(await self.token(), host)
        assert status == 201, answer
        return self.credentials(host).own

    def credentials(self, host: str) -> Credentials:
        return Credentials(self.home / host)

    async def link(self, own: Path | None, host: str = "beech", instance: str = "i1") -> Link:
        """Dial as a coordinator does; PeerError with the words of a refusal."""
        context = tls.dialling_master(self.authority.certificate, own)
        websocket = await open_websocket(self.session, f"{self.url}/api/v1/link", context=context, name=MASTER_NAME)
        transport = WebSocketTransport(websocket, "the master")
        link = Link(new_session_id(), "link")
        try:
            await dial(transport, link, {"host": host, "instance": instance, "version": "1"})
        finally:
            self.transport = transport
        return link

    async def refusal(self, own: Path | None, host: str = "beech", instance: str = "i1") -> tuple[str, str]:
        with pytest.raises(PeerError) as refused:
            await self.link(own, host, instance)
        await self.transport.close()
        return str(refused.value).removeprefix("the master refused this coordinator: "), refused.value.hint


@asynccontextmanager
async def served(home: Path, *, life_s: float = 90 * DAY_S) -> AsyncIterator[Farm]:
    authority = Authority(home / "ca", "alder")
    authority.ensure()
    async with running_master(home) as master:
        joining = Joining(authority, JoinRecords(master.store), life_s=life_s)
        app = linkserver.application(joining, master.hosts, Complaints())
        context = tls.listening(authority.master, authority.certificate)
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            linkserver.serving(app, "127.0.0.1", 0, context) as port,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            yield Farm(master, joining, authority, f"https://127.0.0.1:{port}", session, home)


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[Farm]:
    async with served(tmp_path) as found:
        yield found


def detail(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1].get("detail", "")


# Joining.


async def test_a_token_lets_one_host_in_and_its_certificate_carries_a_link(farm: Farm) -> None:
    own = await farm.joined()
    peer = farm.credentials("beech").check()
    assert peer.host == "beech"
    assert abs(peer.expires_s - time.time() - 90 * DAY_S) < 60
    assert own.stat().st_mode & 0o777 == 0o600
    await farm.link(own)
    await farm.transport.close()


async def test_a_token_is_good_for_one_use(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    secret = await farm.token()
    assert (await farm.join(secret))[0] == 201
    status, answer = await farm.join(secret, "other")
    assert status == 403
    assert answer["detail"].startswith(f"this token was used at {time.strftime('%Y-%m-%d', time.gmtime())} ")
    assert answer["detail"].endswith(" UTC by beech")
    assert answer["hint"] == "`biruda token` on the master makes another"
    assert any("refused 127.0.0.1: this token was used at" in line for line in caplog.messages)


async def test_many_who_bring_one_token_are_one(farm: Farm) -> None:
    secret = await farm.token()
    async with asyncio.TaskGroup() as tasks:
        tries = [tasks.create_task(farm.join(secret, f"host{number}")) for number in range(8)]
    assert sorted(task.result()[0] for task in tries) == [201] + 7 * [403]
    assert len(await farm.joining.hosts()) == 1


async def test_a_token_ends(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    secret = await farm.token(ttl_s=60.0)
    late = time.time() + 61
    monkeypatch.setattr(joining_module.time, "time", lambda: late)
    status, words = detail(await farm.join(secret))
    assert status == 403
    assert words in {f"this token expired at {tls.when(at)}" for at in (before + 60, late - 1)}


async def test_a_token_for_one_host_is_for_no_other(farm: Farm) -> None:
    secret = await farm.token(host="beech")
    status, answer = await farm.join(secret, "oak")
    assert (status, answer["detail"]) == (403, "this token is for the host beech, not for oak")
    assert answer["hint"] == "biruda join --name beech, or make one for it: biruda token --host oak"
    assert (await farm.join(secret, "beech"))[0] == 201  # it was not used up


async def test_a_name_that_another_host_has_is_refused_unless_the_token_says_so(farm: Farm) -> None:
    first = await farm.joined("beech")
    secret = await farm.token()
    status, answer = await farm.join(secret, "beech", instance="i2")
    assert status == 403
    assert answer["detail"].startswith("another host called beech joined at ")
    assert answer["detail"].endswith(" from 127.0.0.1")
    assert "biruda token --host beech" in answer["hint"]
    old = first.read_text()
    assert (await farm.join(await farm.token(host="beech"), "beech", instance="i2"))[0] == 201
    replaced = farm.home / "replaced.pem"
    replaced.write_text(old)
    words, _ = await farm.refusal(replaced)
    assert words.startswith("the certificate of beech was revoked at ")
    assert ": beech joined again at " in words


async def test_the_same_host_may_join_again(farm: Farm) -> None:
    await farm.joined("beech")
    own = await farm.joined("beech")
    await farm.link(own)
    await farm.transport.close()
    assert len(await farm.joining.hosts()) == 1


async def test_wrong_tokens_are_not_looked_at_for_ever(farm: Farm) -> None:
    for _ in range(tries.MOST):
        assert detail(await farm.join(bytes(10))) == (403, "this master has not made this token")
    status, answer = await farm.join(await farm.token())
    assert (status, answer["detail"], answer["hint"]) == (429, "too many wrong tokens came", "try again in 60 s")


async def test_what_is_kept_of_a_token_opens_nothing(farm: Farm) -> None:
    secret = await farm.token()
    for path in farm.home.glob("master.db*"):
        content = path.read_bytes()
        assert secret not in content
        assert secret.hex().encode() not in content


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, 8 * DAY_S])
async def test_a_token_lives_neither_never_nor_for_ever(farm: Farm, ttl_s: float) -> None:
    with pytest.raises(UserError, match=r"lives 1 s to 7 days"):
        await farm.token(ttl_s=ttl_s)
    with pytest.raises(UserError, match="is no host name"):
        await farm.token(host="a b")


async def test_there_are_so_many_tokens_and_no_more(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining_module, "MOST_TOKENS", 3)
    for _ in range(3):
        await farm.token()
    with pytest.raises(UserError, match="3 tokens that nobody has used"):
        await farm.token()


async def test_a_store_that_is_held_is_a_sentence(farm: Farm) -> None:
    holder = farm.master.store.connect()
    holder.execute("BEGIN IMMEDIATE")
    farm.joining._records._connection.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(UserError, match="nothing can be recorded at the moment: database is locked"):
        await farm.token()
    holder.execute("ROLLBACK")
    await farm.token()


# The link.


async def test_no_certificate(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    words, hint = await farm.refusal(None)
    assert words == "it shows no certificate"
    assert hint == "`biruda token` on the master makes a token, `biruda join` takes it here"
    assert "refused 127.0.0.1: it shows no certificate" in caplog.messages
    assert detail(await farm.ask("GET", "/api/v1/certificate")) == (403, "it shows no certificate")


async def test_a_certificate_of_another_farm(farm: Farm, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path / "other") as other:
        strange = await other.joined("beech")
    context = tls.dialling_master(farm.authority.certificate, strange)
    with pytest.raises(ConnectionError) as refused:
        await open_websocket(farm.session, f"{farm.url}/api/v1/link", context=context, name=MASTER_NAME)
    assert str(refused.value) == "it does not trust the certificate it was shown: it belongs to another farm"
    assert any("its certificate is not signed by this farm's authority" in line for line in caplog.messages)
    context = tls.dialling_master(other.authority.certificate, strange)
    with pytest.raises(ConnectionError) as refused:
        await open_websocket(farm.session, f"{farm.url}/api/v1/link", context=context, name=MASTER_NAME)
    assert str(refused.value).startswith("its certificate is not signed by this farm's authority")


async def test_a_self_signed_certificate(farm: Farm, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, text = certificates.new_authority("beech")
    own = tmp_path / "self.pem"
    own.write_text(key + text)
    context = tls.dialling_master(farm.authority.certificate, own)
    with pytest.raises(ConnectionError):
        await open_websocket(farm.session, f"{farm.url}/api/v1/link", context=context, name=MASTER_NAME)
    assert any("refused 127.0.0.1: its certificate " in line for line in caplog.messages)


async def test_an_expired_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path, life_s=100.0) as farm:
        own = await farm.joined()
        ends_s = farm.credentials("beech").check().expires_s
        monkeypatch.setattr(joining_module.time, "time", lambda: ends_s + 5)
        words, _ = await farm.refusal(own)
        assert words == f"the certificate of beech expired at {tls.when(ends_s)}, and it is {tls.when(ends_s + 5)} here"
        status, answer = await farm.ask("POST", "/api/v1/certificate", {"request": "x"}, own)
        assert (status, answer["detail"]) == (403, words)
        monkeypatch.setattr(
            joining_module.time, "time", lambda: ends_s - 3e8
        )  # a clock that jumped back shuts nobody out
        await farm.link(own)
        await farm.transport.close()


async def test_a_revoked_host_is_cut_off_and_refused(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own = await farm.joined()
    await farm.link(own)
    assert await farm.joining.revoke("beech", "stolen\n(root)") == 1
    async with asyncio.timeout(5):
        assert await farm.transport.receive() == b""
    words, hint = await farm.refusal(own)
    assert words.startswith("the certificate of beech was revoked at ")
    assert words.endswith(": stolen(root)")
    assert hint == tls.JOIN_AGAIN
    assert (await farm.ask("POST", "/api/v1/certificate", {"request": "x"}, own))[0] == 403
    assert "host=beech revoked: stolen(root)" in caplog.messages
    assert await farm.joining.revoke("beech", "again") == 0
    with pytest.raises(NotFound, match="no host called 'oak' has joined"):
        await farm.joining.revoke("oak", "")
    await farm.link(await farm.joined())  # it may join again
    await farm.transport.close()


async def test_a_certificate_that_the_store_does_not_know(farm: Farm) -> None:
    key = certificates.new_key()
    request = certificates.new_request(key, "beech")
    text, _ = farm.authority.sign(request, "beech", issued_s=time.time(), life_s=60)
    own = farm.home / "unknown.pem"
    own.write_text(key + text)
    assert (await farm.refusal(own))[0] == "this master has no record of the certificate of beech"


async def test_a_masters_certificate_is_no_hosts(farm: Farm) -> None:
    assert (await farm.refusal(farm.authority.master))[0] == "its certificate is a master's"


async def test_another_name_than_the_certificates(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    words, hint = await farm.refusal(await farm.joined("beech"), host="oak")
    assert words == "it says that it is oak, and its certificate is for beech"
    assert hint == "[coordinator] host = 'beech', or join it as oak"
    async with asyncio.timeout(5):
        while f"127.0.0.1: {words}" not in caplog.messages:
            await asyncio.sleep(0.01)


async def test_a_second_coordinator_of_one_name(farm: Farm) -> None:
    own = await farm.joined()
    await farm.link(own)
    first = farm.transport
    words, _ = await farm.refusal(own, instance="i2")
    assert words == "another coordinator that is called beech is connected"
    await first.close()


# Renewal.


async def test_a_certificate_is_renewed_over_mutual_tls(farm: Farm) -> None:
    own = await farm.joined()
    old = farm.credentials("beech").check()
    status, life = await farm.ask("GET", "/api/v1/certificate", None, own)
    assert status == 200
    assert life["life_s"] == 90 * DAY_S
    assert 0 < life["life_s"] - life["left_s"] < 60
    key = certificates.new_key()
    status, answer = await farm.ask(
        "POST", "/api/v1/certificate", {"request": certificates.new_request(key, "oak")}, own
    )
    assert status == 201
    farm.credentials("beech").renew(key, answer["certificate"], "beech")
    new = farm.credentials("beech").check()
    assert new.serial != old.serial
    assert new.host == "beech"
    await farm.link(own)
    await farm.transport.close()


async def test_credentials_take_nothing_that_does_not_fit(farm: Farm) -> None:
    own = await farm.joined("beech")
    before, oak = own.read_bytes(), farm.credentials("oak")
    await farm.joined("oak")
    key, certificate = oak.own.read_text().split("-----END PRIVATE KEY-----\n")
    key += "-----END PRIVATE KEY-----\n"
    with pytest.raises(PeerError, match="gave a certificate for oak, not for beech"):
        farm.credentials("beech").renew(key, certificate, "beech")
    with pytest.raises(PeerError, match="key and certificate are not of one pair"):
        farm.credentials("beech").renew(certificates.new_key(), certificate, "beech")
    with pytest.raises(PeerError, match="no certificate"):
        farm.credentials("beech").renew(key, "ß", "beech")
    assert own.read_bytes() == before


# Hostile.

TEXTS = st.text(max_size=200) | st.sampled_from(["", "-----BEGIN CERTIFICATE REQUEST-----", "\0", "a" * 10_000])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FORMS = st.fixed_dictionaries({}, optional={"secret": ANY, "host": ANY, "instance": ANY, "request": ANY, "more": ANY})


BODIES = st.binary(max_size=300) | (FORMS | ANY).map(lambda value: json.dumps(value).encode())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(BODIES, min_size=1, max_size=10))
def test_whatever_is_sent_is_answered_by_a_problem(
    bodies: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def run() -> None:
        async with served(tmp_path_factory.mktemp("farm")) as farm:
            own = await farm.joined()
            for body in bodies:
                for path in ("/api/v1/join", "/api/v1/certificate"):
                    status, answer = await farm.ask("POST", path, body, own)
                    assert 400 <= status < 500, answer
                    assert "PRIVATE" not in json.dumps(answer)

    asyncio.run(run())


async def test_a_huge_body_is_refused(farm: Farm) -> None:
    assert (await farm.ask("POST", "/api/v1/join", b"x" * (linkserver.MAX_BODY_BYTES + 1)))[0] == 413
    secret = await farm.token()
    wanted = {"secret": secret.hex(), "host": "beech", "instance": "i1", "request": "A" * 20_000}
    assert detail(await farm.ask("POST", "/api/v1/join", wanted)) == (
        400,
        "the certificate request is longer than 8192 characters",
    )
    assert (await farm.join(secret))[0] == 201  # a bad request costs no token


async def test_nothing_else_is_served_there(farm: Farm) -> None:
    own = await farm.joined()
    for path in ("/api/v1/status", "/api/v1/jobs", "/", "/api/v1/tokens", "/metrics"):
        assert (await farm.ask("GET", path, None, own))[0] == 404
    assert (await farm.ask("DELETE", "/api/v1/join"))[0] == 405


async def test_the_first_answer_is_the_authority_and_nothing_more(farm: Farm) -> None:
    async with farm.session.get(f"{farm.url}/api/v1/join", ssl=tls.trusting_nobody()) as answer:
        assert await answer.json() == {"authority": farm.authority.text()}
    assert certificates.pin_of(farm.authority.text()) == farm.authority.pin()


async def test_old_tls_is_refused(farm: Farm) -> None:
    old = tls.trusting_nobody()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(aiohttp.ClientError):
        await farm.session.get(f"{farm.url}/api/v1/join", ssl=old)


async def test_no_key_is_ever_logged(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = await farm.token()
    await farm.join(secret)
    await farm.join(secret)
    await farm.refusal(None)
    told = "\n".join(caplog.messages)
    assert secret.hex() not in told
    assert "PRIVATE" not in told
