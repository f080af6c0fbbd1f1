"""What the command `isowsgi` and a worker say to each other on the control socket: requests, answers, and why there is none.

docs/reference/control-protocol.md has the protocol. Neither side trusts the other: any program of the worker's user may ask, and root's
command asks workers of other users. A request that does not fit is a `Refusal`, which is answered; an answer that does not is an
`Error` of kind "malformed". Fields may be added in later releases, with a default, and both sides ignore those that they do not know.
"""

from typing import Any, Generic, TypeVar

from isowsgi.shared import frames, wire
from isowsgi.shared.wire import MessageError, OpenValue

VERSION = 1

# What `isowsgi plan` and `apply` print where there is nothing to do.
NO_DIFFERENCE = "no difference: what runs is what the config file says"

# Answers.


class Error(OpenValue):
    """Why nothing was done, or what went wrong. `kind` and what has a default are for programs, `text` is for people."""

    kind: str
    text: str
    versions: list[int] | None = None  # those of the protocol that are known
    commands: list[str] | None = None  # those that are known
    near: list[str] | None = None  # patterns much like the one that is unknown
    traceback: str | None = None
    generation: int | None = None  # the one that failed


class InFlight(OpenValue):
    """A request that is being served."""

    request: str  # its first line
    for_s: float


class GroupUse(OpenValue):
    """What the processes of an instance's control group use, see `cgroups.Use`."""

    memory_bytes: int
    cpu_s: float
    throttled_s: float
    processes: int


class InstanceStatus(OpenValue):
    tag: str
    generation: int
    state: str
    isolation: str
    threads: int
    boot_s: float
    requests: int
    in_flight: list[InFlight]
    error: str
    memory_bytes: int | None = None  # None: not measured yet
    memory_at_boot_bytes: int | None = None
    control_group: GroupUse | None = None  # None: it is in none of its own


class InstanceStacks(InstanceStatus):
    stacks: str
    problem: str  # why there are none, or empty


class LastError(OpenValue):
    at: float  # seconds since the epoch
    kind: str
    error: str


class MountCounts(OpenValue):
    """What a worker has counted of a mount since it began."""

    requests: int
    responses: list[int]  # by class, 1xx to 5xx
    cpu_s: float
    busy_s: float
    waiting_s: float
    sending_s: float
    bytes_in: int
    bytes_out: int
    exceptions: int
    timeouts: int
    turned_away: int
    buckets: list[int]  # by rows.BUCKET_LIMITS_S: of the whole time, and of the app's
    app_buckets: list[int]
    waiting_buckets: list[int]  # by rows.WAIT_LIMITS_S
    sending_buckets: list[int]


class MountStatus(OpenValue):
    mount: str  # its pattern
    app: str
    isolation: str
    reason: str  # of the isolation
    group: str | None
    state: str
    generation: int
    reloads: int
    stuck: int  # instances left behind
    retry_in_s: float | None
    instances: list[InstanceStatus]
    last_error: LastError | None
    counts: MountCounts | None = None
    memory_bytes: int | None = None  # of all its instances together; None: not measured yet


class Incident(OpenValue):
    """What went wrong once in a mount."""

    at: float  # seconds since the epoch
    kind: str  # "boot", "exception", "stuck"
    tag: str  # mount and generation
    generation: int
    error: str  # one line
    details: str  # traceback or stack
    request: str = ""  # its first line


class ErrorGroup(OpenValue):
    """Errors of a mount's requests that are of one type, at one place."""

    kind: str  # see `errorgroups`
    type: str
    place: str
    count: int
    first: float  # seconds since the epoch
    at: float  # the last one
    generation: int
    request: str  # the last one's method and target
    error: str  # in one line
    details: str  # traceback or stack


class CertificateStatus(OpenValue):
    hosts: list[str]  # that get it; none: all others do
    path: str
    expires: float | None  # seconds since the epoch


class WorkerStatus(OpenValue):
    python: str
    up_s: float
    rss_mib: float
    mounts: list[MountStatus]
    at: float = 0.0  # monotonic seconds when it was said
    certificates: list[CertificateStatus] = []


class Outcome(OpenValue):
    """What became of a mount."""

    mount: str
    outcome: str
    text: str  # the same for people
    generation: int
    boot_s: float | None = None


class MountStacks(OpenValue):
    instances: list[InstanceStacks]


