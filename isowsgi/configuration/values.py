"""What a config file says, checked: `Config` and its parts; and the limits and defaults of all settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

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

# In `preload`: the modules that the mounts of a venv have in common, as their boots tell.
AUTO = "auto"
CRASH_WINDOW_S = 600.0
HOOKS = ("post_fork", "on_boot", "on_drain", "on_request_start", "on_request_end")
COPIES = ("load", "fork")  # how each of a mount's instances comes to its app
REPLACE_ORDERS = ("load-first", "stop-first")
LAZY_IMPORTS = ("normal", "all")  # the modes of sys.set_lazy_imports, Python 3.15
CRASH_ACTIONS = ("quarantine", "process", "serve")
REDIRECT_STATUSES = (301, 302, 303, 307, 308)  # RFC 9110 section 15.4, those that lead to another address
INDEX = "index.html"  # nginx's and Apache's, too
FILES_GROUP = "static files"  # of all mounts that are only files: they share an interpreter. No other group can have a space in its name
FILES_THREADS = 16  # of that interpreter; a client that takes a large file slowly has one for as long
REDIRECT_STATUS = 302  # what Apache and Caddy answer where nothing is said: no browser remembers it
MAX_LIVE = 1000  # tenants of a template that have an instance at a time; an interpreter of a small app has 10 MiB
MAX_HOST_CHARS = 253  # RFC 1035 section 2.3.4, as text
LONG_INT_BITS = 1000  # shown in part: nobody reads more, and str() refuses an int of more than 4,300 digits


@attrs.frozen(kw_only=True)
class App:
    """Where the WSGI callable is: an object of a module or of a script file."""

    kind: str  # "module" or "script"
    target: str  # dotted module name, or the script's absolute path
    call: str  # a name ("application"), or a call with literal arguments ('create_app("x", debug=True)')

    def __str__(self) -> str:
        """Return it as people read it, and as it may be written in the config file."""
        return f"{self.target}:{self.call}" if self.target else "-"

    @property
    def is_status(self) -> bool:
        """Whether it is the status page."""
        return self.kind == "module" and self.target == "isowsgi.status"


@attrs.frozen(kw_only=True)
class Files:
    """What a mount serves that is only files, by `isowsgi.files`."""

    path: str  # absolute; of a folder, or of one file
    index: str = INDEX  # the file of a folder; "": none
    fallback: str = ""  # path below the folder, of what is served in place of what is not there
    follow_symlinks: bool = False  # whether links may lead out of the folder
    expires: int | None = None  # seconds for which a client may keep them; None: nothing is said

    def app(self) -> App:
        """Return the app that serves them."""
        more = {name: value for name, value in attrs.asdict(self).items() if name != "path"}
        call = ", ".join([repr(self.path), *(f"{name}={value!r}" for name, value in more.items())])
        return App(kind="module", target="isowsgi.files", call=f"folder({call})")


# What stands for the app of a mount that has none; people see "-". It is never loaded.
NO_APP = App(kind="module", target="", call="")


@attrs.frozen(kw_only=True)
class Mount:
    """A URL pattern with its app and settings."""

    number: int = attrs.field(default=0, eq=False)  # its place in the config file
    pattern: str  # normalised, for people: "/", "/blog", "api.example.com/v1"
    host: str = ""  # lower case, without port; "" is any host, "*.example.com" any with one label more than the rest
    hosts: tuple[str, ...] = ()  # more of them, at which its path is its too
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
    replace: str = "load-first"  # or "stop-first": its old instances end before new ones are loaded, and requests wait meanwhile
    max_requests: int = 0  # after which an instance is replaced; 0: never
    max_requests_jitter: int = 0  # a random number up to this is added
    max_age: float = 0.0  # seconds; 0: for ever
    max_memory: int = 0  # bytes that an instance may have before it is replaced; 0: no limit
    log: str | None = None  # absolute; a file for its lines, instead of gunicorn's error log
    slow_request: float = 0.0  # seconds after which a request's stack is logged once; 0: never
    server_timing: bool = False  # whether responses say in a Server-Timing field where their time went
    post_fork: str | None = None  # hooks: "module:function" of the app's interpreter; see inside/hooks.py
    on_boot: str | None = None
    on_drain: str | None = None
    on_request_start: str | None = None
    on_request_end: str | None = None
    on_crash: str = "quarantine"  # or "process", "serve": what becomes of a mount that keeps crashing the worker
    file: str | None = attrs.field(default=None, eq=False)  # absolute; the included file that it is from
    fault: str = ""  # of that file, if it has any: the mount is not served then
    preload: tuple[str, ...] = ()  # packages that its process shares with others of the same venv, or AUTO; see inside/forkserver.py
    copies: str = "load"  # or "fork": its processes are forked from one that has loaded the app; see inside/original.py
    lazy_imports: str | None = None  # or "all", "normal": whether its imports are carried out at first use; None: as Python was started
    eager: tuple[str, ...] = ()  # modules whose imports are carried out where they stand; see inside/laziness.py
    policy: Mapping[str, str] = attrs.field(factory=dict, hash=False)  # "warn" or "deny" by word; the others are allowed
    user: str = ""  # "shop" or "shop:www-data"; "": gunicorn's. This and the next five are for a process
    umask: str = ""  # octal digits; "": gunicorn's
    working_directory: str | None = None  # absolute; None: gunicorn's
    nice: int = 0  # of its process, if gunicorn's own is lower
    limits: Mapping[str, float] = attrs.field(factory=dict, hash=False)  # "memory", "cpu", "processes", "files", "file_size", by name
    sandbox: Mapping[str, tuple[str, ...]] | None = attrs.field(default=None, hash=False)  # what is allowed in it, by word; None: none
    max_live: int = 0  # tenants that have an instance at a time; 0: it is a mount as any other
    exists: str | None = None  # absolute; with "{1}" for a tenant's label: it is one only while this is there
    https_only: bool = False  # whether requests that came without TLS are sent to the same address with it
    files: Files | None = None  # what it serves, if that is only files
    redirect: str = ""  # where its requests are sent, by the acceptor; it has no app then
    status: int = REDIRECT_STATUS  # of that answer

    @property
    def needs_process(self) -> bool:
        """Whether "auto" means a process, as only that can have what is asked for."""
        wanted = (self.python, self.user, self.umask, self.working_directory, self.nice, self.limits, self.sandbox is not None)
        return any(map(bool, wanted))

    @property
    def sharing(self) -> tuple[str, str]:
        """Return what is the same for mounts that share an instance, and for no others of a config."""
        return ("mount", self.pattern) if self.group is None else ("group", self.group)


@attrs.frozen(kw_only=True)
class Limits:
    """`[worker]`: what a worker may come to before it is replaced, gracefully; how it starts processes, and how it stops."""

    max_stuck: int = MAX_STUCK  # instances with a thread that does not end
    max_leaked: int = MAX_LEAKED  # interpreters ended on a release that keeps their memory
    max_rss: int = 0  # MiB; 0: no limit
    crashes: int = CRASHES  # of a worker with this mount alone in flight, before `on_crash` acts
    crash_window: float = CRASH_WINDOW_S  # seconds in which they count
    fork_server: bool = False  # whether mounts' processes are forked from one that has loaded what serves
    lame_duck: float = 0.0  # seconds for which all is served, but /ready says 503, once gunicorn was told to stop; 0: not at all


@attrs.frozen(kw_only=True)
class Control:
    """`[control]`: the socket by which `isowsgi status` and the like reach a worker."""

    enabled: bool = True
    folder: str | None = None  # absolute; None: see `shared.sockets.own_folders`
    watch: bool = False  # whether a change of the config files is applied by itself
    shell: bool = False  # whether `isowsgi shell` may run code in the apps


LOG_FORMATS = ("text", "json")


@attrs.frozen(kw_only=True)
class Log:
    """`[log]`: how lines of gunicorn's error log look."""

    format: str = "text"  # one of LOG_FORMATS
    priorities: bool = False  # whether each line begins with its priority, for journald


