"""What the worker and its instances say to each other: the boot order, orders and reports.

Each is one JSON object (`wire` has the encoding), at boot as a text, then as a packet. A child process may be broken, hostile, or of
another release: what does not fit is a `MessageError`.
"""

from typing import Any

import isowsgi
from isowsgi.shared import wire
from isowsgi.shared.containment import MAX_ERROR_CHARS
from isowsgi.shared.routing import Route
from isowsgi.shared.wire import MessageError, Value, plain

# Longest packet that is taken. A sender's limit is its socket's buffer, 208 KiB by default; see `shortened`.
MAX_PACKET_BYTES = 256 * 1024

# The boot order.


class App(Value):
    """Where a WSGI callable is; as `configuration.App`."""

    kind: str
    target: str
    call: str


class Member(Value):
    """One of the mounts that an instance serves."""

    mount: int  # its number
    pattern: str
    app: App
    warmup: str | None
    https_only: bool = False


class Host(Value):
    """The Python that an instance runs in, and what is done about its weaknesses."""

    python: str | None  # of a process; None: gunicorn's
    packages: dict[str, str]  # folders of isowsgi and gunicorn, by package
    site: list[str]  # site-packages of the Python that gunicorn runs on
    blocked_modules: list[str]
    needs_ticker: bool
    can_see_stacks: bool
    frames_are_own: bool  # those of `sys._current_frames`; else they are all interpreters'
    max_int_digits: int
    has_long_slices: bool  # the thread that loads an app, see `slices`


class Environment(Value):
    """What the app finds around it."""

    env: dict[str, str]
    pythonpath: list[str]
    venv: str | None
    links: dict[str, str]  # what of these paths was resolved, by the path as it is written
    chdir: str  # gunicorn's setting
    start_folder: str  # the working directory when gunicorn was started
    policy: dict[str, str]
    preload: list[str] = []  # what a fork server has loaded for its process, if there is one
    learns: bool = False  # whether that is also what the mounts of its venv have in common, as they tell


class Loading(Value):
    """How the app is loaded."""

    extensions: dict[str, list[int]] | None  # the extension modules' files that may be loaded, see `inside.extensions`; None: all
    imports: list[str]  # more modules to import, after the app
    pause_s: float  # how long all pauses may be, see `inside.pace`; 0: none
    watch: bool  # whether changes of the app's files are reported
    report_files: bool  # whether the files' names are
    asks: bool = False  # whether the supervisor is asked for other extension modules' files, see `inside.permission`
    lazy_imports: str | None = None  # the mode of `sys.set_lazy_imports`; None: as it is
    eager: list[str] = []  # modules whose imports are not put off then
    asked: list[str] | None = None  # in a trial that compares: paths that are asked for once it is loaded; None: it is none


class Limits(Value):
    """What a request may take; part of the boot order, and an order: those of a running instance are others from then on."""

    request_timeout_s: float
    body_timeout_s: float
    send_timeout_s: float
    min_rate: int
    slow_request_s: float
    queue: int
    queue_timeout_s: float


class Serving(Value):
    """How requests are served."""

    threads: int
    multiprocess: bool
    routes: list[Route]
    listeners: list[list[Any]]  # addresses of the TCP sockets, as `getsockname` gives them
    family: int  # of every connection's socket, as the listeners have it; 0: not all have the same
    arm_returns: int  # flags, see `handover`
    keepalive_s: float
    drain_s: float
    limits: Limits
    server_timing: bool = False  # whether responses say where their time went


class StatusPage(Value):
    """Who may see the status page; only its instance is told."""

    host: str
    allow: list[str]
    hosts: list[str]


class Sandbox(Value):
    """What an app's process can reach, beside what any app needs."""

    code: list[str]  # folders and files of the app: read and executed, as is what `read` names
    read: list[str]
    write: list[str]
    connect: list[int] | None  # TCP ports; None: all
    sockets: list[str]  # Unix sockets that may be connected to, and their folders
    listen: list[int]
    tmp: str  # a folder for temporary files, once it has one


