"""Files to a Config: every problem of every file at once, or a complete and consistent value."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from biruda.config.keys import build, keys_of, read_values
from biruda.config.lines import line_numbers
from biruda.config.problems import Problems, Spot, did_you_mean, named, raise_all, shown, suggestion
from biruda.config.schema import LATER, LISTS, SECTIONS, Config, Coordinator, Environment, Master, Worker, header
from biruda.config.values import Network
from biruda.errors import ConfigError
from biruda.model import Kind

T = TypeVar("T")

_LARGEST_FILE: Final = 4 * 1024**2
_WORK: Final = "/build"
_CHROOT_ONLY: Final = ("root", "binds", "hostname")
_QEMU_ONLY: Final = ("kernel", "modules", "machine")
_QEMU_NETWORKS: Final = (None, Network.NONE, Network.USER, Network.BRIDGE)
_SSH_ONLY: Final = ("host", "identity", "known_hosts", "ssh_options", "cache")


def load(path: Path | None, *, home: Path | None = None, extra: Sequence[Path] = ()) -> Config:
    """The configuration of a file, with the environments built in a home and those of extra environment files.

    Without a file every key has its default. Without an [[environment]] there is one: "host", of kind process.
    ConfigError has one line for each problem of all the files.
    """
    text = "" if path is None else read_text(path)
    built = [(each, read_text(each)) for each in (*extra, *(environment_files(home) if home else ()))]
    return _config(path, text, built)


def parse(text: str, path: Path = Path("biruda.conf")) -> Config:
    """The configuration of a text; path is for messages and for relative paths in it."""
    return _config(path, text, ())


def read_text(path: Path) -> str:
    """The text of a configuration file; ConfigError where it is no readable UTF-8 text of at most 4 MiB."""
    try:
        # a FIFO would block for ever: open without waiting, then look what it is
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: not a regular file")
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or 'I/O error').lower()}") from None
    except ValueError:
        raise ConfigError(f"{shown(str(path))}: not a file name") from None
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"{path}: larger than 4 MiB: this is no configuration file of biruda")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text", hint="save the file in UTF-8") from None


def environment_files(home: Path) -> Iterator[Path]:
    """The environment.toml of every environment built in a home; what is half built has a name with a leading dot."""
    try:
        names = sorted(entry.name for entry in os.scandir(home / "environments") if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{home / 'environments'}: cannot be read: {(error.strerror or '').lower()}") from None
    for name in names:
        path = home / "environments" / name / "environment.toml"
        if os.path.lexists(path):
            yield path


@dataclass(slots=True)
class _Environments:
    """The environments so far; also the names of those that are wrong, lest every worker of theirs be wrong too."""

    good: dict[str, Environment] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)


def _config(path: Path | None, text: str, built: Sequence[tuple[Path, str]]) -> Config:
    main = _problems(path or Path("biruda.conf"), text)
    document = _document(text, main)
    _check_sections(document, main)
    environments = _Environments()
    for table, spot in _tables(document, "environment", main):
        _add_environment(table, spot, environments)
    files = [main]
    for each, content in built:
        files.append(_problems(each, content))
        _add_built(each, content, files[-1], environments)
    if not document.get("environment") and "host" not in environments.names:
        environments.good = {"host": Environment(name="host"), **environments.good}
        environments.names.add("host")
    master = _single(Master, "master", document, main)
    coordinator = _single(Coordinator, "coordinator", document, main)
    workers = _workers(document, main, environments)
    raise_all(files)
    return Config(
        master=master or Master(),
        coordinator=coordinator or Coordinator(),
        environments=tuple(environments.good.values()),
        workers=workers,
        path=path,
        warnings=tuple(environments.warnings),
    )


def _problems(path: Path, text: str) -> Problems:
    return Problems(str(path), path.absolute().parent, line_numbers(text))


def _document(text: str, problems: Problems) -> dict[str, Any]:
    import tomllib  # 14 ms, which a command that reads no file need not pay

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _report_syntax(str(error), text, problems)
    except RecursionError:
        problems.add_line(0, "not valid TOML: nested too deeply")
    except ValueError:
        problems.add_line(0, "not valid TOML: a number has thousands of digits")
    return {}


def _report_syntax(message: str, text: str, problems: Problems) -> None:
    what, _, where = message.rpartition(" (at ")
    words = where.rstrip(")").replace(",", "").split()
    line = int(words[1]) if words[:1] == ["line"] else text.rstrip().count("\n") + 1
    column = f" (column {words[3]})" if len(words) == 4 else " (the text ends here)"
    problems.add_line(line, f"not valid TOML: {(what or message)[:1].lower()}{(what or message)[1:]}{column}")


def _check_sections(document: Mapping[str, Any], problems: Problems) -> None:
    known = (*SECTIONS, *LISTS)
    for name, value in document.items():
        if name in known:
            continue
        if name in LATER:
            problems.add((name,), f"[{name}]: not in this version of biruda")
        elif isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            meant = suggestion(name, known)
            problems.add(
                (name,), f"unknown section {named(name)}" + (f"; did you mean {header(meant)}?" if meant else "")
            )
        else:
            place = next((header(each) for each in known if name in keys_of({**SECTIONS, **LISTS}[each])), "")
            problems.add(
                (name,),
                f"key {named(name)} stands outside of every section" + (f"; it belongs in {place}" if place else ""),
            )


def _elsewhere(but: str) -> dict[str, str]:
    """The section of every key that is not one of this section's."""
    sections = {**SECTIONS, **LISTS}
    return {name: header(each) for each in reversed(sections) if each != but for name in keys_of(sections[each])}


