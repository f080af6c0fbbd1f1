"""Reads a config file: tables as they are written, one over the other, and what a mount's settings mean together."""

import os
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NewType

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn

from isowsgi.configuration import checks, groups, included, pythons
from isowsgi.configuration.checks import Pattern
from isowsgi.configuration.faults import ConfigError, Fault, Place, at, place_text, quoted, spelt, walk, wrong_type
from isowsgi.configuration.values import (
    CRASH_ACTIONS,
    CRASH_WINDOW_S,
    CRASHES,
    HEAD_TIMEOUT_S,
    MAIN_GROUP,
    MAX_COUNT,
    MAX_INSTANCES,
    MAX_LEAKED,
    MAX_STUCK,
    MAX_THREADS,
    REPLACE_ORDERS,
    App,
    Config,
    Control,
    Limits,
    Mount,
    Status,
)
from isowsgi.shared import policies, regular, scoreboard, workdir


def load(path: str | os.PathLike[str], *, own_gil_error: str | None = None, base: str | None = None) -> Config:
    """Read and check a config file.

    Args:
        path: the file; faults name it as given here.
        base: the folder that a relative path begins at, as it was written, for it may lead through a link; None: the shell's.
        own_gil_error: why `isolation = "own-gil"` is refused on this Python; None: it is not.

    Raises:
        ConfigError: with all faults of the file.
    """
    shown = os.fspath(path)
    try:
        absolute = workdir.absolute(os.path.join(base or "", shown))
    except FileNotFoundError:
        raise ConfigError((f"{shown}: the working directory was deleted; give the file's absolute path",)) from None
    data = _parse(shown, absolute)
    folder = os.path.dirname(absolute)
    seen: dict[Pattern, str] = {}
    if "include" in data:
        data.setdefault("mounts", {})
    try:
        tables = _converter(folder, own_gil_error, data.get("defaults"), seen, needs_mounts="include" not in data).structure(data, _File)
        mounts = list(_mounts(tables.mounts, list(data["mounts"]), _said(tables.defaults), folder))
    except ExceptionGroup as group:
        raise ConfigError(_texts(shown, data, group)) from None  # all is said
    reading = _Inclusion(folder, os.path.dirname(shown), own_gil_error, _said(tables.defaults), data.get("defaults"), seen, mounts)
    for file in included.files(tables.include, folder):
        reading.add(file)
    if too_large := scoreboard.faults([mount.pattern for mount in mounts]):
        raise ConfigError(tuple(f"{shown}: {fault}" for fault in too_large))
    if not mounts and not reading.faults:
        raise ConfigError((f"{shown}: include: no file with a mount, looked for {', '.join(tables.include)} in {folder!r}",))
    limits = Limits(**attrs.asdict(tables.worker))
    control = Control(**attrs.asdict(tables.control))
    status = Status(allow=tables.status.allow, hosts=tables.status.hosts)
    return Config(
        path=absolute, mounts=tuple(mounts), include=tables.include, faults=tuple(reading.faults), faulty=tuple(reading.faulty),
        head_timeout=tables.acceptor.head_timeout, limits=limits, control=control, status=status,
    )  # fmt: skip


def _texts(shown: str, data: dict[str, Any], group: ExceptionGroup[Exception]) -> tuple[str, ...]:
    """Return the faults of a file, in its order."""
    faults = sorted(walk(group), key=lambda fault: _position(data, fault[0]))
    return tuple(f"{shown}: {place_text(place)}: {text}" for place, text in faults)