class Walls(Value):
    """What confines an app's process from its first import on."""

    umask: int  # -1: gunicorn's
    nice: int
    memory: int  # bytes; 0: no limit, here and below
    files: int  # descriptors
    file_size: int  # bytes
    cpu: float  # of one core
    processes: int  # and threads
    sandbox: Sandbox | None
    grouped: list[str]  # words of `limits` that its control group has; the process limits itself to the others
    user: str = ""  # as the config file has it, who started it has become that; "": gunicorn's
    has_own_rows: bool = False  # whether what stands for the scoreboard is memory of its own, see `instances.ownrows`
    are_up: bool = False  # put up by the host's Python, which has become the mount's own

    @property
    def confine(self) -> bool:
        """Whether they keep the app from anything: a umask and a priority do not."""
        limits = (self.memory, self.files, self.file_size, self.cpu, self.processes)
        return bool(self.user or any(limits)) or self.sandbox is not None


class Place(Value):
    """Where on the scoreboard the instance writes."""

    region: int
    first_row: int


class Descriptors(Value):
    """Descriptors of the process, by number; -1: there is none of that kind."""

    board: int
    channel: int
    origins: int = -1
    connections: int = -1
    poke: int = -1
    rouse: int = -1
    returns: int = -1  # these three for an interpreter
    lingering: int = -1
    capacity: int = -1
    mail: int = -1  # for a process
    door: int = -1  # to a process' control group, see `shared.cgroups`
    survey: int = -1  # in a trial: where to tell what is shared with other copies

    def known(self) -> list[int]:
        return [fd for name in self.fields if (fd := getattr(self, name)) >= 0]


class LogForm(Value):
    """How lines of the log look, see `logformat`."""

    format: str
    priorities: bool


class BootOrder(Value):
    """All that an instance has to know about its app and its place."""

    release: str  # of isowsgi, that wrote it
    name: str  # what the log calls the mount or group
    tag: str  # and this instance of it
    generation: int
    isolation: str
    members: list[Member]
    host: Host
    environment: Environment
    loading: Loading
    serving: Serving
    settings: dict[str, Any]  # gunicorn's, see `inside.settings`
    log: str | None  # a file for the mount's lines
    log_form: LogForm
    log_files: dict[str, int]  # descriptors of log files by path: gunicorn's, and the mount's own
    hooks: dict[str, str]
    status: StatusPage | None
    place: Place
    walls: Walls | None = None
    fds: Descriptors | None = None  # once it has any
    worker_pid: int = 0
    slot: int = 0  # which of the mount's instances it is

    def renumbered(self, numbers: dict[int, int]) -> "BootOrder":
        """Return the order for a process that knows its descriptors by other numbers."""
        fds = self.fds and self.fds.replace(**{name: numbers[fd] for name in self.fds.fields if (fd := getattr(self.fds, name)) >= 0})
        return self.replace(fds=fds, log_files={path: numbers[fd] for path, fd in self.log_files.items()})


# Orders: from the worker to an instance.


class Drain(Value):
    """Give idle connections back; let requests in flight end."""


class Last(Value):
    """As `Drain`, and say `Connection: close` in every response."""


class Stop(Value):
    """End the serving threads once their requests are done, then run the app's exit functions."""

    frees: bool  # whether the worker lives on, so that all that the app leaves behind must end too


class Reopen(Value):
    """Open the log files again."""


class TellStacks(Value):
    """Report every thread's stack."""

    ask: int


class Profile(Value):
    """Sample what the threads do, and report it once that is over; it takes the place of one that runs."""

    ask: int
    mount: int  # whose requests
    seconds: float
    rate: int  # samples/s
    cpu: bool  # whether the time on a processor counts, instead of all time
    by_request: bool  # whether the requests are told apart
    most_chars: int = 1024 * 1024  # of the report


