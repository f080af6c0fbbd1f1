"""Checks a config file's tables: by kind of value, each fault with its place."""

import difflib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn

from isowsgi.configuration import accounts, checks, foreign, places, sizes, targets, variables, walls
from isowsgi.configuration.checks import Pattern
from isowsgi.configuration.faults import Fault, at, quoted, wrong_type
from isowsgi.configuration.merging import joint_faults
from isowsgi.configuration.tables import (
    AtLeastOne,
    BelowFolder,
    Copies,
    Count,
    CpuLimit,
    Env,
    EnvFile,
    EnvFiles,
    EnvName,
    EnvValue,
    FileName,
    FilesLimit,
    FilesTable,
    Folder,
    Folders,
    FolderTable,
    Glob,
    Globs,
    Group,
    Hook,
    HostName,
    HostNames,
    Instances,
    Isolation,
    LazyImports,
    LimitsTable,
    Listener,
    Listeners,
    LogFormat,
    LongSeconds,
    MaxLive,
    MemoryLimit,
    Module,
    Modules,
    MountHost,
    MountHosts,
    Mounts,
    MountTable,
    Network,
    Networks,
    NewFile,
    NewFolder,
    Nice,
    OnCrash,
    Path,
    Paths,
    Peer,
    Peers,
    Policy,
    PolicyValue,
    PolicyWord,
    ProcessesLimit,
    ProcessLimits,
    Python,
    RedirectStatus,
    RedirectTable,
    RedirectTarget,
    Replace,
    SandboxTable,
    SandboxValue,
    Seconds,
    Served,
    Size,
    StaticFolders,
    Switch,
    Threads,
    TlsHost,
    TlsHosts,
    TlsTable,
    TlsTables,
    Umask,
    UrlPath,
    User,
    Venv,
    settings_of,
)
from isowsgi.configuration.values import (
    COPIES,
    CRASH_ACTIONS,
    LAZY_IMPORTS,
    LOG_FORMATS,
    MAX_COUNT,
    MAX_INSTANCES,
    MAX_LIVE,
    MAX_THREADS,
    REDIRECT_STATUSES,
    REPLACE_ORDERS,
    App,
)
from isowsgi.shared import policies

# What a mount's table may say, with an app, with a redirect or with files.
_KEYS = frozenset(field.name for kind in (MountTable, RedirectTable, FilesTable) for field in attrs.fields(kind))


def make_converter(
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

    @cache
    def form(kind: type) -> Callable[[Any], Any]:
        """Return the check of a kind of table. Made for the first such table: it takes milliseconds, and a file has few of the kinds."""
        build: Callable[[Any, Any], Any] = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)
        return lambda value: build(checks.typed(dict, value), kind)

    converter.register_structure_hook_factory(attrs.has, lambda kind: lambda value, _: form(kind)(value))
    kinds = _checks_by_kind(converter, folder, own_gil_error) | _checks_of_files(converter, folder)
    some = checks.not_empty if needs_mounts else partial(checks.typed, dict)
    kinds[Mounts] = lambda value: _mounts(converter, some(value), seen, where)
    for kind, check in kinds.items():
        converter.register_structure_hook(kind, partial(lambda value, _, check: check(value), check=check))
    converter.register_structure_hook(FolderTable, partial(_files_below, converter, form))
    given = _sound_defaults(converter, defaults)

    def mount_check(value: Any, kind: Any) -> Any:
        if not isinstance(value, (str, dict)):
            raise wrong_type("an app (a string) or a table", value)
        if isinstance(value, str):
            return MountTable(app=targets.app(value, folder=folder))
        if "redirect" in value and "app" not in value:
            if "static" in value:
                raise at(("static",), Fault("a mount is a redirect or files, not both; remove one of them"))
            return form(RedirectTable)(value)
        if "static" in value and "app" not in value:
            return form(FilesTable)(value)
        table = form(kind)(value)
        # Those that its own keys are to blame for are told with the rest; what the defaults bring about is found when all is merged.
        said = settings_of(table)
        faults = [at((key,), fault) for key, fault in joint_faults({**given, **said}) if key in said]
        if faults:
            raise ExceptionGroup("mount", faults)
        return table

    converter.register_structure_hook(MountTable, mount_check)
    return converter


