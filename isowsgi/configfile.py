"""The config file: a TOML file becomes a frozen `Config`, or a `ConfigError` that names every fault of it at once.

Four steps: tomllib reads the text; cattrs builds the tables below, one check per kind of value, each fault with its place; then
`[defaults]`, the tables of a mount's group and its own are laid over each other; and what a mount's settings mean together is checked.
A value is checked where it is written and before anything is merged: that is why a wrong default is reported once, not once per mount.

Everything imported here is pure Python outside the standard library, since the main interpreter reads the file (ARCHITECTURE.md).
"""

import ast
import difflib
import ipaddress
import json
import keyword
import os
import re
import shlex
import shutil
import sysconfig
import tomllib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NewType, TypeVar

import attrs
from cattrs import AttributeValidationNote, Converter, ForbiddenExtraKeysError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn
from dotenv.parser import parse_stream

from isowsgi import groups, policies, pythons

ISOLATIONS = ("auto", "own-gil", "shared-gil", "process", "main")
MAIN_GROUP = "main"  # of all mounts in the main interpreter: there is one
SCRIPT_SUFFIXES = (".wsgi", ".py")  # mod_wsgi's custom, and what a path to a module looks like
MAX_THREADS = 1024  # per instance; far above what helps, low enough to catch a slip of the keyboard
MAX_INSTANCES = 64  # per mount: at 10 to 50 MiB each, more is a mistake
MAX_HEAD_TIMEOUT_S = 3600  # each slow head holds a connection of worker_connections; more is none at all
HEAD_TIMEOUT_S = 20.0  # what Apache's RequestReadTimeout begins with; nginx's client_header_timeout is 60
MAX_SECONDS = 7 * 24 * 3600  # for time limits of a mount: longer is a slip of the keyboard, or none at all
BOOT_TIMEOUT_S = 60.0  # a large Django takes a few seconds, with cold disks some tens
REQUEST_TIMEOUT_S = 60.0  # nginx's proxy_read_timeout
BODY_TIMEOUT_S = SEND_TIMEOUT_S = 60.0  # nginx's client_body_timeout and send_timeout
MIN_RATE = 500  # bytes/s; what Apache's configuration asks of bodies (mod_reqtimeout). A modem of 1990 had twice as much
QUEUE = 100  # per instance; at 50 ms a request and 4 threads the last of them waits for about a second
QUEUE_TIMEOUT_S = 30.0
MAX_COUNT = 1_000_000_000
MAX_STUCK = 5  # each keeps its memory and a thread
MAX_LEAKED = 50  # CPython 3.13 keeps about 23 MiB of each Flask or Django: some 1.2 GiB
CRASHES = 3
CRASH_WINDOW_S = 600.0
HOOKS = ("on_boot", "on_drain", "on_request_start", "on_request_end")
CRASH_ACTIONS = ("quarantine", "process", "serve")
MAX_HOST_CHARS = 253  # RFC 1035 section 2.3.4, as text
LONG_INT_BITS = 1000  # shown in part: nobody reads more, and str() refuses an int of more than 4,300 digits

T = TypeVar("T")
Place = tuple[str | int, ...]  # of a value in the file: keys, and indexes of lists


class ConfigError(Exception):
    """The config file is wrong.

    Attributes:
        faults: one full line each, `file: place: what was expected, got 'x'`, in the order of the file.
    """

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


@attrs.frozen(kw_only=True)
class App:
    """Where the WSGI callable is: an object of a module or of a script file."""

    kind: str  # "module" or "script"
    target: str  # dotted module name, or the script's absolute path
    call: str  # a name ("application"), or a call with literal arguments ('create_app("x", debug=True)')


