"""What biruda.conf may say, what is said about it when it is wrong, and that the docs and the example agree."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biruda.config import (
    Address,
    Bind,
    Config,
    Environment,
    Network,
    expand,
    find_config,
    home_directory,
    in_environment,
    load,
    parse,
    parse_address,
    proxies,
    recipe_of,
)
from biruda.config.docs import with_tables
from biruda.config.keys import keys_of
from biruda.config.lines import line_numbers
from biruda.config.schema import LISTS, SECTIONS, StepTable
from biruda.errors import ConfigError
from biruda.model import Kind, Limits, Recipe, Step

CHECKOUT = Path(__file__).parents[1]
EXAMPLE = CHECKOUT / "biruda.conf.example"
STEP_TABLE_IN_EXAMPLE = "# A step written as a table, with all its keys:\n"


def problems_of(text: str) -> list[str]:
    """What is said about a text, one string for each problem; empty when nothing is wrong."""
    try:
        parse(text)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def environment(text: str) -> Environment:
    (result,) = parse(f'[[environment]]\nname = "e"\n{text}').environments
    return result


def worker_problems(text: str) -> list[str]:
    return problems_of(f'[[worker]]\nname = "w"\nenvironment = "host"\n{text}')


# --- values


def test_without_a_file_there_is_one_environment_this_host() -> None:
    config = load(None)
    assert config == Config(path=None)
    assert [(each.name, each.kind, each.network) for each in config.environments] == [
        ("host", Kind.PROCESS, Network.HOST)
    ]
    assert config.master.listen is None
    assert config.coordinator.outbox_bytes == 8 * 1024**3


def test_sections_become_typed_values(tmp_path: Path) -> None:
    path = tmp_path / "biruda.conf"
    path.write_text(
        """
        [master]
        listen = "[::1]:7878"
        spool = "finished"
        lease_s = "1 h 30 min"
        [coordinator]
        master = "http://farm.example:7878/"
        source_cache_bytes = "1.5 GiB"
        [[environment]]
        name = "deb12"
        kind = "chroot"
        root = "roots/deb12"
        binds = ["/srv/cache:/cache", "/srv/src:/src//:ro"]
        env = { CC = "gcc" }
        [[worker]]
        name = "hello"
        environment = "deb12"
        steps = ["make\\nmake check", ["./hello", "a b"]]
        """
    )
    config = load(path)
    assert config.path == path
    assert config.master.listen == Address("::1", 7878)
    assert config.master.spool == str(tmp_path / "finished")
    assert config.master.lease_s == 5400.0
    assert config.coordinator.master == "http://farm.example:7878"
    assert config.coordinator.source_cache_bytes == 3 * 512 * 1024**2
    (deb12,) = config.environments
    assert deb12.root == str(tmp_path / "roots/deb12")
    assert (deb12.network, deb12.pids) == (Network.NONE, 4096)
    assert deb12.binds == (Bind("/srv/cache", "/cache"), Bind("/srv/src", "/src", read_only=True))
    assert recipe_of(config.workers[0]).steps == (
        Step(name="step 1", argv=("/bin/sh", "-e"), script="make\nmake check"),
        Step(name="step 2", argv=("./hello", "a b")),
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1048576", 1024**2),
        ('"1 MiB"', 1024**2),
        ('" 1.5 gib "', 3 * 512 * 1024**2),
        ('"2MB"', 2_000_000),
        ('"0 B"', 0),
        ("0", 0),
    ],
)
def test_sizes(written: str, expected: int) -> None:
    assert environment(f"memory_bytes = {written}").memory_bytes == expected


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1", 1),
        ("0.25", 0.25),
        ('"250 ms"', 0.25),
        ('"10 min"', 600),
        ('"1h 30m"'.replace("m", "min"), 5400),
        ('"2 d"', 172800),
    ],
)
def test_durations(written: str, seconds: float) -> None:
    assert environment(f"grace_s = {written}").grace_s == seconds


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7878", Address("127.0.0.1", 7878)),
        (":0", Address("", 0)),
        ("[::1]:80", Address("::1", 80)),
        ("farm.example:65535", Address("farm.example", 65535)),
        ("7878", None),
        ("host:", None),
        ("host:65536", None),
        ("host:-1", None),
        ("::1:80", None),
        ("[zz]:80", None),
        ("a b:80", None),
        ("host:٣", None),
    ],
)
def test_addresses(text: str, address: Address | None) -> None:
    assert parse_address(text) == address
    if address:
        assert str(address) == text


def test_steps_may_be_text_lists_and_tables() -> None:
    (worker,) = parse(
        """
        [[worker]]
        name = "w"
        environment = ["host"]
        limit_s = "1 h"
        pids = 50
        [[worker.steps]]
        argv = ["python3"]
        script = "print(1)"
        env = { A = "1" }
        cwd = "sub"
        limit_s = 5
        always = true
        [[worker.steps]]
        name = "second"
        script = "true"
        """
    ).workers
    assert worker.steps == (
        Step(name="step 1", argv=("python3",), script="print(1)", env={"A": "1"}, cwd="sub", limit_s=5.0, always=True),
        Step(name="second", argv=("/bin/sh", "-e"), script="true"),
    )
    assert recipe_of(worker).limits == Limits(total_s=3600.0, pids=50)


def test_an_environment_bounds_a_recipe_and_lends_it_its_variables() -> None:
    place = Environment(name="e", env={"A": "1", "B": "1"}, memory_bytes=100, pids=10, grace_s=3.0)
    recipe = Recipe(steps=(), env={"B": "2"}, limits=Limits(memory_bytes=200, pids=5))
    inside = in_environment(recipe, place)
    assert inside.env == {"A": "1", "B": "2"}
    assert inside.limits == Limits(grace_s=3.0, memory_bytes=100, pids=5, disk_bytes=4 * 1024**3)


# --- words that are replaced

VARIABLES = {"arch": "amd64", "platform": "debian12", "host": "alder", "name": "hello", "job": "7"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{arch}-{platform}-{host}-{name}-{job}", "amd64-debian12-alder-hello-7"),
        ("${arch} $arch ${host}", "${arch} $arch ${host}"),
        ("{} {a,b} {Arch} {unknown} { arch }", "{} {a,b} {Arch} {unknown} { arch }"),
        ("{{arch}}", "{amd64}"),
        ("", ""),
    ],
)
def test_only_known_words_are_replaced(text: str, expected: str) -> None:
    recipe = Recipe(
        steps=(Step(name=text, argv=(text,), script=text, env={"{arch}": text}, cwd=text), Step(name="n", argv=("a",))),
        env={"X": text},
        artifacts=(text,),
        reports=(text,),
    )
    assert expand(recipe, VARIABLES) == Recipe(
        steps=(
            Step(name=expected, argv=(expected,), script=expected, env={"{arch}": expected}, cwd=expected),
            Step(name="n", argv=("a",)),
        ),
        env={"X": expected},
        artifacts=(expected,),
        reports=(expected,),
    )


def test_a_word_without_a_value_stays() -> None:
    recipe = Recipe(steps=(Step(name="s", argv=("{job}", "{arch}")),))
    assert expand(recipe, {"arch": "i386"}).steps[0].argv == ("{job}", "i386")


# --- what is wrong


def test_everything_that_is_wrong_is_said_at_once() -> None:
    text = """listen = ":80"