@attrs.frozen(kw_only=True)
class Status:
    """`[status]`: who may see the status page and the metrics, besides clients on this machine that come through no proxy."""

    allow: tuple[str, ...] = ()  # networks, "10.0.0.0/8"; and "unix": clients of a Unix socket
    hosts: tuple[str, ...] = ()  # names that the page is asked for under, besides addresses and "localhost"; lower case


@attrs.frozen(kw_only=True)
class Certificate:
    """`[[tls]]`: what clients get that ask for one of some hosts."""

    hosts: tuple[str, ...]  # lower case; "*.example.com" is any with one label more than the rest
    certificate: str  # absolute; PEM, with its chain
    key: str  # absolute; the same file if it holds both


@attrs.frozen(kw_only=True)
class Config:
    """A whole config file, checked."""

    path: str  # absolute
    mounts: tuple[Mount, ...]  # in the order of the file, then those of each included file
    include: tuple[str, ...] = attrs.field(default=(), eq=False)  # globs of more files, from the folder of this one
    faults: tuple[str, ...] = attrs.field(default=(), eq=False)  # of included files, as `ConfigError` has them
    faulty: tuple[str, ...] = attrs.field(default=(), eq=False)  # included files that have faults, or are empty; absolute
    head_timeout: float = HEAD_TIMEOUT_S  # seconds that a client has for sending a request's head
    limits: Limits = Limits()
    control: Control = Control()
    status: Status = Status()
    log: Log = Log()
    tls: tuple[Certificate, ...] = ()  # no host is in two of them


def numbered(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """Return mounts with their places as numbers; those that have them already as they are, for a copy takes a worker's time."""
    return tuple(mount if mount.number == number else attrs.evolve(mount, number=number) for number, mount in enumerate(mounts))


def spellings_of(name: str) -> tuple[str, ...]:
    """Return the patterns that people may mean by a mount's name: hosts are in lower case, and only a root ends with a slash."""
    host, slash, path = name.partition("/")
    name = host.lower() + slash + path
    return (name, name.removesuffix("/") or "/") if slash else (name, name + "/")