@attrs.frozen(kw_only=True)
class Mount:
    """A URL pattern with its app and settings."""

    pattern: str  # normalised, for people: "/", "/blog", "api.example.com/v1"
    host: str = ""  # lower case, without port; "" is any host
    prefix: str = ""  # decoded, in WSGI form (UTF-8 bytes as latin-1 text), no slash at the end; "" is the root
    app: App
    pythonpath: tuple[str, ...] = ()  # absolute
    venv: str | None = None  # absolute
    python: str | None = None  # absolute; of another Python than gunicorn's, for a process of its own
    env: Mapping[str, str] = attrs.field(factory=dict, hash=False)  # env_file's values included
    threads: int | None = None  # None: gunicorn's --threads decides
    isolation: str = "auto"
    group: str | None = None  # mounts with the same one share an instance, and all settings but app and warmup
    instances: int = 1
    lazy: bool = False  # start at the first request
    idle_timeout: float = 0.0  # seconds without a request after which it is ended until the next one; 0: never
    boot_timeout: float = BOOT_TIMEOUT_S  # seconds that loading may take, and that a request waits for it
    request_timeout: float = REQUEST_TIMEOUT_S  # seconds without a byte from or to the client; 0: for ever
    body_timeout: float = BODY_TIMEOUT_S  # seconds that a client may stand still while its body is read; 0: for ever
    send_timeout: float = SEND_TIMEOUT_S  # seconds that it may take nothing of the response; 0: for ever
    min_rate: int = MIN_RATE  # bytes/s that a client must come to in the time that a thread waits for it; 0: none
    queue: int = QUEUE  # requests that may wait for a thread of an instance; more are answered 503
    queue_timeout: float = QUEUE_TIMEOUT_S  # seconds that one may wait
    warmup: str | None = None  # a path that a new instance is asked for before it serves
    touch: str | None = None  # absolute; a change of this file replaces the mount's instances
    watch: bool = False  # so does a change of any file that its modules came from
    max_requests: int = 0  # after which an instance is replaced; 0: never
    max_requests_jitter: int = 0  # at most so many more, at random
    max_age: float = 0.0  # seconds; 0: for ever
    log: str | None = None  # absolute; a file for its lines, instead of gunicorn's error log
    slow_request: float = 0.0  # seconds after which a request's stack is logged once; 0: never
    on_boot: str | None = None  # hooks: "module:function" of the app's interpreter; see inside/hooks.py
    on_drain: str | None = None
    on_request_start: str | None = None
    on_request_end: str | None = None
    on_crash: str = "quarantine"  # or "process", "serve": what becomes of a mount that keeps crashing the worker
    policy: Mapping[str, str] = attrs.field(factory=dict, hash=False)  # "warn" or "deny" by word; the others are allowed


@attrs.frozen(kw_only=True)
class Limits:
    """`[worker]`: what a worker may come to before it is replaced, gracefully."""

    max_stuck: int = MAX_STUCK  # instances with a thread that does not end
    max_leaked: int = MAX_LEAKED  # interpreters ended on a release that keeps their memory
    max_rss: int = 0  # MiB; 0: no limit
    crashes: int = CRASHES  # of a worker with this mount alone in flight, before `on_crash` acts
    crash_window: float = CRASH_WINDOW_S  # seconds in which they count


@attrs.frozen(kw_only=True)
class Control:
    """`[control]`: the socket by which `isowsgi status` and the like reach a worker."""

    enabled: bool = True
    folder: str | None = None  # absolute; None: see operate.places


@attrs.frozen(kw_only=True)
class Status:
    """`[status]`: who may see the status page and the metrics, besides those who ask from this machine by itself."""

    allow: tuple[str, ...] = ()  # networks, "10.0.0.0/8"; and "unix": clients of a Unix socket
    hosts: tuple[str, ...] = ()  # names that the page is asked for under, besides addresses and "localhost"; lower case


@attrs.frozen(kw_only=True)
class Config:
    """A whole config file, checked."""

    path: str  # absolute
    mounts: tuple[Mount, ...]  # in the order of the file
    head_timeout: float = HEAD_TIMEOUT_S  # seconds that a client has for sending a request's head
    limits: Limits = Limits()
    control: Control = Control()
    status: Status = Status()


def load(path: str | os.PathLike[str], *, own_gil_error: str | None = None) -> Config:
    """Read and check a config file.

    Args:
        path: the file; faults name it as given here.
        own_gil_error: why `isolation = "own-gil"` is refused on this Python; None: it is not.

    Raises:
        ConfigError: with all faults of the file.
    """
    shown = os.fspath(path)
    absolute, data = _parse(shown)
    folder = os.path.dirname(absolute)
    try:
        tables = _converter(folder, own_gil_error, data.get("defaults")).structure(data, _File)
        mounts = _mounts(tables, list(data["mounts"]), folder)
    except ExceptionGroup as group:
        faults = sorted(_faults(group), key=lambda fault: _position(data, fault[0]))
        raise ConfigError(tuple(f"{shown}: {_place(place)}: {text}" for place, text in faults)) from None  # all is said
    limits = Limits(**attrs.asdict(tables.worker))
    control = Control(**attrs.asdict(tables.control))
    status = Status(allow=tables.status.allow, hosts=tables.status.hosts)
    return Config(path=absolute, mounts=mounts, head_timeout=tables.acceptor.head_timeout, limits=limits, control=control, status=status)