[master]
listn = ":80"
lease_s = true
plain_links = 1
[coordinater]
slots = 1
[[environment]]
name = "deb12"
kind = "chroot"
root = "r"
grace = 1
[[environment]]
name = "deb12"
kind = "boot"
memory_bytes = "4G"
[[environment]]
name = "p"
network = "bridge"
[[worker]]
name = "w"
environment = ["p",
  "deb21"]
steps = ["make", 3,
  { scrip = "x", argv = ["a"] }]
"""
    assert problems_of(text) == [
        "biruda.conf:1: key 'listen' stands outside of every section; it belongs in [master]",
        "biruda.conf:3: [master]: unknown key 'listn'; did you mean 'listen'?",
        '''biruda.conf:4: [master]: lease_s = true: must be seconds, a number or text such as "10 min"''',
        "biruda.conf:5: [master]: plain_links = 1: must be true or false",
        "biruda.conf:6: unknown section 'coordinater'; did you mean [coordinator]?",
        """biruda.conf:12: [[environment]] "deb12": unknown key 'grace'; did you mean 'grace_s'?""",
        'biruda.conf:14: [[environment]] "deb12": there is already an environment of this name',
        'biruda.conf:15: [[environment]] "deb12": kind = "boot": not in this version of biruda; '
        "there are " + ", ".join(Kind),
        'biruda.conf:16: [[environment]] "deb12": memory_bytes = "4G": write "4 GiB"',
        'biruda.conf:19: [[environment]] "p": network = "bridge": a process shares the network of the host: "host"',
        """biruda.conf:23: [[worker]] "w": there is no environment 'deb21'; did you mean 'deb12'?""",
        'biruda.conf:24: [[worker]] "w": item 2 of steps = 3: must be a string, a list of strings or a table',
        """biruda.conf:25: [[worker]] "w": item 3 of steps: unknown key 'scrip'; did you mean 'script'?""",
    ]


ENVIRONMENT = '[[environment]]\nname = "c"\n'
CHROOT = f'{ENVIRONMENT}kind = "chroot"\n'
OUTSIDE = 'must be relative to the work directory, without ".."'
KINDS = "one of " + ", ".join(f'"{kind}"' for kind in Kind)
KIND_HINT = f"""kind = "chrot": must be {KINDS}; did you mean 'chroot'?"""
WORK_HINT = "binds: /build/x is in the work directory, whose contents are removed after each job"
SECONDS = 'must be seconds, a number or text such as "10 min"'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("lease_s = 0", "lease_s = 0: must be 1 or more"),
        ("lease_s = nan", f"lease_s = nan: {SECONDS}"),
        ('lease_s = "10"', f'lease_s = "10": {SECONDS}'),
        ("lease_s = 1e12", "lease_s = 1000000000000.0: must be 315360000 or less"),
        ("infra_retries = 101", "infra_retries = 101: must be 100 or less"),
        ("infra_retries = -1", "infra_retries = -1: must be 0 to 100"),
        ("infra_retries = 2.0", "infra_retries = 2.0: must be a whole number"),
        (f"event_history = 0x{'f' * 5000}", f"event_history = a number far too large: must be {2**62} or less"),
        ('spool = "a\\u0000b"', 'spool = "a\\x00b": must not contain a NUL character'),
        ("spool = 2020-01-01", "spool = 2020-01-01: must be a path"),
        ("slots = 1", "unknown key 'slots'; it belongs in [coordinator]"),
        (
            'dial = ["10.0.0.7:7880", "x"]',
            'item 2 of dial = "x": must be an address such as "127.0.0.1:7878", ":7878" or "[::1]:7878"',
        ),
        ('dial = [":7880"]', 'item 1 of dial = ":7880": must be "HOST:PORT"'),
        ("certificate_s = 0", "certificate_s = 0: must be 1 or more"),
    ],
)
def test_what_is_said_about_the_master(line: str, problem: str) -> None:
    assert problems_of(f"[master]\n{line}") == [f"biruda.conf:2: [master]: {problem}"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('master = "farm:7878"', 'write "https://farm:7878"'),
        ('master = "http://farm"', 'must be "https://HOST:PORT" or "http://HOST:PORT"'),
        ('master = "ftp://farm:1"', 'must be "https://HOST:PORT" or "http://HOST:PORT"'),
        ('listen = ":7880"', 'must be an interface of this host and a port, such as "eth1:7880"'),
        ('listen = "eth1"', 'must be an interface of this host and a port, such as "eth1:7880"'),
        ('listen = "an-interface-too-long:1"', 'must be an interface of this host and a port, such as "eth1:7880"'),
        ('bridge_subnet = "10.87.0.9/24"', 'write "10.87.0.0/24"'),
        ('bridge_subnet = "10.0.0.0/30"', "must be between /8 and /29"),
        ('bridge_subnet = ""', "must be an IPv4 network"),
        ('cgroup = "on"', 'must be "auto", "off" or the absolute path of a control group'),
        ("outbox_bytes = 5", "must be 1 MiB or more"),
        ('host = "a/b"', "must be a host name"),
    ],
)
def test_what_is_said_about_the_coordinator(line: str, problem: str) -> None:
    assert problems_of(f"[coordinator]\n{line}") == [f"biruda.conf:2: [coordinator]: {line}: {problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[master]]", "[master]: write [master], once"),
        ('[environment]\nname = "x"', "[environment]: write [[environment]], once for each environment"),
        ("environment = [1]", "[[environment]]: must be a table"),
        ("[boot]\nx = 1", "[boot]: not in this version of biruda"),
        ("[[project]]", "[project]: not in this version of biruda"),
        ("[[environment]]", "[[environment]]: missing key 'name', a name: letters, digits, . _ -"),
    ],
)
def test_what_is_said_about_sections(text: str, problem: str) -> None:
    assert problems_of(text) == [f"biruda.conf:1: {problem}"]


@pytest.mark.parametrize("name", ["../x", ".cache", "-rf", "a b", "", "é"])
def test_a_name_can_be_a_directory_and_an_argument(name: str) -> None:
    assert problems_of(f'[[environment]]\nname = "{name}"') == [
        f'biruda.conf:2: [[environment]] "{name}": name = "{name}": must be a name: letters, digits, . _ -'
    ]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (CHROOT, 1, "missing key 'root': kind chroot needs the directory of a root tree"),
        (f'{ENVIRONMENT}kind = "x"', 3, f'kind = "x": must be {KINDS}'),
        (f'{ENVIRONMENT}kind = "docker"', 1, "missing key 'image': kind docker needs the name of a container image"),
        (f'{CHROOT}root = "/r"\nimage = "i"', 5, "image is only for kind docker; this is a chroot"),
        (f'{ENVIRONMENT}root = "/x"', 3, "root is only for kind chroot; this is a process"),
        (f'{ENVIRONMENT}arch = "x86_64"', 3, 'arch = "x86_64": write "amd64"'),
        (f'{ENVIRONMENT}env."A=B" = "1"', 3, '"A=B" cannot be the name of an environment variable'),
        (f"{ENVIRONMENT}[environment.env]\nA = 1", 4, "env.A = 1: must be a string"),
        (f'{CHROOT}root = "/r"\nbinds = ["/a:/x", "/b:/x/"]', 5, "binds: two of them have the same path inside"),
        (f'{CHROOT}root = "/r"\nbinds = ["/a:/build/x"]', 5, WORK_HINT),
        (f'{ENVIRONMENT}kind = "chrot"', 3, KIND_HINT),
    ],
)
def test_what_is_said_about_an_environment(text: str, line: int, problem: str) -> None:
    assert problems_of(text) == [f'biruda.conf:{line}: [[environment]] "c": {problem}']


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("steps = []", "steps must not be empty"),
        ('steps = "make"', 'steps = "make": must be a list of steps'),
        ('steps = [""]', 'item 1 of steps = "": names no command'),
        ('steps = [["", "a"]]', "item 1 of steps = a list: names no command"),
        ("steps = [{ name = 'x' }]", "item 1 of steps: needs 'argv' or 'script'"),
        ("steps = [{ argv = [''] }]", "item 1 of steps: argv names no program"),
        ("steps = [{ script = 'x', cwd = '/tmp' }]", f'item 1 of steps: cwd = "/tmp": {OUTSIDE}'),
        ("steps = ['x']\nartifacts = ['../x']", f'item 1 of artifacts = "../x": {OUTSIDE}'),
        ("steps = [['a', 1]]", "item 2 of item 1 of steps = 1: must be a string"),
    ],
)
def test_what_is_said_about_a_worker(text: str, problem: str) -> None:
    (said,) = worker_problems(text)
    assert said.removeprefix("biruda.conf:").partition(': [[worker]] "w": ')[2] == problem


def test_a_worker_must_agree_with_its_environment_and_be_unique() -> None:
    places = "".join(f'[[environment]]\nname="{name}"\narch="amd64"\nplatform="p1"\n' for name in "ab")
    worker = '[[worker]]\nname="w"\nsteps=["x"]\n'
    assert problems_of(f'{places}{worker}environment="a"\narch="i386"') == [
        'biruda.conf:12: [[worker]] "w": arch = "i386", but environment "a" declares "amd64"'
    ]
    assert problems_of(f'{places}{worker}environment=["a", "b"]') == [
        'biruda.conf:12: [[worker]] "w": there is already a worker "w" for amd64 p1 on this host'
    ]
    assert problems_of(f'{places}{worker}environment="a"\n{worker}environment="a"') == [
        'biruda.conf:16: [[worker]] "w": there is already a worker "w" in environment "a"'
    ]


def test_a_worker_of_a_wrong_environment_is_not_wrong_too() -> None:
    text = '[[environment]]\nname="a"\nslots=-1\n[[worker]]\nname="w"\nenvironment="a"\nsteps=["x"]'
    assert [each.partition(": ")[0] for each in problems_of(text)] == ["biruda.conf:3"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[master]\n\nlisten = ", 3),
        ("[master]\nx = 'a", 2),
        ("a = 1\na = 2", 2),
        ("[master\n", 1),
        ("x = [", 1),
        ("\n\n=", 3),
    ],
)
def test_a_syntax_error_has_its_line(text: str, line: int) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(f"biruda.conf:{line}: not valid TOML: ")


def test_deep_nesting_is_a_problem_and_no_traceback() -> None:
    (problem,) = problems_of("x = " + "[" * 100_000)
    assert problem == "biruda.conf: not valid TOML: nested too deeply"
    assert problems_of(f"x{'.x' * 3_000} = 1") == ["biruda.conf:1: unknown section 'x'"]
    assert problems_of("x = " + "9" * 10_000) == ["biruda.conf: not valid TOML: a number has thousands of digits"]


def test_of_very_many_problems_the_first_are_said() -> None:
    said = problems_of("\n".join(f"k{number} = 1" for number in range(1000)))
    assert len(said) == 101
    assert said[-1] == "... and 900 problems more"


def test_lines_are_found_in_every_way_to_write_toml() -> None:
    text = '''# a
"quoted key" = """
x = 1
""" # three
a . b = { c = [ 1, # one
  [2],
  { d = 'x]' } ] }
[t]
k = "a \\" # b"
[[l]]
[[l]]
m = \'\'\'
[no]
\'\'\'
n = 1
  [l.sub]
  o = 2020-01-01T00:00:00Z
'''
    assert tomllib.loads(text)
    lines = line_numbers(text)
    assert {path: lines[path] for path in lines if path[0] != "a"} == {
        ("quoted key",): 2,
        ("t",): 8,
        ("t", "k"): 9,
        ("l",): 10,
        ("l", 0): 10,
        ("l", 1): 11,
        ("l", 1, "m"): 12,
        ("l", 1, "n"): 15,
        ("l", 1, "sub"): 16,
        ("l", 1, "sub", "o"): 17,
    }
    assert lines["a", "b", "c", 1] == 6
    assert lines["a", "b", "c", 2, "d"] == 7


# --- files


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path)
        return str(caught.value).replace(str(tmp_path), "")

    bad = tmp_path / "latin1.conf"
    bad.write_bytes(b"[master]\nspool = '\xe4'\n")
    assert said(bad) == "/latin1.conf:2: not UTF-8 text"
    assert said(tmp_path) == ": cannot be read: is a directory"
    assert said(tmp_path / "none") == "/none: cannot be read: no such file or directory"
    os.mkfifo(tmp_path / "fifo")
    assert said(tmp_path / "fifo") == "/fifo: not a regular file"
    (tmp_path / "big").write_bytes(b"#" * (4 * 1024**2 + 1))
    assert said(tmp_path / "big") == "/big: larger than 4 MiB: this is no configuration file of biruda"
    assert "not a file name" in said(tmp_path / "a\0b")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in said(tmp_path / "loop")


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "biruda.conf"
    path.write_bytes(b"\xef\xbb\xbf[master]\r\ninfra_retries = 7\r\n")
    assert load(path).master.infra_retries == 7


def built(home: Path, name: str, text: str) -> Path:
    directory = home / "environments" / name
    directory.mkdir(parents=True)
    (directory / "environment.toml").write_text(text)
    return directory


def test_built_environments_are_added(tmp_path: Path) -> None:
    directory = built(tmp_path, "deb12", 'kind = "chroot"\nroot = "root"\n')
    built(tmp_path, ".building-1", "what = ever")
    (tmp_path / "environments" / "empty").mkdir()
    config = load(None, home=tmp_path)
    assert [each.name for each in config.environments] == ["host", "deb12"]
    assert config.environments[1].root == str(directory / "root")
    assert config.warnings == ()


def test_an_environment_of_the_file_wins_over_a_built_one_and_says_so(tmp_path: Path) -> None:
    built(tmp_path, "deb12", 'kind = "chroot"\nroot = "root"\n')
    path = tmp_path / "biruda.conf"
    path.write_text('[[environment]]\nname = "deb12"\n')
    config = load(path, home=tmp_path)
    assert [(each.name, each.kind) for each in config.environments] == [("deb12", Kind.PROCESS)]
    (warning,) = config.warnings
    assert 'biruda.conf has an environment "deb12" of its own' in warning


def test_a_built_environment_may_be_called_host(tmp_path: Path) -> None:
    built(tmp_path, "host", "slots = 3")
    assert [(each.name, each.slots) for each in load(None, home=tmp_path).environments] == [("host", 3)]


def test_problems_of_all_files_are_said_together(tmp_path: Path) -> None:
    path = tmp_path / "biruda.conf"
    path.write_text("[master]\nplain_links = 0\n")
    first = built(tmp_path, "a", 'kind = "chroot"\nname = "b"\n') / "environment.toml"
    second = built(tmp_path, "b", "slots = \n") / "environment.toml"
    with pytest.raises(ConfigError) as caught:
        load(path, home=tmp_path)
    assert str(caught.value).splitlines() == [
        f"{path}:2: [master]: plain_links = 0: must be true or false",
        f"{first}: environment \"a\": missing key 'root': kind chroot needs the directory of a root tree",
        f'{first}:2: environment "a": name = "b": the directory is called "a"; leave the key out',
        f"{second}:1: not valid TOML: invalid value (column 9)",
    ]


# --- where


@pytest.mark.parametrize(
    ("cli_home", "environ", "uid", "expected"),
    [
        ("/h", {"BIRUDA_HOME": "/b"}, 0, "/h"),
        (None, {"BIRUDA_HOME": "/b", "XDG_STATE_HOME": "/s"}, 1000, "/b"),
        (None, {"BIRUDA_HOME": "", "HOME": "/home/u"}, 0, "/var/lib/biruda"),
        (None, {"XDG_STATE_HOME": "/s", "HOME": "/home/u"}, 1000, "/s/biruda"),
        (None, {"XDG_STATE_HOME": "not/absolute", "HOME": "/home/u"}, 1000, "/home/u/.local/state/biruda"),
    ],
)
def test_home_directory(cli_home: str | None, environ: dict[str, str], uid: int, expected: str) -> None:
    assert home_directory(cli_home, environ, uid) == Path(expected)


def test_home_directory_is_absolute_and_its_absence_is_explained() -> None:
    assert home_directory("here", {}, 0) == Path.cwd() / "here"
    with pytest.raises(ConfigError, match="no home directory"):
        home_directory(None, {}, 4_000_000_000)


def test_find_config(tmp_path: Path) -> None:
    home, system = tmp_path / "home", tmp_path / "etc" / "biruda.conf"
    home.mkdir()
    system.parent.mkdir()
    assert find_config(home, None, system=system) is None
    system.touch()
    assert find_config(home, None, system=system) == system
    (home / "biruda.conf").touch()
    assert find_config(home, None, system=system) == home / "biruda.conf"
    assert find_config(home, str(system), system=system) == system
    with pytest.raises(ConfigError, match="there is no such file"):
        find_config(home, tmp_path / "none", system=system)


def test_proxies() -> None:
    assert proxies({"HTTP_PROXY": "http://p:1", "no_proxy": "localhost", "HOME": "/"}) == {
        "http_proxy": "http://p:1",
        "no_proxy": "localhost",
    }


# --- docs and example


def all_sections() -> dict[str, type]:
    return {**SECTIONS, **LISTS, "worker.steps": StepTable}


def test_docs_hold_the_keys_of_the_code() -> None:
    page = (CHECKOUT / "docs" / "config.md").read_text()
    assert with_tables(page) == page, "write it anew: page.write_text(biruda.config.docs.with_tables(page.read_text()))"


def test_the_example_in_the_docs_is_valid() -> None:
    page = (CHECKOUT / "docs" / "config.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    places = "".join(f'[[environment]]\nname = "{name}"\n' for name in ("deb12", "deb12-i386"))
    assert len(parse(places + example).workers[0].steps) == 4


def test_the_example_file_is_valid_as_it_stands() -> None:
    config = load(EXAMPLE)
    assert config == Config(path=EXAMPLE, workers=config.workers)
    assert [worker.name for worker in config.workers] == ["hello"]


def test_the_example_file_shows_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text()
    main, _, step = re.sub(r"(?m)^#(?=[a-z_]+ = )", "", text).partition(STEP_TABLE_IN_EXAMPLE)
    document = tomllib.loads(main)
    shown: dict[str, Any] = {
        **{name: document[name] for name in SECTIONS},
        **{name: document[name][0] for name in LISTS},
        "worker.steps": tomllib.loads(step),
    }
    for name, section in all_sections().items():
        assert sorted(shown[name]) == sorted(keys_of(section))
        for key in keys_of(section).values():
            if not key.required:
                assert shown[name][key.name] == tomllib.loads(f"x = {key.default_text}")["x"], f"{name}: {key.name}"
    parse(main)


def test_every_default_is_valid_when_written_down() -> None:
    for name, section in SECTIONS.items():
        lines = [f"{key.name} = {key.default_text}" for key in keys_of(section).values()]
        assert parse("\n".join([f"[{name}]", *lines])) == Config(path=Path("biruda.conf"))


# --- nothing that a file holds gives a traceback

WORDS = sorted(
    {name for section in all_sections().values() for name in keys_of(section)}
    | {
        *SECTIONS,
        *LISTS,
        "boot",
        "=",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        ".",
        '"',
        "'",
        '"""',
        "'''",
        "\\",
        "#",
        "\n",
    }
    | {'"x"', '"4 GiB"', '"1 h"', "1", "-1", "nan", "1e400", "0xff", "true", "2020-01-01", "é", "\x00", "\r\n", " "}
)
SCALARS = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.sampled_from(
        ["chroot", "/a:/b:ro", "x", "host", "10 min", "4 GiB", "http://a:1", "[::1]:1", "10.0.0.0/24", "auto"]
    ),
)
KEYS = st.one_of(st.sampled_from([word for word in WORDS if word.isidentifier()]), st.text(max_size=4))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def toml(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" for char in value if not 0xD800 <= ord(char) < 0xE000) + '"'
    if isinstance(value, list):
        return "[" + ",\n".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool | float) else str(value)