class InstanceProfile(OpenValue):
    tag: str
    generation: int
    isolation: str
    profile: str  # the JSON of a `calltree.CallTree`
    problem: str  # why there is none, or empty


class MountProfile(OpenValue):
    mount: str  # its pattern
    instances: list[InstanceProfile]


class InstanceMemory(OpenValue):
    tag: str
    generation: int
    isolation: str
    before: str  # the JSON of a `census.Census`
    after: str  # the same, later
    problem: str  # why there are none, or empty


class MountMemory(OpenValue):
    mount: str  # its pattern
    instances: list[InstanceMemory]


class ShellAnswer(OpenValue):
    """What an input of a shell has printed."""

    text: str
    is_more: bool  # whether it is only the beginning of a statement
    outcome: str = "done"  # or "failed" by an exception, or "exit"


class MountErrors(OpenValue):
    mount: str
    boot: Incident | None
    requests: list[Incident]  # latest last
    groups: list[ErrorGroup] = []  # the most frequent first


class WorkerErrors(OpenValue):
    mounts: list[MountErrors]  # those that have any, without tracebacks


class MountTable(OpenValue):
    mount: str  # its pattern
    settings: dict[str, str]  # see `configuration.differences`


class GunicornFile(OpenValue):
    """The file of gunicorn's own settings, as its master has read it."""

    path: str
    digest: str  # see `conffile`


class CertificateFiles(OpenValue):
    """A certificate that a worker serves with."""

    certificate: str  # paths
    key: str
    digest: str  # see `certificates`; "" if it could not be read, or may be one of two


class ServedTable(OpenValue):
    """The config that a worker serves, as `configuration.differences` has it."""

    salt: str  # of the digests of environment variables
    tables: dict[str, dict[str, str]]
    mounts: list[MountTable]
    gunicorn: GunicornFile | None = None
    certificate: CertificateFiles | None = None  # by gunicorn's settings
    certificates: list[CertificateFiles] = []  # by `[[tls]]`
    form: str = ""  # see `configuration.stored.form`
    tls: str = ""  # "gunicorn" if its settings have TLS on, "config" if only `[[tls]]` does, "" if it is off


class NotLoaded(OpenValue):
    """Why something of a table that is prepared stays as it is."""

    text: str
    traceback: str


class TableOutcome(OpenValue):
    """What became of a table that an operator applies."""

    outcome: str  # "prepared", "applied", "dropped"
    text: str  # the same for people
    failed: list[NotLoaded] = []  # with `Prepare.keep_going`
    stays: list[str] = []  # what stays as it is for it, and can be `Prepare.without`


Answer = (
    WorkerStatus
    | Outcome
    | MountStacks
    | MountProfile
    | MountMemory
    | ShellAnswer
    | MountErrors
    | WorkerErrors
    | ServedTable
    | TableOutcome
)

A = TypeVar("A", bound=Answer)


class Worker(OpenValue):
    """Who answers."""

    worker: int  # process ids
    master: int
    config: str  # the config file's absolute path
    age: int  # gunicorn's number of the worker


# Requests, by their answers.


class Request(OpenValue, Generic[A]):
    """A command, and the pattern of its mount as the config file has it."""


class Status(Request[WorkerStatus]):
    mount: str | None = None  # None: all


class Reload(Request[Outcome]):
    mount: str


class Stop(Request[Outcome]):
    mount: str
    drain_s: float = 0.0  # for so long it is served as before, but is not ready; it ends with the connection of who asks


class Start(Request[Outcome]):
    mount: str


class Stacks(Request[MountStacks]):
    mount: str


class Profile(Request[MountProfile]):
    """Sample what the threads of a mount do; it ends with the connection of who asks."""

    mount: str
    seconds: float = 10.0
    rate: int = 100  # samples/s
    cpu: bool = False  # whether the time on a processor counts, instead of all time
    by_request: bool = False  # whether the requests are told apart


class Memory(Request[MountMemory]):
    """Count the objects of a mount's app twice; it ends with the connection of who asks."""

    mount: str
    seconds: float = 30.0  # between the two


class Shell(Request[Outcome]):
    """Open a console in the mount's app; it ends with the connection of who asks."""

    mount: str
    serial: str  # the session's own name


class ShellLine(Request[ShellAnswer]):
    """Execute lines in such a console."""

    serial: str
    source: str


class Errors(Request[MountErrors]):
    mount: str
    changed_since: float = 0.0  # as below; then without tracebacks too