def _mounts(converter: Converter, tables: dict[str, Any], seen: dict[Pattern, str], where: str) -> Mounts:
    """Read a table of mounts; no two may have one address."""
    faults: list[Exception] = []
    addresses: list[tuple[Pattern, ...]] = []
    plain: dict[str, Any] = {}
    for text, table in tables.items():
        if (host := _unquoted_host(text, table)) is not None:
            faults.append(at((text,), Fault(f"a pattern with dots stands in quotes: {quoted(host + '/')} = ...")))
            continue
        plain[text] = table
        try:
            addresses.append(checks.new_addresses(text, table, seen, where))
            faults += checks.note_files(text, table, addresses[-1], seen, where)
        except Fault as fault:
            faults.append(at((text,), fault))
    try:
        said = converter.structure(plain, dict[str, MountTable])
    except ExceptionGroup as group:
        faults.append(group)
    if faults:
        raise ExceptionGroup("mounts", faults)
    return Mounts(tuple(zip(addresses, said.values(), strict=True)))


def _unquoted_host(key: str, value: Any) -> str | None:
    """Return the host that stands without quotes before a mount, of which TOML makes tables in tables; None: there is none such."""
    names = [key]
    while isinstance(value, dict) and len(value) == 1 and _KEYS.isdisjoint(value):
        ((name, value),) = value.items()
        names.append(name)
    is_mount = isinstance(value, str) or (isinstance(value, dict) and not _KEYS.isdisjoint(value))
    is_key = any(
        foreign.meaning(name) or difflib.get_close_matches(name, _KEYS, n=1) for name in names[1:]
    )  # a slip, and no part of a host
    is_host = len(names) > 1 and not is_key and not any(set(name) & set("/. ") for name in names)
    return ".".join(names) if is_mount and is_host else None


def _checks_by_kind(converter: Converter, folder: str, own_gil_error: str | None) -> dict[Any, Callable[[Any], Any]]:
    """Return the check of each kind of value."""
    found: dict[Any, Callable[[Any], Any]] = {
        App: partial(targets.app, folder=folder),
        Folder: partial(places.folder, folder=folder),
        Folders: lambda value: tuple(checks.one_or_more(converter, value, Folder)),
        Venv: partial(places.venv, folder=folder),
        Python: partial(places.python, folder=folder),
        Group: checks.group,
        EnvName: variables.env_name,
        EnvValue: variables.env_value,
        Env: lambda value: checks.mapping(converter, checks.typed(dict, value), EnvName, EnvValue),
        EnvFile: partial(variables.env_file, folder=folder),
        EnvFiles: lambda value: {n: v for file in checks.one_or_more(converter, value, EnvFile) for n, v in file.items()},
        Threads: partial(checks.whole_number, most=MAX_THREADS),
        Isolation: partial(checks.isolation, own_gil_error=own_gil_error),
        Instances: partial(checks.whole_number, most=MAX_INSTANCES),
        Seconds: checks.head_timeout,
        LongSeconds: checks.time_limit,
        Switch: partial(checks.typed, bool),
        Count: partial(checks.whole_number, least=0, most=MAX_COUNT),
        AtLeastOne: partial(checks.whole_number, most=MAX_COUNT),
        Size: sizes.size,
        Path: partial(places.new_path, folder=folder),
        NewFile: partial(places.new_file, folder=folder),
        NewFolder: partial(places.new_folder, folder=folder),
        UrlPath: checks.url_path,
        Hook: targets.hook,
        Module: targets.module,
        Modules: lambda value: tuple(dict.fromkeys(checks.one_or_more(converter, value, Module))),
        PolicyWord: checks.policy_word,
        PolicyValue: partial(checks.one_of, names=policies.VALUES),
        Policy: partial(_policy, converter),
        Network: checks.network,
        Networks: lambda value: tuple(checks.one_or_more(converter, value, Network)),
        Glob: checks.glob_pattern,
        Globs: lambda value: tuple(checks.one_or_more(converter, value, Glob)),
        HostName: checks.host_name,
        HostNames: lambda value: tuple(checks.one_or_more(converter, value, HostName)),
        MaxLive: partial(checks.whole_number, most=MAX_LIVE),
        RedirectTarget: checks.redirect,
        RedirectStatus: partial(checks.one_of_numbers, numbers=REDIRECT_STATUSES),
        MountHost: checks.mount_host,
        MountHosts: lambda value: checks.mount_hosts(converter, value, MountHost),
    }
    return found | _checks_of_words() | _checks_of_walls(converter) | _checks_of_tls(converter)


def _checks_of_words() -> dict[Any, Callable[[Any], Any]]:
    """Return the check of each kind of value that is one of a few words."""
    kinds = {Replace: REPLACE_ORDERS, Copies: COPIES, LogFormat: LOG_FORMATS, LazyImports: LAZY_IMPORTS, OnCrash: CRASH_ACTIONS}
    return {kind: partial(checks.one_of, names=names) for kind, names in kinds.items()}


def _checks_of_tls(converter: Converter) -> dict[Any, Callable[[Any], Any]]:
    return {
        TlsHost: checks.tls_host,
        TlsHosts: lambda value: checks.mount_hosts(converter, value, TlsHost),
        TlsTables: partial(_certificates, converter),
    }