class _Inclusion:
    """Reads the files that the main one includes.

    Args:
        folder: of the main file.
        shown: the same as it was given.
        defaults: the main file's, which hold where an included file says nothing else.
        written: the same as the file has them.
        seen: the patterns of all files so far.
        mounts: takes those of each file.

    Attributes:
        faults: of all files.
        faulty: the files that have some.
    """

    def __init__(
        self,
        folder: str,
        shown: str,
        own_gil_error: str | None,
        defaults: dict[str, Any],
        written: Any,
        seen: dict[Pattern, str],
        mounts: list[Mount],
    ) -> None:
        self._folder = folder
        self._shown = shown
        self._own_gil_error = own_gil_error
        self._defaults = defaults
        self._written = written
        self._seen = seen
        self._mounts = mounts
        self.faults: list[str] = []
        self.faulty: list[str] = []

    def add(self, file: str) -> None:
        """Read one file; if it has faults, its patterns get mounts that are answered 503."""
        shown = os.path.join(self._shown, os.path.relpath(file, self._folder))
        before = dict(self._seen)
        try:
            data = _parse(shown, file)
        except ConfigError as exc:
            self.faults += exc.faults
            self.faulty.append(file)
            return
        try:
            mounts = self._read(file, data, f" in {shown}")
        except ExceptionGroup as group:
            texts = _texts(shown, data, group)
            self.faults += texts
            self.faulty.append(file)
            mounts = [
                included.faulty_mount(str(pattern), pattern.host, _wsgi_form(pattern.path), file, texts[0])
                for pattern in checks.patterns_of(data.get("mounts"))
                if pattern not in before
            ]
            self._seen.update((checks.pattern(mount.pattern), f"{quoted(mount.pattern)} in {shown}") for mount in mounts)
        self._mounts += [attrs.evolve(mount, number=len(self._mounts) + place) for place, mount in enumerate(mounts)]

    def _read(self, file: str, data: dict[str, Any], where: str) -> list[Mount]:
        folder = os.path.dirname(file)
        written = data.get("defaults", {})
        if isinstance(self._written, dict) and isinstance(written, dict):
            written = {**self._written, **written}
        converter = _converter(folder, self._own_gil_error, written, self._seen, where=where)
        tables = converter.structure(data, _Included)
        defaults = {**self._defaults, **(own := _said(tables.defaults))}
        for key in ("env", "policy"):
            if key in defaults:
                defaults[key] = self._defaults.get(key, {}) | own.get(key, {})
        mounts = _mounts(tables.mounts, list(data["mounts"]), defaults, folder)
        taken = {mount.group for mount in self._mounts} - {None}
        faults = [
            at(("mounts", text, "group"), Fault(f"another file has mounts in the group {mount.group!r}; keep a group's mounts in one file"))
            for text, mount in zip(data["mounts"], mounts, strict=True)
            if mount.group in taken
        ]
        if faults:
            raise ExceptionGroup("groups", faults)
        return [attrs.evolve(mount, file=file) for mount in mounts]


def _wsgi_form(path: str) -> str:
    return path.encode().decode("latin-1")


