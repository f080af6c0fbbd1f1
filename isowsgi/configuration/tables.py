"""The tables of a config file, as they are written: which keys there are, and what kind of value each has."""

from typing import Any, NewType

import attrs

from isowsgi.configuration.checks import Pattern
from isowsgi.configuration.values import CRASH_WINDOW_S, CRASHES, HEAD_TIMEOUT_S, INDEX, MAX_LEAKED, MAX_STUCK, REDIRECT_STATUS, App, Files

# Each kind of value has its own type, by which cattrs finds its check; None: not set.

Folder = NewType("Folder", str)
Folders = NewType("Folders", tuple[str, ...])
Venv = NewType("Venv", str)
Python = NewType("Python", str)
Group = NewType("Group", str)
EnvName = NewType("EnvName", str)
EnvValue = NewType("EnvValue", str)
Env = NewType("Env", dict[str, str])
EnvFile = NewType("EnvFile", dict[str, str])
EnvFiles = NewType("EnvFiles", dict[str, str])
Threads = NewType("Threads", int)
Isolation = NewType("Isolation", str)
Instances = NewType("Instances", int)
Seconds = NewType("Seconds", float)
LongSeconds = NewType("LongSeconds", float)
Switch = NewType("Switch", bool)
Count = NewType("Count", int)
AtLeastOne = NewType("AtLeastOne", int)
Size = NewType("Size", int)
Path = NewType("Path", str)
NewFile = NewType("NewFile", str)
NewFolder = NewType("NewFolder", str)
UrlPath = NewType("UrlPath", str)
Hook = NewType("Hook", str)
Module = NewType("Module", str)
Modules = NewType("Modules", tuple[str, ...])
Replace = NewType("Replace", str)
Copies = NewType("Copies", str)
LogFormat = NewType("LogFormat", str)
LazyImports = NewType("LazyImports", str)
OnCrash = NewType("OnCrash", str)
PolicyWord = NewType("PolicyWord", str)
PolicyValue = NewType("PolicyValue", str)
Policy = NewType("Policy", dict[str, str])
Network = NewType("Network", str)
Networks = NewType("Networks", tuple[str, ...])
Glob = NewType("Glob", str)
Globs = NewType("Globs", tuple[str, ...])
HostName = NewType("HostName", str)
HostNames = NewType("HostNames", tuple[str, ...])
MountHost = NewType("MountHost", str)
MaxLive = NewType("MaxLive", int)
RedirectTarget = NewType("RedirectTarget", str)
RedirectStatus = NewType("RedirectStatus", int)
User = NewType("User", str)
Umask = NewType("Umask", str)
Nice = NewType("Nice", int)
MemoryLimit = NewType("MemoryLimit", int)
FilesLimit = NewType("FilesLimit", int)
CpuLimit = NewType("CpuLimit", float)
ProcessesLimit = NewType("ProcessesLimit", int)
ProcessLimits = NewType("ProcessLimits", dict[str, float])
SandboxValue = NewType("SandboxValue", dict[str, tuple[str, ...]])
Paths = NewType("Paths", tuple[str, ...])
Peer = NewType("Peer", str)
Peers = NewType("Peers", tuple[str, ...])
Listener = NewType("Listener", str)
Listeners = NewType("Listeners", tuple[str, ...])
MountHosts = NewType("MountHosts", tuple[str, ...])
Served = NewType("Served", str)
FileName = NewType("FileName", str)
BelowFolder = NewType("BelowFolder", str)
TlsHost = NewType("TlsHost", str)
TlsHosts = NewType("TlsHosts", tuple[str, ...])


@attrs.frozen(kw_only=True)
class Settings:
    """`[defaults]`: what can be said once for every mount."""

    pythonpath: Folders | None = None
    venv: Venv | None = None
    python: Python | None = None
    env: Env | None = None
    env_file: EnvFiles | None = None
    threads: Threads | None = None
    isolation: Isolation | None = None
    group: Group | None = None
    instances: Instances | None = None
    lazy: Switch | None = None
    idle_timeout: LongSeconds | None = None
    boot_timeout: LongSeconds | None = None
    request_timeout: LongSeconds | None = None
    body_timeout: LongSeconds | None = None
    send_timeout: LongSeconds | None = None
    min_rate: Count | None = None
    queue: Count | None = None
    queue_timeout: LongSeconds | None = None
    warmup: UrlPath | None = None
    touch: Path | None = None
    watch: Switch | None = None
    replace: Replace | None = None
    max_requests: Count | None = None
    max_requests_jitter: Count | None = None
    max_age: LongSeconds | None = None
    max_memory: Size | None = None
    log: NewFile | None = None
    slow_request: LongSeconds | None = None
    server_timing: Switch | None = None
    post_fork: Hook | None = None
    on_boot: Hook | None = None
    on_drain: Hook | None = None
    on_request_start: Hook | None = None
    on_request_end: Hook | None = None
    on_crash: OnCrash | None = None
    preload: Modules | None = None
    copies: Copies | None = None
    lazy_imports: LazyImports | None = None
    eager: Modules | None = None
    policy: Policy | None = None
    https_only: Switch | None = None
    user: User | None = None
    umask: Umask | None = None
    working_directory: Folder | None = None
    nice: Nice | None = None
    limits: ProcessLimits | None = None
    sandbox: SandboxValue | None = None


