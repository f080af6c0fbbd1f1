"""What is measured: loads on running servers, and two scenarios of their own, how many apps start and what many mounts cost. Only data."""

from __future__ import annotations

from dataclasses import dataclass

from bench.peers import Mount

# What every server serves while it is under load. Paths end in "/", as a framework's root would answer others with a redirection.
MOUNTS = (
    Mount(prefix="/hello", module="hello"),
    Mount(prefix="/flask", module="flask_app"),
    Mount(prefix="/django", module="django_app"),
    Mount(prefix="/cpu", module="cpu"),
    Mount(prefix="/cpu2", module="cpu"),
    Mount(prefix="/sleeper", module="sleeper"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Load on a neighbour, meanwhile."""

    path: str
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What wrk asks for; each path has a wrk of its own.

    Attributes:
        closes: each request has a connection of its own.
        is_on_one_core: the server is bound to one core and wrk to another, so that threads cannot hand a GIL from core to core, nor does
            wrk take CPU time from the server.
    """

    name: str
    title: str
    paths: tuple[str, ...]
    connections: int
    closes: bool = False
    is_on_one_core: bool = False
    beside: Beside | None = None


LOADS = (
    Load(name="hello-1cpu", title="Hello, server pinned to one core", paths=("/hello/",), connections=8, is_on_one_core=True),
    Load(name="hello", title="Hello", paths=("/hello/",), connections=8),
    Load(name="close", title="Hello, a new connection for each request", paths=("/hello/",), connections=8, closes=True),
    Load(name="flask", title="Flask", paths=("/flask/",), connections=8),
    Load(name="django", title="Django", paths=("/django/",), connections=8),
    Load(name="cpu-one", title="One CPU-bound mount", paths=("/cpu/",), connections=4),
    Load(name="cpu-two", title="Two CPU-bound mounts at once", paths=("/cpu/", "/cpu2/"), connections=4),
    Load(name="quiet", title="Hello, two connections, nothing else", paths=("/hello/",), connections=2),
    Load(
        name="hog",
        title="Hello, two connections, beside a CPU hog on another mount",
        paths=("/hello/",),
        connections=2,
        beside=Beside(path="/cpu/", connections=4),
    ),
    Load(
        name="sleepers",
        title="Hello, two connections, beside 32 sleeping requests on another mount",
        paths=("/hello/",),
        connections=2,
        beside=Beside(path="/sleeper/", connections=32),
    ),
)

# The two that are no load on the servers above.
APPS = "apps"
MOUNTS_FEW, MOUNTS_MANY = "mounts-few", "mounts-many"
MOUNTS_BOTH = "mounts"

TITLES = {load.name: load.title for load in LOADS} | {
    APPS: "Many Flask apps: start until all have answered, and memory for each",
    MOUNTS_BOTH: "Hello with few and with many mounts (isowsgi only)",
}

# Mounts of the server that many mounts are compared with.
FEW = 2


def flask_apps(count: int) -> tuple[tuple[Mount, ...], dict[str, str]]:
    """Return mounts of as many Flask apps, each from a module of its own, and the texts of these modules."""
    mounts = tuple(Mount(prefix=f"/app{number}", module=f"app{number}") for number in range(count))
    return mounts, {mount.module: "import flask_app\n\napplication = flask_app.create(__name__)\n" for mount in mounts}


def hello_mounts(count: int) -> tuple[Mount, ...]:
    return tuple(Mount(prefix=f"/m{number}", module="hello") for number in range(count))


# Every server of the two has the last of the few.
MOUNTS_LOAD = Load(name=MOUNTS_BOTH, title=TITLES[MOUNTS_BOTH], paths=(f"/m{FEW - 1}/",), connections=8)