class AllErrors(Request[WorkerErrors]):
    """Errors of all mounts: all groups, of each mount's less frequent ones without request and text."""

    changed_since: float = 0.0  # seconds since the epoch; then only groups that have grown since, with their texts


class Table(Request[ServedTable]):
    """What config is served."""


class RenewedCertificate(OpenValue):
    """A certificate and its key, as PEM."""

    certificate: str
    key: str
    path: str = ""  # of their files; "": those of gunicorn's settings
    key_path: str = ""


class Prepare(Request[TableOutcome]):
    """Load what is new in a table, beside the one that serves."""

    serial: str  # the table's own name, by who applies it
    config: Any  # see `configuration.stored`
    hold_s: float = 30.0  # how long it waits for the switch, once it is prepared here
    keep_going: bool = False  # whether what can be loaded is prepared, if something cannot
    without: list[str] = []  # names of what stays as it is, see `configuration.partial`
    certificate: RenewedCertificate | None = None  # of gunicorn's settings, to serve with from the switch on
    certificates: list[RenewedCertificate] = []  # the same of `[[tls]]`


class Switch(Request[TableOutcome]):
    """Serve the table that was prepared."""

    serial: str
    without: list[str] = []  # names of what stays as it is: it could not be loaded in some worker


class Drop(Request[TableOutcome]):
    """Give up the table that was prepared."""

    serial: str


_ANSWERS: dict[type[Request[Any]], type[Answer]] = {
    Status: WorkerStatus,
    Reload: Outcome,
    Stop: Outcome,
    Start: Outcome,
    Stacks: MountStacks,
    Profile: MountProfile,
    Memory: MountMemory,
    Shell: Outcome,
    ShellLine: ShellAnswer,
    Errors: MountErrors,
    AllErrors: WorkerErrors,
    Table: ServedTable,
    Prepare: TableOutcome,
    Switch: TableOutcome,
    Drop: TableOutcome,
}
_REQUESTS: dict[str, type[Request[Any]]] = {kind.__name__.lower(): kind for kind in _ANSWERS}


class Refusal(Exception):
    """A request is not carried out; its `error` is the answer."""

    def __init__(self, kind: str, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.error = Error(kind=kind, text=text, **facts)


# The wire.


def encode_request(request: Request[Any]) -> bytes:
    """Return a request as a frame."""
    return frames.encode({"v": VERSION, "do": type(request).__name__.lower(), **wire.plain(request)})


def decode_request(message: dict[str, Any]) -> Request[Any]:
    """Return the request that the JSON of a frame is.

    Raises:
        Refusal: it is none.
    """
    if (version := message.get("v")) != VERSION:
        raise Refusal("version", f'expected "v": {VERSION}, got {wire.shown(version)}', versions=[VERSION])
    name = message.get("do")
    kind = _REQUESTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise Refusal("command", f"expected one of {', '.join(_REQUESTS)}, got {wire.shown(name)}", commands=list(_REQUESTS))
    try:
        return wire.read(message, kind)
    except MessageError as exc:
        if "mount" not in kind.fields or isinstance(message.get("mount"), str):
            raise Refusal("malformed", str(exc)) from None
        raise Refusal("mount", f'expected a pattern as "mount", got {wire.shown(message.get("mount"))}') from None


def facts(worker: Worker | None, answer: Answer | Error) -> dict[str, Any]:
    """Return an answer as JSON has it.

    Args:
        worker: who gives it; None if nobody did.
    """
    who = {} if worker is None else {"v": VERSION, **wire.plain(worker)}
    if isinstance(answer, Error):
        return {**who, "ok": False, "error": wire.plain(answer)}
    return {**who, "ok": True, **wire.plain(answer)}


def encode_answer(worker: Worker, answer: Answer | Error) -> bytes:
    """Return an answer as a frame."""
    return frames.encode(facts(worker, answer))


def decode_answer(message: dict[str, Any], request: Request[A]) -> tuple[Worker | None, A | Error]:
    """Return who answers, and the answer to a request; an error if the JSON of a frame is neither an answer to it nor an error."""
    try:
        worker = wire.read(message, Worker)
        if message.get("ok") is not True:
            return worker, wire.read(message.get("error"), Error)
        answer: Any = wire.read(message, _ANSWERS[type(request)])
        return worker, answer
    except MessageError as exc:
        return None, Error(kind="malformed", text=f"malformed answer to {type(request).__name__.lower()!r}: {exc}")