class EndProfile(Value):
    """Stop sampling; nobody waits for the report."""

    ask: int


class Census(Value):
    """Have a look at the app's objects, of many; the last one is followed by what was counted. See `inside.census`."""

    ask: int
    trace_s: float  # how long a process traces its allocations from then on, at most; 0: what was traced until now is told


class EndCensus(Value):
    """Forget what was counted, and trace no more; nobody waits for the report."""

    ask: int


class OpenShell(Value):
    """Begin a console; it takes the place of one that is there."""

    ask: int
    mount: int  # whose app is at hand


class ShellInput(Value):
    """Execute some lines in the console, and report what they print."""

    ask: int
    number: int  # of the input
    source: str


class EndShell(Value):
    """End the console."""

    ask: int


class Measure(Value):
    """Look at a part of the app's objects, for a few milliseconds, and report what memory it has."""


class Reroute(Value):
    """A part of the routes that decide from now on which requests are this instance's, see `Serving.routes`."""

    routes: list[Route]
    is_first: bool
    is_last: bool


class Known(Value):
    """A part of the answer to `Unknown`: extension modules' files that may be loaded, with their stamps."""

    extensions: dict[str, list[int]]
    is_last: bool


Order = (
    Drain | Last | Stop | Reopen | Known | TellStacks | Profile | EndProfile | Census | EndCensus
    | OpenShell | ShellInput | EndShell | Measure | Reroute | Limits
)  # fmt: skip

# Reports: from an instance to the worker.


class Ready(Value):
    """The app was loaded; requests are served from now on."""

    boot_s: float
    objects: int
    extensions: list[tuple[str, str]]  # name and path of each extension module that was loaded
    refused: list[tuple[str, str, str]]  # name, path and error of each that refused


class Failed(Value):
    """The app could not be loaded; or, after `Ready`, the instance ended by a fault."""

    error: str  # one line
    traceback: str
    is_in_hook: bool = False  # no fault of the app or its isolation
    unknown_extension: str | None = None  # the file that stopped the boot, see `Loading.extensions`
    extensions: list[tuple[str, str]] = []
    refused: list[tuple[str, str, str]] = []


class Extensions(Value):
    """More of them than fit into `Ready` or `Failed`, which follows."""

    extensions: list[tuple[str, str]]


class Imported(Value):
    """Modules of installed packages that the app has loaded, some of them, before `Ready`; see `Environment.learns`."""

    modules: list[str]


class Unknown(Value):
    """An extension module's file is to be loaded that is not among `Loading.extensions`; the boot waits for `Known`."""

    path: str


class Refused(Value):
    """An extension module refused to be loaded after the boot."""

    name: str
    path: str
    error: str


class Files(Value):
    """Files on which the app depends."""

    files: list[str]


class Changed(Value):
    """One of them has changed."""

    file: str


class Erred(Value):
    """Errors of requests that are counted together, see `errorgroups`."""

    mount: int  # its number
    kind: str
    type: str
    place: str
    count: int  # in this instance so far
    first: float  # seconds since the epoch
    at: float  # the last one
    request: str  # the last one's method and target
    error: str  # in one line
    traceback: str  # or stack; "": that of the last report


class Stuck(Value):
    """A thread does not come out of its request."""

    stack: str  # below the request's first line
    mount: int = -1  # the number of the request's mount; -1: not known


class Broken(Value):
    """A thread of isowsgi's own in the instance has ended by a fault."""

    thread: str
    error: str
    traceback: str


class Stacks(Value):
    """A part of the answer to `TellStacks`."""

    ask: int
    text: str
    is_last: bool


class Profiled(Value):
    """A part of the answer to `Profile`: of the JSON of a `shared.calltree.CallTree`."""

    ask: int
    text: str
    is_last: bool


class Counted(Value):
    """A part of the answer to `Census`: of the JSON of a `shared.census.Census`. Not the last and no text: more looks are needed."""

    ask: int
    text: str
    is_last: bool