def _single(section: type[T], name: str, document: Mapping[str, Any], problems: Problems) -> T | None:
    table = document.get(name, {})
    spot = Spot(problems, (name,), header(name))
    if not isinstance(table, dict):
        spot.bad(f"write {header(name)}, once")
        return None
    return build(section, read_values(section, table, spot, _elsewhere(name)))


def _tables(document: Mapping[str, Any], name: str, problems: Problems) -> Iterator[tuple[dict[str, Any], Spot]]:
    tables = document.get(name, [])
    if not isinstance(tables, list):
        problems.add((name,), f"[{name}]: write [[{name}]], once for each {name}")
        return
    for index, table in enumerate(tables):
        if isinstance(table, dict):
            label = f"{header(name)} {shown(table['name'])}" if isinstance(table.get("name"), str) else header(name)
            yield table, Spot(problems, (name, index), label)
        else:
            problems.add((name, index), f"{header(name)}: must be a table")


def _add_environment(table: dict[str, Any], spot: Spot, environments: _Environments) -> None:
    values = read_values(Environment, table, spot, _elsewhere("environment"))
    _check_kind(values, spot)
    name = values.get("name")
    if name is None:
        return
    if name in environments.names:
        spot.key("name").bad("there is already an environment of this name")
    environments.names.add(name)
    environment = build(Environment, values)
    if environment is not None:
        environments.good.setdefault(name, environment)


def _check_kind(values: Mapping[str, Any], spot: Spot) -> None:
    """What only one kind of environment needs or may have."""
    kind = values.get("kind")
    if kind is Kind.SSH and values.get("host") == "":
        spot.key("host").bad("missing key 'host': kind ssh needs [user@]name[:port]")
    for name in _SSH_ONLY if kind is not None and kind is not Kind.SSH else ():
        if values.get(name):
            spot.key(name).bad(f"{name} is only for kind ssh; this is a {kind}")
    for name in _QEMU_ONLY if kind is not None and kind is not Kind.QEMU else ():
        if values.get(name):
            spot.key(name).bad(f"{name} is only for kind qemu; this is a {kind}")
    if values.get("image") and kind not in (None, Kind.DOCKER):
        spot.key("image").bad(f"image is only for kind docker; this is a {kind}")
    if kind is Kind.QEMU:
        _check_machine(values, spot)
    elif kind is Kind.DOCKER:
        _check_container(values, spot)
    elif kind is Kind.CHROOT:
        if values.get("network") is Network.USER:
            spot.key("network").bad_value("user", 'only a machine of kind qemu has that: "none", "bridge" or "host"')
        if values.get("root") == "":
            spot.key("root").bad("missing key 'root': kind chroot needs the directory of a root tree")
        _check_binds(values, spot)
    elif kind is not None:
        for name in _CHROOT_ONLY:
            if values.get(name):
                spot.key(name).bad(f"{name} is only for kind chroot; this is a {kind}")
        if values.get("network") not in (None, Network.HOST):
            spot.key("network").bad_value(str(values["network"]), f'a {kind} shares the network of the host: "host"')