def _parse(shown: str) -> tuple[str, dict[str, Any]]:
    """Return the absolute path of a file and what its TOML says."""
    try:
        absolute = os.path.abspath(shown)
        with open(absolute, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise ConfigError((f"{shown}: no such file, looked for {absolute!r}",)) from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ConfigError((f"{shown}: cannot read it: {(getattr(exc, 'strerror', None) or str(exc)).lower()}",)) from exc
    try:
        return absolute, tomllib.loads(content.decode())
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


# The tables as they are written. Each kind of value is a type of its own, for cattrs to find its check by; None: not said.

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
_OnCrash = NewType("_OnCrash", str)
_PolicyWord = NewType("_PolicyWord", str)
_PolicyValue = NewType("_PolicyValue", str)
_Policy = NewType("_Policy", dict[str, str])
_Network = NewType("_Network", str)
_Networks = NewType("_Networks", tuple[str, ...])
_HostName = NewType("_HostName", str)
_HostNames = NewType("_HostNames", tuple[str, ...])


@attrs.frozen
class _Pattern:
    host: str
    path: str  # as written, no slash at the end

    def __str__(self) -> str:
        return self.host + (self.path or "/")


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


@attrs.frozen(kw_only=True)
class _Control:
    enabled: _Switch = _Switch(True)
    folder: _NewFolder | None = None


@attrs.frozen(kw_only=True)
class _Status:
    allow: _Networks = _Networks(())
    hosts: _HostNames = _HostNames(())


_Mounts = NewType("_Mounts", dict[_Pattern, _MountTable])


@attrs.frozen(kw_only=True)
class _File:
    mounts: _Mounts
    defaults: _Settings = _Settings()
    acceptor: _Acceptor = _Acceptor()
    worker: _Worker = _Worker()
    control: _Control = _Control()
    status: _Status = _Status()


def _mounts(tables: _File, written: list[str], folder: str) -> tuple[Mount, ...]:
    """Lay each mount's table over its group's and the defaults, and check what they mean together.

    The environment and the policy merge name by name, and all that a mount says wins over all that the defaults say: else a variable
    in `[defaults]` would beat the mount's own env_file.

    Args:
        written: the patterns as they stand in the file, in its order.

    Raises:
        ExceptionGroup: of faults, each with its place.
    """
    defaults = _said(tables.defaults)
    own = [_said(table) for table in tables.mounts.values()]
    faults: list[Exception] = []
    merged = _join_groups(own, defaults, written, faults)
    mounts = []
    for pattern, text, said, table in zip(tables.mounts, written, merged, own, strict=True):
        by_name = {key: defaults.get(key, {}) | said.get(key, {}) for key in ("env", "policy")}
        values = {"pythonpath": (folder,), **defaults, **said, **by_name}
        for key, fault in _joint_faults(values):
            faults.append(_at(("mounts", text, key) if key in table else ("defaults", key) if key in defaults else ("mounts", text), fault))
        values["policy"] = {word: value for word, value in values["policy"].items() if value != "allow"}
        mounts.append(Mount(pattern=str(pattern), host=pattern.host, prefix=pattern.path.encode().decode("latin-1"), **values))
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
            faults.append(_at(("mounts", written[number]), _Fault("mounts of the main interpreter share it anyway; remove their group")))
        elif name is not None:
            members.setdefault(name, []).append(number)
    joined = list(own)
    for name, numbers in members.items():
        agreed, contradictions = groups.agree([own[number] for number in numbers])
        for number, said in zip(numbers, agreed, strict=True):
            joined[number] = said | {"group": name}
        for found in contradictions:
            place = ("mounts", written[numbers[found.member]], found.key, *([] if found.name is None else [found.name]))
            other = _place(("mounts", written[numbers[found.other]]))
            faults.append(_at(place, _Fault(f"contradicts {other}, which says {_shown(found.theirs)}: both share the group {name!r}")))
    return joined


def _joint_faults(values: dict[str, Any]) -> Iterator[tuple[str, "_Fault"]]:
    """Yield what is wrong with a mount's settings together, with the key to blame; each by itself is in order."""
    isolation, python, venv = values.get("isolation", "auto"), values.get("python"), values.get("venv")
    if python is not None and isolation not in ("auto", "process"):
        wanted = 'isolation = "process" (or "auto")'
        yield "python", _Fault(f"another Python runs in a process of its own: expected {wanted}, got {isolation!r}")
    elif venv is not None:
        fault = _venv_fault(venv, pythons.ask(python).version[:2] if python else pythons.HOST, python)
        if fault is not None:
            yield "venv", _Fault(fault)
    if isolation == "main":
        if venv is not None:
            packages = "the packages of gunicorn's own environment"
            yield "venv", _Fault(f'an app in the main interpreter has {packages}; use isolation = "process"')
        if values.get("instances", 1) > 1:
            yield "instances", _Fault(f"there is one main interpreter, got {values['instances']}")
        if any(value != "allow" for value in values.get("policy", {}).values()):
            reason = "the main interpreter is gunicorn's too, and nobody can tell who does what there"
            yield "policy", _Fault(f'{reason}; use isolation = "process", or policy = "allow" for a mount with isolation = "main"')


def _converter(folder: str, own_gil_error: str | None, defaults: Any) -> Converter:
    """Return a converter for one reading of one file: it remembers the patterns it has seen, to find the same one twice.

    Args:
        defaults: that table as it is written, checked or not.
    """
    converter = Converter(detailed_validation=True)
    checks: dict[Any, Callable[[Any], Any]] = {
        _Pattern: partial(_new_pattern, seen={}),
        App: partial(_app, folder=folder),
        _Mounts: lambda value: _mapping(converter, _not_empty(value), _Pattern, _MountTable),
        _Folder: partial(_folder, folder=folder),
        _Folders: lambda value: tuple(_one_or_more(converter, value, _Folder)),
        _Venv: partial(_venv, folder=folder),
        _Python: partial(_python, folder=folder),
        _Group: _group,
        _EnvName: _env_name,
        _EnvValue: _env_value,
        _Env: lambda value: _mapping(converter, _typed(dict, value), _EnvName, _EnvValue),
        _EnvFile: partial(_env_file, folder=folder),
        _EnvFiles: lambda value: {n: v for file in _one_or_more(converter, value, _EnvFile) for n, v in file.items()},
        _Threads: partial(_whole_number, most=MAX_THREADS),
        _Isolation: partial(_isolation, own_gil_error=own_gil_error),
        _Instances: partial(_whole_number, most=MAX_INSTANCES),
        _Seconds: _head_timeout,
        _LongSeconds: _time_limit,
        _Switch: partial(_typed, bool),
        _Count: partial(_whole_number, least=0, most=MAX_COUNT),
        _AtLeastOne: partial(_whole_number, most=MAX_COUNT),
        _Path: partial(_new_path, folder=folder),
        _NewFile: partial(_new_file, folder=folder),
        _NewFolder: partial(_new_folder, folder=folder),
        _UrlPath: _url_path,
        _Hook: _hook,
        _OnCrash: partial(_one_of, names=CRASH_ACTIONS),
        _PolicyWord: _policy_word,
        _PolicyValue: partial(_one_of, names=policies.VALUES),
        _Policy: partial(_policy, converter),
        _Network: _network,
        _Networks: lambda value: tuple(_one_or_more(converter, value, _Network)),
        _HostName: _host_name,
        _HostNames: lambda value: tuple(_one_or_more(converter, value, _HostName)),
    }

    def table_check(kind: type) -> Callable[[Any, Any], Any]:
        build: Callable[[Any, Any], Any] = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)
        return lambda value, _: build(_typed(dict, value), kind)

    converter.register_structure_hook_factory(attrs.has, table_check)
    for kind, check in checks.items():
        converter.register_structure_hook(kind, partial(lambda value, _, check: check(value), check=check))
    long_form = table_check(_MountTable)  # only now: it looks its fields' checks up at once
    given = _sound_defaults(converter, defaults)

    def mount_check(value: Any, kind: Any) -> Any:
        if not isinstance(value, (str, dict)):
            raise _wrong_type("an app (a string) or a table", value)
        if isinstance(value, str):
            return _MountTable(app=_app(value, folder=folder))
        table = long_form(value, kind)
        # Those that its own keys are to blame for are told with the rest; what the defaults bring about is found when all is merged.
        said = _said(table)
        faults = [_at((key,), fault) for key, fault in _joint_faults({**given, **said}) if key in said]
        if faults:
            raise ExceptionGroup("mount", faults)
        return table

    converter.register_structure_hook(_MountTable, mount_check)
    return converter