@attrs.frozen(kw_only=True)
class FilesSettings:
    """How files are served."""

    index: FileName = FileName(INDEX)
    fallback: BelowFolder = BelowFolder("")
    follow_symlinks: Switch = Switch(False)
    expires: Count | None = None

    def files(self, path: str) -> Files:
        return Files(path=path, index=self.index, fallback=self.fallback, follow_symlinks=self.follow_symlinks, expires=self.expires)


@attrs.frozen(kw_only=True)
class FilesTable(FilesSettings):
    """A mount that is only files."""

    static: Served
    hosts: MountHosts | None = None
    https_only: Switch | None = None


@attrs.frozen(kw_only=True)
class FolderTable(FilesSettings):
    """Files below a mount that has an app."""

    path: Served


StaticFolders = NewType("StaticFolders", dict[str, FolderTable])


@attrs.frozen(kw_only=True)
class MountTable(Settings):
    app: App
    static: StaticFolders | None = None
    hosts: MountHosts | None = None
    max_live: MaxLive | None = None
    exists: Path | None = None


@attrs.frozen(kw_only=True)
class LimitsTable:
    """What a process may take, see `isowsgi.configuration.walls`."""

    memory: MemoryLimit | None = None
    cpu: CpuLimit | None = None
    processes: ProcessesLimit | None = None
    files: FilesLimit | None = None
    file_size: Size | None = None


@attrs.frozen(kw_only=True)
class SandboxTable:
    """What is allowed in a sandbox, beside what any app needs."""

    read: Paths | None = None
    write: Paths | None = None
    connect: Peers | None = None
    listen: Listeners | None = None


@attrs.frozen(kw_only=True)
class RedirectTable:
    """A mount without an app."""

    redirect: RedirectTarget
    status: RedirectStatus = RedirectStatus(REDIRECT_STATUS)
    hosts: MountHosts | None = None


@attrs.frozen(kw_only=True)
class AcceptorTable:
    head_timeout: Seconds = Seconds(HEAD_TIMEOUT_S)


@attrs.frozen(kw_only=True)
class WorkerTable:
    max_stuck: Count = Count(MAX_STUCK)
    max_leaked: Count = Count(MAX_LEAKED)
    max_rss: Count = Count(0)
    crashes: AtLeastOne = AtLeastOne(CRASHES)
    crash_window: LongSeconds = LongSeconds(CRASH_WINDOW_S)
    fork_server: Switch = Switch(False)
    lame_duck: LongSeconds = LongSeconds(0.0)


@attrs.frozen(kw_only=True)
class ControlTable:
    enabled: Switch = Switch(True)
    folder: NewFolder | None = None
    watch: Switch = Switch(False)
    shell: Switch = Switch(False)


@attrs.frozen(kw_only=True)
class LogTable:
    format: LogFormat = LogFormat("text")
    priorities: Switch = Switch(False)


@attrs.frozen(kw_only=True)
class StatusTable:
    allow: Networks = Networks(())
    hosts: HostNames = HostNames(())


@attrs.frozen(kw_only=True)
class TlsTable:
    hosts: TlsHosts
    certificate: Path
    key: Path | None = None


TlsTables = NewType("TlsTables", tuple[TlsTable, ...])

# The addresses of each mount, its pattern first, and what is said of it.
Mounts = NewType("Mounts", tuple[tuple[tuple[Pattern, ...], MountTable | RedirectTable | FilesTable], ...])


@attrs.frozen(kw_only=True)
class ConfigTables:
    mounts: Mounts
    include: Globs = Globs(())
    defaults: Settings = Settings()
    acceptor: AcceptorTable = AcceptorTable()
    worker: WorkerTable = WorkerTable()
    control: ControlTable = ControlTable()
    status: StatusTable = StatusTable()
    log: LogTable = LogTable()
    tls: TlsTables = TlsTables(())


@attrs.frozen(kw_only=True)
class IncludedTables:
    """A file that the main one includes."""

    mounts: Mounts
    defaults: Settings = Settings()


def settings_of(table: Settings | RedirectTable | FilesTable) -> dict[str, Any]:
    """Return what a table says, the variables of its files among its environment."""
    said = {name: value for name, value in attrs.asdict(table, recurse=False).items() if value is not None}
    env = said.pop("env_file", {}) | said.get("env", {})
    return said | {"env": env} if env else said
