"""How scripts get through any login shell, and what ssh's own words mean."""

import shutil
import subprocess

import pytest

from biruda.coordinator.spawners.ssh_client import Said, argv_of, command_of, shell_word
from biruda.coordinator.spawners.ssh_look import facts_of, kernel_arch
from biruda.coordinator.spawners.ssh_target import SshRefused, Target, parse_target, refusal

TARGET = Target(host="beech", user="ci", port=2222, identity="/k", known_hosts="/h")


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish", "csh", "tcsh", "busybox"])
def test_a_script_comes_through_every_login_shell(shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} here")
    script = (
        f"word={shell_word('a b')}\n"
        + r"""
printf '%s|' "$word" 'it is \n' "$(printf %s '!x')" '{a,b}' '$HOME'
cat
"""
    )
    argv = [path, *(["sh"] if shell == "busybox" else []), "-c", command_of(script.encode())]
    done = subprocess.run(argv, input=script.encode() + b"the rest\0of it", capture_output=True, check=True)
    assert done.stdout == b"a b|it is \\n|!x|{a,b}|$HOME|the rest\0of it"


@pytest.mark.parametrize("text", ["a", "it's", "'", "a\nb", '$(x) `y` \\ "', ""])
def test_any_text_is_one_word(text: str) -> None:
    done = subprocess.run(["sh", "-c", f"printf %s {shell_word(text)}"], capture_output=True, text=True, check=True)
    assert done.stdout == text


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("beech", "", "beech", 0),
        ("ci@beech.example:2222", "ci", "beech.example", 2222),
        ("root@10.0.0.7", "root", "10.0.0.7", 0),
        ("[fe80::1]:22", "", "fe80::1", 22),
        ("dom\\me@beech", "dom\\me", "beech", 0),
    ],
)
def test_hosts_that_are_named(text: str, user: str, host: str, port: int) -> None:
    assert parse_target(text) == Target(user=user, host=host, port=port)


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=x", "a b", "a@", "a:b", "a:99999", "x@-y", "a;b", "a\n", "[x]", "[::1"]
)
def test_what_is_no_host(text: str) -> None:
    assert parse_target(text) is None


def test_ssh_asks_nobody_and_an_option_of_the_user_counts_first() -> None:
    argv = argv_of(Target(host="beech", options=("BatchMode=no", "ProxyJump=gate")), "true")
    assert argv[-3:] == ["--", "beech", "true"]
    assert argv.index("BatchMode=no") < argv.index("BatchMode=yes")
    assert "StrictHostKeyChecking=yes" in argv
    quoted = argv_of(Target(host="beech", known_hosts="/with space/100%"), "true")
    assert 'UserKnownHostsFile="/with space/100%%"' in quoted


KEYS = "@@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n"


@pytest.mark.parametrize(
    ("words", "status", "sentence", "hint"),
    [
        ("ssh: Could not resolve hostname beech: Name or service not known", 255, "name of the host is not known", ""),
        ("ssh: connect to host beech port 2222: Connection refused", 255, "no ssh server listens there", "port"),
        ("ssh: connect to host beech port 2222: Connection timed out", 255, "no answer in time", "firewall"),
        ("ssh: connect to host beech port 2222: No route to host", 255, "no way to it from here", ""),
        (
            "No ED25519 host key is known for [beech]:2222 and you have requested strict checking.\n"
            "Host key verification failed.",
            255,
            "its host key is not in /h, so it may be any host",
            "ssh-keyscan -p 2222 beech >> /h",
        ),
        (KEYS, 255, "its host key is another one than in /h", "ssh-keygen -f /h -R '[beech]:2222' && ssh-keyscan"),
        (
            "Permissions 0644 for '/k' are too open.\nUNPROTECTED PRIVATE KEY FILE!\nPermission denied (publickey).",
            255,
            "does not take a private key that others may read",
            "chmod 600",
        ),
        ('Load key "/k": invalid format\nci@beech: Permission denied (publickey).', 255, "is no private key", ""),
        ("kex_exchange_identification: Connection closed by remote host", 255, "before anybody logged in", ""),
        ("command-line: line 0: Bad configuration option: foo", 255, "does not know one of the options", ""),
        ("bash: line 1: /bin/sh: No such file or directory", 127, "it has no /bin/sh that runs", ""),
        ("This account is currently not available.", 1, "runs no commands (status 1): This account", ""),
        ("something new", 255, "ssh does not get in: something new", ""),
        ("", 255, "ssh does not get in: it says no reason", ""),
    ],
)
def test_what_ssh_says_becomes_a_sentence(words: str, status: int, sentence: str, hint: str) -> None:
    error = refusal(TARGET, words, status)
    assert str(error).startswith("ci@beech:2222: ")
    assert sentence in str(error)
    assert hint in error.hint
    assert "\n" not in str(error) + error.hint
    assert isinstance(error, SshRefused) == (status == 255)


def test_a_missing_key_is_named() -> None:
    error = refusal(TARGET, "ci@beech: Permission denied (publickey,password).", 255)
    assert str(error) == "ci@beech:2222: there is no key file /k"
    error = refusal(Target(host="beech"), "root@beech: Permission denied (publickey,password).", 255)
    assert str(error) == "beech: it does not take any key that this user has (it takes publickey, password)"
    assert error.hint.startswith("ssh-copy-id beech ")


def test_what_a_host_is_by_its_own_words() -> None:
    with open(shutil.which("sh") or "/bin/sh", "rb") as file:
        program = file.read(4096).hex(" ")
    said = Said([("machine", "x86_64"), ("program", program), ("file:/etc/os-release", b"ID=x\nVERSION_ID=3\n".hex())])
    facts = facts_of(said)
    assert (facts.platform, kernel_arch(said)) == ("x3", "amd64")
    bare = facts_of(Said([("machine", "aarch64"), ("program", "no hex at all"), ("system", "Linux")]))
    assert (bare.arch, bare.platform) == ("arm64", "unknown")
    assert bare.evidence[0] == "uname -m: aarch64 -> arm64"
    assert facts_of(Said([])).arch == "unknown"
    assert facts_of(Said([("machine", "\x1b[2J" * 100), ("program", "7f454c46" + "ff" * 60)])).arch == "unknown"