class ShellOutput(Value):
    """A part of the answer to `ShellInput`."""

    ask: int
    number: int
    text: str
    is_more: bool  # whether the lines are only the beginning of a statement
    outcome: str  # "done"; "failed" by an exception; "exit": the operator wants to go; "lost": there is no console, and the text says why
    is_last: bool


class Measured(Value):
    """The answer to `Measure`. But for the last look of a round its figures, except `small`, are those of the round before."""

    is_whole: bool  # whether this look was the last of a round
    took_s: float  # CPU time of this look
    objects: int  # that the garbage collector knows
    small: int  # bytes of the allocator of small blocks, which interpreters with a shared GIL have in common; -1: not known
    large: int  # bytes in larger blocks
    weight: int  # by which interpreters that share an allocator are compared, see `inside.heap`
    grown: int = 0  # bytes by which the process's memory (RSS) has changed during this look
    problem: str = ""  # why it cannot be measured, now or later


class Closed(Value):
    """All threads of isowsgi's have ended but the one that says so."""

    threads: int  # of the app's that were left


class Exited(Value):
    """The child process has ended; said by its keeper, never by the child."""

    status: int


Report = (
    Ready | Failed | Extensions | Imported | Unknown | Refused | Files | Changed | Erred | Stuck | Broken | Stacks
    | Profiled | Counted | ShellOutput | Measured | Closed | Exited
)  # fmt: skip

# Answers that come in parts, each with the number of the question.
Part = Stacks | Profiled | Counted | ShellOutput

_ORDERS: dict[str, type[Order]] = {kind.__name__: kind for kind in Order.__args__}
_REPORTS: dict[str, type[Report]] = {kind.__name__: kind for kind in Report.__args__}

# The wire.


def encode(message: Order | Report | BootOrder) -> bytes:
    """Return a message as it travels."""
    return wire.encode({"is": type(message).__name__, **plain(message)})


def decode_order(packet: bytes) -> Order:
    """Return the order in a packet.

    Raises:
        MessageError: it is none.
    """
    order: Order = _decode(packet, _ORDERS)
    return order


def decode_report(packet: bytes) -> Report:
    """Return the report in a packet.

    Raises:
        MessageError: it is none.
    """
    report: Report = _decode(packet, _REPORTS)
    return report


def read_boot_order(facts: object) -> BootOrder:
    """Return the boot order that was read from JSON.

    Raises:
        MessageError: it is none, or one of another release.
    """
    if isinstance(facts, dict) and (release := facts.get("release")) != isowsgi.__version__:
        raise MessageError(f"the worker runs isowsgi {release}, but {isowsgi.__version__} is installed now; restart gunicorn")
    order: BootOrder = _read(facts, {"BootOrder": BootOrder})
    return order


def shortened(message: Report) -> Report:
    """Return a report without what makes it longer than a packet."""
    cuts: dict[str, Any] = {"traceback": "", "text": "", "stack": "", "extensions": [], "refused": [], "files": [], "modules": []}
    if "error" in message.fields:
        cuts["error"] = getattr(message, "error")[:MAX_ERROR_CHARS]  # noqa: B009 # not each report has one
    return message.replace(**{name: cut for name, cut in cuts.items() if name in message.fields})


def _decode(packet: bytes, kinds: dict[str, Any]) -> Any:
    if len(packet) > MAX_PACKET_BYTES:
        raise MessageError(f"expected a packet of at most {MAX_PACKET_BYTES} bytes")
    return _read(wire.decode(packet), kinds)


def _read(facts: object, kinds: dict[str, Any]) -> Any:
    if not isinstance(facts, dict):
        raise MessageError(f"expected a JSON object, got {type(facts).__name__}")
    facts = dict(facts)
    name = facts.pop("is", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise MessageError(f"expected one of {', '.join(kinds)}, got {wire.shown(name)}")
    return wire.read(facts, kind)