def _checks_of_walls(converter: Converter) -> dict[Any, Callable[[Any], Any]]:
    return {
        User: accounts.user,
        Umask: walls.umask,
        Nice: walls.nice,
        MemoryLimit: lambda value: walls.at_least(sizes.size(value), least=walls.LEAST_MEMORY, text=repr(sizes.text(walls.LEAST_MEMORY))),
        FilesLimit: lambda value: walls.at_least(
            checks.whole_number(value, least=0, most=MAX_COUNT), least=walls.LEAST_FILES, text=str(walls.LEAST_FILES)
        ),
        CpuLimit: walls.cpu,
        ProcessesLimit: lambda value: walls.at_least(
            checks.whole_number(value, least=0, most=MAX_COUNT), least=walls.LEAST_PROCESSES, text=str(walls.LEAST_PROCESSES)
        ),
        ProcessLimits: lambda value: walls.limits(attrs.asdict(converter.structure(checks.typed(dict, value), LimitsTable))),
        Paths: lambda value: tuple(_some(converter, value, Path)),
        Peer: walls.peer,
        Peers: lambda value: tuple(_some(converter, value, Peer)),
        Listener: walls.listener,
        Listeners: lambda value: tuple(_some(converter, value, Listener)),
        SandboxValue: lambda value: value if value is False else walls.sandbox(_sandbox_table(converter, value)),
    }


def _checks_of_files(converter: Converter, folder: str) -> dict[Any, Callable[[Any], Any]]:
    """Return the check of each kind of value that says how files are served."""
    return {
        Served: partial(places.served, folder=folder),
        StaticFolders: partial(_static_folders, converter),
        FileName: checks.file_name,
        BelowFolder: checks.below_folder,
    }


def _some(converter: Converter, value: Any, kind: Any) -> list[Any]:
    return [] if value == [] else checks.one_or_more(converter, value, kind)


def _sandbox_table(converter: Converter, value: Any) -> dict[str, Any]:
    """Read what is allowed in a sandbox; `true` is nothing beside what any app needs."""
    if value is True:
        return {}
    if not isinstance(value, dict):
        raise wrong_type("true, false or a table", value)
    return attrs.asdict(converter.structure(value, SandboxTable), recurse=False)


def _sound_defaults(converter: Converter, defaults: Any) -> dict[str, Any]:
    """Return those of the defaults that `joint_faults` looks at, as far as they are in order."""
    sound = {}
    for key, kind in (("isolation", Isolation), ("python", Python)):
        if isinstance(defaults, dict) and key in defaults:
            try:
                sound[key] = converter.structure(defaults[key], kind)
            except Fault:  # reported at its place
                continue
    return sound


def _files_below(converter: Converter, form: Callable[[type], Callable[[Any], Any]], value: Any, kind: type) -> Any:
    """Read what a path below a mount is: a folder or a file, or a table that says more of it."""
    if not isinstance(value, (str, dict)):
        raise wrong_type("a folder or file (a string), or a table", value)
    return FolderTable(path=converter.structure(value, Served)) if isinstance(value, str) else form(kind)(value)


def _static_folders(converter: Converter, value: Any) -> dict[str, FolderTable]:
    """Read the folders below a mount, by their paths there as they are matched."""
    if not isinstance(value, dict):
        raise wrong_type('a table of folders by their paths below the mount, as in { "/static" = "static" }', value)
    found: dict[str, FolderTable] = converter.structure(value, dict[str, FolderTable])
    return {path.removesuffix("/"): table for path, table in found.items()}


def _certificates(converter: Converter, value: Any) -> TlsTables:
    """Read the `[[tls]]` tables; no two may have one host."""
    if not isinstance(value, list):
        raise Fault("write [[tls]], in two pairs of brackets: there may be one for each certificate")
    tables = converter.structure(value, list[TlsTable])
    seen: dict[str, int] = {}
    faults = []
    for number, table in enumerate(tables):
        for host in dict.fromkeys(table.hosts):
            if host in seen:
                faults.append(at((number, "hosts"), Fault(f"{quoted(host)} is in tls[{seen[host]}] too; keep one of them")))
            seen.setdefault(host, number)
    if faults:
        raise ExceptionGroup("tls", faults)
    return TlsTables(tuple(tables))


def _policy(converter: Converter, value: Any) -> dict[str, str]:
    """Read a value for each word, or one for all of them."""
    if isinstance(value, str):
        return dict.fromkeys(policies.WORDS, converter.structure(value, PolicyValue))
    if not isinstance(value, dict):
        raise wrong_type("one of 'allow', 'warn', 'deny' or a table of them", value)
    return checks.mapping(converter, value, PolicyWord, PolicyValue)