def check_is_config_or_problems(text: str) -> None:
    for line in problems_of(text):
        assert re.match(r"biruda\.conf(:[0-9]+)?: \S", line), line


@given(st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_configuration_or_a_list_of_problems(text: str) -> None:
    check_is_config_or_problems(text)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_document_is_a_configuration_or_a_list_of_problems(document: dict[str, Any]) -> None:
    check_is_config_or_problems("\n".join(f"{toml(key)} = {toml(value)}" for key, value in document.items()))


@pytest.mark.parametrize("name", [*SECTIONS, *LISTS, "worker.steps"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_value_of_any_key_is_taken_or_refused(name: str, data: st.DataObject) -> None:
    keys = keys_of(all_sections()[name])
    table = data.draw(st.dictionaries(st.sampled_from(sorted(keys)), VALUES, max_size=6))
    lines = [f"{key} = {toml(value)}" for key, value in table.items()]
    if name == "worker.steps":
        lines = ['[[worker]]\nname="w"\nenvironment="host"', "[[worker.steps]]", *lines]
    else:
        lines = [f"[[{name}]]" if name in LISTS else f"[{name}]", *lines]
    check_is_config_or_problems("\n".join(lines))


@given(st.text(max_size=60))
@settings(deadline=None)
def test_the_line_scanner_ends_on_any_text(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in line_numbers(text).values())