def _sound_defaults(converter: Converter, defaults: Any) -> dict[str, Any]:
    """Return those of the defaults that `_joint_faults` looks at, as far as they are in order."""
    sound = {}
    for key, kind in (("isolation", _Isolation), ("python", _Python)):
        if isinstance(defaults, dict) and key in defaults:
            try:
                sound[key] = converter.structure(defaults[key], kind)
            except _Fault:  # is told where it stands
                continue
    return sound


# Faults and their places.


class _Fault(ValueError):
    """A value of the file is wrong; the text says what was expected and what is there.

    Attributes:
        place: where, below the place that cattrs notes for what it finds itself.
    """

    place: Place = ()


def _at(place: Place, fault: _Fault) -> _Fault:
    fault.place = place
    return fault


_KINDS: dict[type, str] = {str: "a string", bool: "a boolean", int: "a whole number", float: "a float", list: "a list", dict: "a table"}


def _wrong_type(expected: str, value: object) -> _Fault:
    kind = _KINDS.get(type(value), "a date or time")
    return _Fault(f"expected {expected}, got " + (kind if isinstance(value, (list, dict)) else f"{_shown(value)} ({kind})"))


def _shown(value: object) -> str:
    """Return a plain value as TOML spells it, but strings by repr()."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > LONG_INT_BITS:
        return f"{hex(value)[:20]}..."
    return repr(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """Return a string as TOML writes it, on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _faults(group: ExceptionGroup[Exception], place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Walk what cattrs raised: groups, with the key or index of each member in a note."""
    suggested = set()
    for member in group.exceptions:
        if isinstance(member, ForbiddenExtraKeysError):
            valid = sorted(field.name for field in attrs.fields(member.cl))
            for key in member.extra_fields:
                near = difflib.get_close_matches(key.lower(), valid, n=1)
                suggested.update(near)
                yield (*place, key), _unknown_key(key, near, valid)
    for member in group.exceptions:
        notes = [note for note in getattr(member, "__notes__", ()) if isinstance(note, (AttributeValidationNote, IterableValidationNote))]
        step = [note.name if isinstance(note, AttributeValidationNote) else note.index for note in notes]
        if isinstance(member, ExceptionGroup):
            yield from _faults(member, (*place, *step))
        elif isinstance(member, KeyError):
            if step[0] not in suggested:  # else it is there, misspelt, and that has been said
                yield (*place, *step), f"missing; {_MISSING[step[0]]}"
        elif isinstance(member, _Fault):
            yield (*place, *step, *member.place), str(member)
        elif not isinstance(member, ForbiddenExtraKeysError):
            raise member  # a mistake in a check, not in the file


_SOME_MOUNT = 'expected at least one mount, as in "/" = "shop.wsgi:application"'
_MISSING: dict[str | int, str] = {"mounts": _SOME_MOUNT, "app": 'expected an app, as in app = "shop.wsgi:application"'}


def _unknown_key(key: str, near: list[str], valid: list[str]) -> str:
    if near:
        return f"unknown key; did you mean {near[0]!r}?"
    if key == "app":
        return "unknown key; each mount names its own app"
    return f"unknown key; expected one of {', '.join(valid)}"


def _place(place: Place) -> str:
    """Return a place in TOML's own spelling: `mounts."/blog".pythonpath[0]`."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += "." * bool(text) + (part if bare else _quoted(part))
    return text


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


# One check per kind of value.


def _typed(kind: type[T], value: Any) -> T:
    if type(value) is not kind:  # not isinstance: a bool is an int to Python, but not to TOML
        raise _wrong_type(_KINDS[kind], value)
    return value


def _not_empty(value: Any) -> dict[str, Any]:
    if not _typed(dict, value):
        raise _Fault(_SOME_MOUNT)
    return _typed(dict, value)


def _one_or_more(converter: Converter, value: Any, kind: Any) -> list[Any]:
    if isinstance(value, list):
        return converter.structure(value, list[kind])
    if not isinstance(value, str):
        raise _wrong_type("a string or a list of strings", value)
    return [converter.structure(value, kind)]


def _mapping(converter: Converter, table: dict[str, Any], key_kind: Any, value_kind: Any) -> dict[Any, Any]:
    """Build keys and values each by itself: cattrs does not look at a key any more when its value is wrong."""
    built, groups = [], []
    for side, kind in (({key: key for key in table}, dict[str, key_kind]), (table, dict[str, value_kind])):
        try:
            built.append(converter.structure(side, kind))
        except ExceptionGroup as group:
            groups.append(group)
    if groups:
        raise ExceptionGroup("keys and values", groups)
    keys, values = built
    return {keys[key]: value for key, value in values.items()}


def _whole_number(value: Any, *, least: int = 1, most: int) -> int:
    if not least <= _typed(int, value) <= most:
        raise _Fault(f"must be {least} to {most}, got {_shown(value)}")
    return _typed(int, value)


def _head_timeout(value: Any) -> float:
    if type(value) not in (int, float):
        raise _wrong_type("a number of seconds", value)
    if not 0 < value <= MAX_HEAD_TIMEOUT_S:
        raise _Fault(f"must be above 0 and at most {MAX_HEAD_TIMEOUT_S} seconds, got {_shown(value)}")
    return float(value)


def _time_limit(value: Any) -> float:
    if type(value) not in (int, float):
        raise _wrong_type("a number of seconds", value)
    if not 0 <= value <= MAX_SECONDS:
        raise _Fault(f"must be 0 (no limit) to {MAX_SECONDS} seconds, got {_shown(value)}")
    return float(value)


def _one_of(value: Any, *, names: tuple[str, ...]) -> str:
    if _typed(str, value) not in names:
        raise _Fault(f"expected one of {', '.join(map(repr, names))}, got {_shown(value)}")
    return _typed(str, value)


def _url_path(value: Any) -> str:
    if not _typed(str, value).startswith("/") or not value.isascii() or not value.isprintable() or " " in value:
        raise _Fault(f"expected a path below the mount as a browser sends it, such as '/health', got {_shown(value)}")
    return _typed(str, value)


def _policy(converter: Converter, value: Any) -> dict[str, str]:
    """Read a value for each word, or one for all of them."""
    if isinstance(value, str):
        return dict.fromkeys(policies.WORDS, converter.structure(value, _PolicyValue))
    if not isinstance(value, dict):
        raise _wrong_type("one of 'allow', 'warn', 'deny' or a table of them", value)
    return _mapping(converter, value, _PolicyWord, _PolicyValue)


def _policy_word(value: str) -> str:
    if value in policies.WORDS:
        return value
    # By the names of the functions too: "setuid" is a likely slip for "ids".
    meant = {call.rpartition(".")[2]: word for call, word in (policies.EVENTS | policies.FUNCTIONS).items()}
    meant |= {word: word for word in policies.WORDS}
    near = difflib.get_close_matches(value.lower(), meant, n=1)
    expected = f"did you mean {meant[near[0]]!r}?" if near else f"expected one of {', '.join(policies.WORDS)}"
    raise _Fault(f"unknown word; {expected}")


def _network(value: Any) -> str:
    if _typed(str, value) == "unix":
        return "unix"
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as exc:
        text = "its address has bits below the prefix; " if "host bits" in str(exc) else ""
        raise _Fault(f"{text}expected an address, a network such as '10.0.0.0/8', or 'unix', got {_shown(value)}") from None


def _host_name(value: Any) -> str:
    if not _typed(str, value):
        raise _Fault("expected a host name, got ''")
    return _host(value, value + "/")


def _new_path(value: Any, *, folder: str) -> str:
    return _path(value, folder)[0]


def _new_file(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    if os.path.isdir(path):
        raise _Fault(f"expected a file, got the folder {shown}")
    return _in_existing_folder(path, shown)


def _new_folder(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    if os.path.exists(path) and not os.path.isdir(path):
        raise _Fault(f"expected a folder, got the file {shown}")
    return _in_existing_folder(path, shown)


def _in_existing_folder(path: str, shown: str) -> str:
    if "\0" in path or not os.path.isdir(os.path.dirname(path)):
        raise _Fault(f"expected a path in an existing folder, got {shown}")
    return path


def _isolation(value: Any, *, own_gil_error: str | None) -> str:
    _one_of(value, names=ISOLATIONS)
    if value == "own-gil" and own_gil_error is not None:
        raise _Fault(own_gil_error)
    return _typed(str, value)


def _path(value: Any, folder: str) -> tuple[str, str]:
    """Return a path as an absolute one, and how to show it in a fault."""
    if not _typed(str, value):
        raise _Fault("expected a path, got ''")
    path = os.path.abspath(os.path.join(folder, os.path.expanduser(value)))
    return path, repr(value) if path == value else f"{value!r} (that is {path!r})"


def _folder(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    if not os.path.isdir(path):
        raise _Fault(f"expected an existing folder, got {shown}")
    return path


def _venv(value: Any, *, folder: str) -> str:
    path, shown = _path(value, folder)
    try:
        with open(os.path.join(path, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        raise _Fault(f"expected a virtual environment (a folder with pyvenv.cfg), got {shown}") from None
    if _venv_version(text) is None:
        raise _Fault(f"expected a Python version in its pyvenv.cfg, got none in {shown}")
    return path


def _venv_version(text: str) -> tuple[int, int] | None:
    # venv writes `version`, uv `version_info`, virtualenv both.
    found = re.search(r"^\s*version(?:_info)?\s*=\s*(\d+)\.(\d+)", text, re.MULTILINE | re.IGNORECASE)
    return None if found is None else (int(found[1]), int(found[2]))


def _venv_fault(venv: str, wanted: tuple[int, int], python: str | None) -> str | None:
    """Say why a venv, checked by `_venv`, is none of the Python that runs the app, or return None."""
    with open(os.path.join(venv, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
        version = _venv_version(file.read())
    again = f"make it anew with python{wanted[0]}.{wanted[1]} -m venv --clear {shlex.quote(venv)}"
    if version is not None and version != wanted:
        runs_on = f"gunicorn runs on Python {wanted[0]}.{wanted[1]}" if python is None else f"{python!r} is Python {wanted[0]}.{wanted[1]}"
        own = os.path.join(venv, "bin", "python")
        if python is None and version >= pythons.oldest_version() and os.path.exists(own):
            again += f", or set python = {_quoted(own)} to run the app on that, in a process of its own"
        return f"made for Python {version[0]}.{version[1]}, but {runs_on}; {again}"
    packages = f"lib/python{wanted[0]}.{wanted[1]}/site-packages"
    if wanted == pythons.HOST:
        packages = os.path.relpath(sysconfig.get_path("purelib", "venv", vars={"base": venv}), venv)
    if not os.path.isdir(os.path.join(venv, packages)):
        return f"expected the folder {packages!r} in {venv!r}, got none; {again}"
    return None


def _python(value: Any, *, folder: str) -> str:
    """Return the absolute path of another Python: a path, or the name of a command."""
    found = None if os.sep in _typed(str, value) else shutil.which(value)
    path = os.path.abspath(found) if found else _path(value, folder)[0]
    try:
        return pythons.ask(path).path
    except pythons.UnusableError as exc:
        raise _Fault(str(exc)) from exc


def _group(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", _typed(str, value)):
        raise _Fault(f"expected a name of letters, digits, '_', '.' and '-', got {_shown(value)}")
    if value == MAIN_GROUP:
        raise _Fault(f'{MAIN_GROUP!r} is the group of the mounts with isolation = "main"; choose another name')
    return _typed(str, value)


def _env_name(value: Any) -> str:
    if not value or "=" in value or "\0" in value:
        raise _Fault("expected a name that is not empty and holds no '=' and no NUL")
    if value == "SCRIPT_NAME":
        raise _Fault("remove it: the mount's pattern says it")
    return _typed(str, value)


def _env_value(value: Any) -> str:
    if not isinstance(value, (str, list, dict)):
        raise _Fault(f'{_wrong_type("a string", value)}; write it in quotes: "{_shown(value)}"')
    if "\0" in _typed(str, value):
        raise _Fault("expected a string without NUL")
    return _typed(str, value)


def _env_file(value: Any, *, folder: str) -> dict[str, str]:
    """Read a file of NAME=value lines as python-dotenv does, but for two things.

    `${NAME}` stays as written: it would be filled from the environment of gunicorn, which is not the app's, and passwords hold `$`.
    A line that does not parse, or that holds a name alone, is a fault: python-dotenv logs a warning and leaves it out.
    """
    path, shown = _path(value, folder)
    try:
        with open(path, encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except UnicodeDecodeError as exc:
        raise _Fault(f"expected UTF-8, got byte {exc.object[exc.start]:#04x} in {shown}") from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise _Fault(f"expected a readable file, got {shown}") from exc
    faults, env = [], {}
    for binding in bindings:
        text = binding.original.string
        if binding.key is None and not binding.error:
            continue  # a comment or an empty line
        try:
            if binding.key is None or binding.value is None:
                raise _Fault(f"expected NAME=value, got {_shown(text.strip())}")
            env[_env_name(binding.key)] = _env_value(binding.value)
        except _Fault as fault:
            line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
            name = f"{binding.key}: " if binding.value is not None else ""
            faults.append(_Fault(f"{value!r}, line {line}: {name}{fault}"))
    if faults:
        raise ExceptionGroup("env_file", faults)
    return env


# Patterns.


def _new_pattern(value: str, *, seen: dict[_Pattern, str]) -> _Pattern:
    pattern = _pattern(value)
    if pattern in seen:
        raise _Fault(f"the same pattern as {_quoted(seen[pattern])}; keep one of them")
    seen[pattern] = value
    return pattern


def _pattern(value: str) -> _Pattern:
    """Read `[host]/prefix`, as the keys of Go's ServeMux; "/blog/" is "/blog"."""
    if not value:
        raise _Fault('expected a pattern, as in "/blog" or "api.example.com/", got \'\'')
    if any(char.isspace() or unicodedata.category(char) == "Cc" for char in value):
        raise _Fault(f"a pattern may not hold spaces and control characters, got {_shown(value)}")
    if "://" in value:
        raise _Fault(f"expected a pattern without a scheme: {value.partition('://')[2]!r}")
    host, slash, rest = value.partition("/")
    host = _host(host, value) if host else ""
    if not slash:
        raise _Fault(f"write {_quoted(value + '/')} for the whole host")
    path = slash + rest
    if found := re.search("%[0-9A-Fa-f]{2}", path):
        raise _Fault(f"write it decoded: requests are matched after percent-decoding, got {found[0]!r}")
    if found := re.search(r"[?#]", path):
        raise _Fault(f"a pattern is a path: no query and no fragment, got {found[0]!r}")
    if found := re.search(r"//|/\.\.?(?=/|$)", path):
        raise _Fault(f"expected no '//', '.' or '..': no request path is normalised, so they would be matched literally, got {found[0]!r}")
    return _Pattern(host, path.removesuffix("/"))


def _host(host: str, pattern: str) -> str:
    if not host.isascii() and ("." in host or "/" in pattern):
        raise _Fault(f"a host must be ASCII, got {host!r}; write the form that begins with 'xn--'")
    if found := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\]", host):
        try:
            return f"[{ipaddress.IPv6Address(found[1])}]"
        except ValueError:
            raise _Fault(f"expected an IPv6 address in brackets, got {host!r}") from None
    if found := re.fullmatch(r"(.*[^:]):\d*", host):
        raise _Fault(f"expected a host without a port, got {host!r}; ports belong to gunicorn's bind")
    if "/" not in pattern and "." not in host and host.lower() != "localhost":
        raise _Fault(f"expected {'/' + pattern!r} (a pattern begins with a slash or a host), got {pattern!r}")
    name = host.lower().removesuffix(".")
    if len(name) > MAX_HOST_CHARS or not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", name):
        raise _Fault(f"expected a host of letters, digits, '-', '_' and '.', got {host!r}")
    return name


# The app's grammar: gunicorn's `module:attribute`, and mod_wsgi's script files.


def _app(value: Any, *, folder: str) -> App:
    """Read "module", "module:name", "module:factory('x', debug=True)", "path.wsgi" or "path.wsgi:name"."""
    target, colon, call = _typed(str, value).partition(":")
    if not target:
        raise _Fault(f"expected an app, as in 'shop.wsgi:application' or 'shop/app.wsgi', got {_shown(value)}")
    call = _call(call, value) if colon else "application"
    # "shop.wsgi:application" is the attribute of a module, "shop.wsgi" alone a file: only a slash makes a file of the former.
    if "/" in target or (not colon and target.endswith(SCRIPT_SUFFIXES)):
        path, shown = _path(target, folder)
        if not os.path.isfile(path):
            module = "" if "/" in target else f"; for the module write {target + ':application'!r}"
            raise _Fault(f"expected an existing script file, got {shown}{module}")
        return App(kind="script", target=path, call=call)
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in target.split(".")):
        raise _Fault(f"expected a dotted module name, got {_shown(target)}; a path to a script holds a slash")
    return App(kind="module", target=target, call=call)


def _hook(value: Any) -> str:
    """Check an import string of a function."""
    module, _, function = _typed(str, value).partition(":")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in (*module.split("."), function)):
        raise _Fault(f"expected 'module:function', got {_shown(value)}")
    return _typed(str, value)


def _call(call: str, app: str) -> str:
    """Check what stands after the colon as gunicorn does at run time: a name, or a call of a name with literal arguments."""
    wrong = _Fault(f"expected a name or a call with literal arguments after ':', as in create_app(debug=True), got {_shown(app)}")
    try:
        expression = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise wrong from None
    if isinstance(expression, ast.Name):
        return call
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise wrong
    for argument in [*expression.args, *(word.value for word in expression.keywords)]:
        try:
            ast.literal_eval(argument)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            source = ast.get_source_segment(call, argument)
            raise _Fault(f"expected literal arguments, got {source!r} in {_shown(app)}; compute it inside the factory") from None
    if any(word.arg is None for word in expression.keywords):
        raise wrong
    return call