def _parse(shown: str, absolute: str) -> dict[str, Any]:
    """Return what the TOML of a file says."""
    try:
        content = regular.read(absolute, regular.MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise ConfigError((f"{shown}: no such file, looked for {absolute!r}",)) from None
    except regular.NotRegular as exc:
        raise ConfigError((f"{shown}: expected a config file, got {exc}",)) from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ConfigError((f"{shown}: cannot read it: {(getattr(exc, 'strerror', None) or str(exc)).lower()}",)) from exc
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors put a byte order mark before it
    except (ValueError, RecursionError) as exc:  # ValueError: not UTF-8, a syntax error, an int of too many digits
        raise ConfigError((f"{shown}: {_syntax_fault(exc)}",)) from exc


def _syntax_fault(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return "not valid TOML: nested too deeply"
    if isinstance(exc, UnicodeDecodeError):
        return f"not valid TOML: expected UTF-8, got byte {exc.object[exc.start]:#04x} at offset {exc.start}"
    text = " ".join(str(exc).split())
    found = re.fullmatch(r"(?P<what>.*) \(at (?P<where>line \d+, column \d+|end of document)\)", text)
    where, what = (found["where"] + ": ", found["what"]) if found else ("", text)
    return f"{where}not valid TOML: {what[:1].lower()}{what[1:]}"


# The tables as they are written. Each kind of value has its own type, by which cattrs finds its check; None: not set.

_Folder = NewType("_Folder", str)
_Folders = NewType("_Folders", tuple[str, ...])
_Venv = NewType("_Venv", str)
_Python = NewType("_Python", str)
_Group = NewType("_Group", str)
_EnvName = NewType("_EnvName", str)
_EnvValue = NewType("_EnvValue", str)
_Env = NewType("_Env", dict[str, str])
_EnvFile = NewType("_EnvFile", dict[str, str])
_EnvFiles = NewType("_EnvFiles", dict[str, str])
_Threads = NewType("_Threads", int)
_Isolation = NewType("_Isolation", str)
_Instances = NewType("_Instances", int)
_Seconds = NewType("_Seconds", float)
_LongSeconds = NewType("_LongSeconds", float)
_Switch = NewType("_Switch", bool)
_Count = NewType("_Count", int)
_AtLeastOne = NewType("_AtLeastOne", int)
_Path = NewType("_Path", str)
_NewFile = NewType("_NewFile", str)
_NewFolder = NewType("_NewFolder", str)
_UrlPath = NewType("_UrlPath", str)
_Hook = NewType("_Hook", str)
_Replace = NewType("_Replace", str)
_OnCrash = NewType("_OnCrash", str)
_PolicyWord = NewType("_PolicyWord", str)
_PolicyValue = NewType("_PolicyValue", str)
_Policy = NewType("_Policy", dict[str, str])
_Network = NewType("_Network", str)
_Networks = NewType("_Networks", tuple[str, ...])
_Glob = NewType("_Glob", str)
_Globs = NewType("_Globs", tuple[str, ...])
_HostName = NewType("_HostName", str)
_HostNames = NewType("_HostNames", tuple[str, ...])


@attrs.frozen(kw_only=True)
class _Settings:
    """`[defaults]`: what can be said once for every mount."""

    pythonpath: _Folders | None = None
    venv: _Venv | None = None
    python: _Python | None = None
    env: _Env | None = None
    env_file: _EnvFiles | None = None
    threads: _Threads | None = None
    isolation: _Isolation | None = None
    group: _Group | None = None
    instances: _Instances | None = None
    lazy: _Switch | None = None
    idle_timeout: _LongSeconds | None = None
    boot_timeout: _LongSeconds | None = None
    request_timeout: _LongSeconds | None = None
    body_timeout: _LongSeconds | None = None
    send_timeout: _LongSeconds | None = None
    min_rate: _Count | None = None
    queue: _Count | None = None
    queue_timeout: _LongSeconds | None = None
    warmup: _UrlPath | None = None
    touch: _Path | None = None
    watch: _Switch | None = None
    replace: _Replace | None = None
    max_requests: _Count | None = None
    max_requests_jitter: _Count | None = None
    max_age: _LongSeconds | None = None
    log: _NewFile | None = None
    slow_request: _LongSeconds | None = None
    on_boot: _Hook | None = None
    on_drain: _Hook | None = None
    on_request_start: _Hook | None = None
    on_request_end: _Hook | None = None
    on_crash: _OnCrash | None = None
    policy: _Policy | None = None


@attrs.frozen(kw_only=True)
class _MountTable(_Settings):
    app: App


@attrs.frozen(kw_only=True)
class _Acceptor:
    head_timeout: _Seconds = _Seconds(HEAD_TIMEOUT_S)


@attrs.frozen(kw_only=True)
class _Worker:
    max_stuck: _Count = _Count(MAX_STUCK)
    max_leaked: _Count = _Count(MAX_LEAKED)
    max_rss: _Count = _Count(0)
    crashes: _AtLeastOne = _AtLeastOne(CRASHES)
    crash_window: _LongSeconds = _LongSeconds(CRASH_WINDOW_S)
    fork_server: _Switch = _Switch(False)


@attrs.frozen(kw_only=True)
class _Control:
    enabled: _Switch = _Switch(True)
    folder: _NewFolder | None = None
    watch: _Switch = _Switch(False)


@attrs.frozen(kw_only=True)
class _Status:
    allow: _Networks = _Networks(())
    hosts: _HostNames = _HostNames(())


_Mounts = NewType("_Mounts", dict[Pattern, _MountTable])


@attrs.frozen(kw_only=True)
class _File:
    mounts: _Mounts
    include: _Globs = _Globs(())
    defaults: _Settings = _Settings()
    acceptor: _Acceptor = _Acceptor()
    worker: _Worker = _Worker()
    control: _Control = _Control()
    status: _Status = _Status()


@attrs.frozen(kw_only=True)
class _Included:
    """A file that the main one includes."""

    mounts: _Mounts
    defaults: _Settings = _Settings()


def _mounts(tables: _Mounts, written: list[str], defaults: dict[str, Any], folder: str) -> tuple[Mount, ...]:
    """Lay each mount's table over its group's and the defaults, and check what they mean together.

    The environment and the policy merge name by name, and all that a mount says wins over all that the defaults say: else a variable
    in `[defaults]` would beat the mount's own env_file.

    Args:
        written: the patterns as the file writes them, in its order.

    Raises:
        ExceptionGroup: of faults, each with its place.
    """
    own = [_said(table) for table in tables.values()]
    faults: list[Exception] = []
    merged = _join_groups(own, defaults, written, faults)
    mounts: list[Mount] = []
    for pattern, text, said, table in zip(tables, written, merged, own, strict=True):
        by_name = {key: defaults.get(key, {}) | said.get(key, {}) for key in ("env", "policy")}
        values = {"pythonpath": (folder,), **defaults, **said, **by_name}
        for key, fault in _joint_faults(values):
            faults.append(at(("mounts", text, key) if key in table else ("defaults", key) if key in defaults else ("mounts", text), fault))
        values["policy"] = {word: value for word, value in values["policy"].items() if value != "allow"}
        mounts.append(Mount(number=len(mounts), pattern=str(pattern), host=pattern.host, prefix=_wsgi_form(pattern.path), **values))
    if faults:
        raise ExceptionGroup("mounts", faults)
    return tuple(mounts)


def _said(table: _Settings) -> dict[str, Any]:
    """Return what a table says, the variables of its files among its environment."""
    said = {name: value for name, value in attrs.asdict(table, recurse=False).items() if value is not None}
    env = said.pop("env_file", {}) | said.get("env", {})
    return said | {"env": env} if env else said


def _join_groups(own: list[dict[str, Any]], defaults: dict[str, Any], written: list[str], faults: list[Exception]) -> list[dict[str, Any]]:
    """Give each mount what the others of its group say; contradictions are added to `faults`."""
    members: dict[str, list[int]] = {}
    for number, said in enumerate(own):
        both = defaults | said
        name = MAIN_GROUP if both.get("isolation") == "main" else both.get("group")
        if both.get("isolation") == "main" and "group" in both:
            faults.append(at(("mounts", written[number]), Fault("mounts of the main interpreter share it anyway; remove their group")))
        elif name is not None:
            members.setdefault(name, []).append(number)
    joined = list(own)
    for name, numbers in members.items():
        agreed, contradictions = groups.agree([own[number] for number in numbers])
        for number, said in zip(numbers, agreed, strict=True):
            joined[number] = said | {"group": name}
        for found in contradictions:
            place = ("mounts", written[numbers[found.member]], found.key, *([] if found.name is None else [found.name]))
            other = place_text(("mounts", written[numbers[found.other]]))
            faults.append(at(place, Fault(f"contradicts {other}, which says {spelt(found.theirs)}: both share the group {name!r}")))
    return joined


def _joint_faults(values: dict[str, Any]) -> Iterator[tuple[str, Fault]]:
    """Yield what is wrong with a mount's settings together, with the key to blame; each alone is valid."""
    isolation, python, venv = values.get("isolation", "auto"), values.get("python"), values.get("venv")
    if python is not None and isolation not in ("auto", "process"):
        wanted = 'isolation = "process" (or "auto")'
        yield "python", Fault(f"another Python runs in its own process: expected {wanted}, got {isolation!r}")
    elif venv is not None:
        fault = checks.venv_fault(venv, pythons.ask(python).version[:2] if python else pythons.HOST, python)
        if fault is not None:
            yield "venv", Fault(fault)
    if isolation == "main":
        if venv is not None:
            packages = "the packages of gunicorn's own environment"
            yield "venv", Fault(f'an app in the main interpreter has {packages}; use isolation = "process"')
        if values.get("instances", 1) > 1:
            yield "instances", Fault(f"there is one main interpreter, got {values['instances']}")
        if any(value != "allow" for value in values.get("policy", {}).values()):
            reason = "in the main interpreter an app's calls cannot be told from gunicorn's"
            yield "policy", Fault(f'{reason}; use isolation = "process", or policy = "allow" for a mount with isolation = "main"')


def _converter(
    folder: str, own_gil_error: str | None, defaults: Any, seen: dict[Pattern, str], *, where: str = "", needs_mounts: bool = True
) -> Converter:
    """Return a converter for one reading of one file.

    Args:
        defaults: that table as it is written, checked or not.
        seen: patterns that were read before, and how a fault names them; takes those of this file.
        where: what a fault adds to them, " in sites.d/shop.toml".
        needs_mounts: whether a file without mounts is at fault.
    """
    converter = Converter(detailed_validation=True)

    def table_check(kind: type) -> Callable[[Any, Any], Any]:
        build: Callable[[Any, Any], Any] = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)
        return lambda value, _: build(checks.typed(dict, value), kind)

    converter.register_structure_hook_factory(attrs.has, table_check)
    kinds = _checks_by_kind(converter, folder, own_gil_error)
    kinds[Pattern] = partial(checks.new_pattern, seen=seen, where=where)
    some = checks.not_empty if needs_mounts else partial(checks.typed, dict)
    kinds[_Mounts] = lambda value: checks.mapping(converter, some(value), Pattern, _MountTable)
    for kind, check in kinds.items():
        converter.register_structure_hook(kind, partial(lambda value, _, check: check(value), check=check))
    long_form = table_check(_MountTable)  # only now: it looks its fields' checks up at once
    given = _sound_defaults(converter, defaults)

    def mount_check(value: Any, kind: Any) -> Any:
        if not isinstance(value, (str, dict)):
            raise wrong_type("an app (a string) or a table", value)
        if isinstance(value, str):
            return _MountTable(app=checks.app(value, folder=folder))
        table = long_form(value, kind)
        # Those that its own keys are to blame for are told with the rest; what the defaults bring about is found when all is merged.
        said = _said(table)
        faults = [at((key,), fault) for key, fault in _joint_faults({**given, **said}) if key in said]
        if faults:
            raise ExceptionGroup("mount", faults)
        return table

    converter.register_structure_hook(_MountTable, mount_check)
    return converter


def _checks_by_kind(converter: Converter, folder: str, own_gil_error: str | None) -> dict[Any, Callable[[Any], Any]]:
    """Return the check of each kind of value."""
    return {
        App: partial(checks.app, folder=folder),
        _Folder: partial(checks.folder, folder=folder),
        _Folders: lambda value: tuple(checks.one_or_more(converter, value, _Folder)),
        _Venv: partial(checks.venv, folder=folder),
        _Python: partial(checks.python, folder=folder),
        _Group: checks.group,
        _EnvName: checks.env_name,
        _EnvValue: checks.env_value,
        _Env: lambda value: checks.mapping(converter, checks.typed(dict, value), _EnvName, _EnvValue),
        _EnvFile: partial(checks.env_file, folder=folder),
        _EnvFiles: lambda value: {n: v for file in checks.one_or_more(converter, value, _EnvFile) for n, v in file.items()},
        _Threads: partial(checks.whole_number, most=MAX_THREADS),
        _Isolation: partial(checks.isolation, own_gil_error=own_gil_error),
        _Instances: partial(checks.whole_number, most=MAX_INSTANCES),
        _Seconds: checks.head_timeout,
        _LongSeconds: checks.time_limit,
        _Switch: partial(checks.typed, bool),
        _Count: partial(checks.whole_number, least=0, most=MAX_COUNT),
        _AtLeastOne: partial(checks.whole_number, most=MAX_COUNT),
        _Path: partial(checks.new_path, folder=folder),
        _NewFile: partial(checks.new_file, folder=folder),
        _NewFolder: partial(checks.new_folder, folder=folder),
        _UrlPath: checks.url_path,
        _Hook: checks.hook,
        _Replace: partial(checks.one_of, names=REPLACE_ORDERS),
        _OnCrash: partial(checks.one_of, names=CRASH_ACTIONS),
        _PolicyWord: checks.policy_word,
        _PolicyValue: partial(checks.one_of, names=policies.VALUES),
        _Policy: partial(_policy, converter),
        _Network: checks.network,
        _Networks: lambda value: tuple(checks.one_or_more(converter, value, _Network)),
        _Glob: checks.glob_pattern,
        _Globs: lambda value: tuple(checks.one_or_more(converter, value, _Glob)),
        _HostName: checks.host_name,
        _HostNames: lambda value: tuple(checks.one_or_more(converter, value, _HostName)),
    }


def _sound_defaults(converter: Converter, defaults: Any) -> dict[str, Any]:
    """Return those of the defaults that `_joint_faults` looks at, as far as they are in order."""
    sound = {}
    for key, kind in (("isolation", _Isolation), ("python", _Python)):
        if isinstance(defaults, dict) and key in defaults:
            try:
                sound[key] = converter.structure(defaults[key], kind)
            except Fault:  # reported at its place
                continue
    return sound


def _position(data: Any, place: Place) -> list[int]:
    """Return a key that sorts faults as the file does; what is missing comes last in its table."""
    position = []
    for part in place:
        if isinstance(data, dict):
            position.append(list(data).index(part) if part in data else len(data))
            data = data.get(part)
        elif isinstance(part, int):
            position.append(part)
    return position


def _policy(converter: Converter, value: Any) -> dict[str, str]:
    """Read a value for each word, or one for all of them."""
    if isinstance(value, str):
        return dict.fromkeys(policies.WORDS, converter.structure(value, _PolicyValue))
    if not isinstance(value, dict):
        raise wrong_type("one of 'allow', 'warn', 'deny' or a table of them", value)
    return checks.mapping(converter, value, _PolicyWord, _PolicyValue)