def _check_binds(values: Mapping[str, Any], spot: Spot) -> None:
    inside = [bind.inside for bind in values.get("binds", ())]
    if len(set(inside)) < len(inside):
        spot.key("binds").bad("binds: two of them have the same path inside")
    for path in inside:
        if path == _WORK or path.startswith(f"{_WORK}/"):
            spot.key("binds").bad(f"binds: {path} is in the work directory, whose contents are removed after each job")


def _check_container(values: Mapping[str, Any], spot: Spot) -> None:
    if values.get("image") == "":
        spot.key("image").bad("missing key 'image': kind docker needs the name of a container image")
    if values.get("root"):
        spot.key("root").bad("root is not for kind docker: the image is its root")
    if values.get("network") is Network.USER:
        spot.key("network").bad_value("user", 'only a machine of kind qemu has that: "none", "bridge" or "host"')
    _check_binds(values, spot)


def _check_machine(values: Mapping[str, Any], spot: Spot) -> None:
    for name, what in (("root", "the image of a root file system"), ("kernel", "the file of a kernel")):
        if values.get(name) == "":
            spot.key(name).bad(f"missing key '{name}': kind qemu needs {what}")
    if values.get("binds"):
        spot.key("binds").bad("binds is only for kind chroot; this is a qemu")
    if values.get("network") not in _QEMU_NETWORKS:
        spot.key("network").bad_value("host", 'a machine has a network of its own: "none", "user" or "bridge"')


def _add_built(path: Path, text: str, problems: Problems, environments: _Environments) -> None:
    table = _document(text, problems)
    name = path.absolute().parent.name
    spot = Spot(problems, (), f"environment {shown(name)}")
    if problems.found:
        return
    if table.get("name", name) != name:
        spot.key("name").bad_value(table["name"], f"the directory is called {shown(name)}; leave the key out")
    if name in environments.names:
        environments.warnings.append(
            f"{path}: not used: biruda.conf has an environment {shown(name)} of its own; rename one of them"
        )
        environments = _Environments()  # checked all the same
    _add_environment({**table, "name": name}, spot, environments)


def _workers(document: Mapping[str, Any], problems: Problems, environments: _Environments) -> tuple[Worker, ...]:
    workers = []
    taken: set[tuple[str, ...]] = set()
    for table, spot in _tables(document, "worker", problems):
        values = read_values(Worker, table, spot, _elsewhere("worker"))
        key = spot.key("environment")
        for index, name in enumerate(values.get("environment", ())):
            place = key.item(index) if isinstance(table["environment"], list) else key
            _check_place(values, name, place, environments, taken)
        worker = build(Worker, values)
        if worker is not None:
            workers.append(worker)
    return tuple(workers)


def _check_place(
    values: Mapping[str, Any], name: str, spot: Spot, known: _Environments, taken: set[tuple[str, ...]]
) -> None:
    """Whether a worker can be in the environment of this name: it exists, agrees, and the worker stays unique."""
    if name not in known.names:
        spot.bad(f"there is no environment {named(name)}{did_you_mean(name, known.names)}")
    environment = known.good.get(name)
    if environment is None:
        return
    for key, declared in (("arch", environment.arch), ("platform", environment.platform)):
        wanted = values.get(key)
        if wanted and declared and wanted != declared:
            spot.bad(f"{key} = {shown(wanted)}, but environment {shown(name)} declares {shown(declared)}")
    worker = values.get("name", "")
    arch, platform = values.get("arch") or environment.arch, values.get("platform") or environment.platform
    if worker and (worker, name) in taken:
        spot.bad(f"there is already a worker {shown(worker)} in environment {shown(name)}")
    elif worker and arch and platform and (worker, arch, platform) in taken:
        spot.bad(f"there is already a worker {shown(worker)} for {arch} {platform} on this host")
    taken.update({(worker, name), (worker, arch, platform)})
