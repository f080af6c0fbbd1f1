"""The servers that are compared: what each needs, and how it is configured at its best to serve several apps from one place.

Nothing is started here: a peer turns a Site into the files it reads and the commands that serve it.
"""

from __future__ import annotations

import functools
import glob
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.linkage import linkage_of

ADDRESS = "127.0.0.1"
CHECKOUT = Path(__file__).resolve().parent.parent
MODULES = CHECKOUT / "bench" / "apps"

# Request threads of each server, and of each of its apps where they have threads of their own. Apache excepted, see mod_wsgi.
THREADS = 8

# What the apps need; the same releases for all peers, because all venvs are made in one go.
FRAMEWORKS = ("flask>=3.1,<4", "django>=5.2,<7")

# Programs of servers are not on an ordinary user's PATH.
_PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    prefix: str  # "/hello"
    module: str  # with a callable named `application`

    @property
    def name(self) -> str:
        return self.prefix.strip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a peer is to serve, and where.

    Attributes:
        folder: for configuration, sockets and logs; modules that are made for the occasion are there too.
        close_port: where requests that close their connection are sent, for a peer that takes them on a port of their own.
        venv: the peer's; empty if it needs none.
    """

    mounts: tuple[Mount, ...]
    folder: Path
    venv: Path
    port: int
    close_port: int
    threads: int = THREADS

    @property
    def python_path(self) -> tuple[str, ...]:
        return str(MODULES), str(self.folder)

    def bin(self, program: str) -> str:
        return str(self.venv / "bin" / program)

    def file(self, mount: Mount) -> str:
        """Return the path of a mount's module."""
        (found,) = (path for folder in self.python_path if (path := os.path.join(folder, f"{mount.module}.py")) and os.path.exists(path))
        return found

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to serve several apps.

    Attributes:
        apart: what separates its apps.
        commands: writes its configuration and returns the commands that serve the site, each a process that stays in the foreground.
        venv: name of its venv; two peers may share one.
        requirements: of its venv, beside the frameworks, and options of `pip install`.
        programs: what it needs that is not Python's, with the Debian package that has it.
        has_close_port: whether it takes requests that close their connection on a port of their own.
    """

    name: str
    title: str
    apart: str
    commands: Callable[[Site], list[list[str]]]
    venv: str
    requirements: tuple[str, ...]
    programs: Mapping[str, str] = field(default_factory=dict)
    has_close_port: bool = False

    def missing(self) -> str | None:
        """Say which programs are not installed, or None."""
        lacks = [f"{program} (Debian: {package})" for program, package in self.programs.items() if find(program) is None]
        return f"not installed: {', '.join(lacks)}" if lacks else None


def find(program: str) -> str | None:
    return shutil.which(program, path=_PROGRAM_PATH)


def _program(name: str) -> str:
    found = find(name)
    assert found is not None, f"{name} is in the peer's programs, and a peer that lacks one is left out"
    return found


# gunicorn, and isowsgi in it


def _gunicorn(site: Site, bind: str, *arguments: str) -> list[str]:
    # Keep-alive longer than nginx keeps a connection to an upstream, 60 s, or nginx would now and then use one that is just being closed.
    return [
        *(site.bin("python"), "-m", "gunicorn", "--bind", bind, "--workers", "1", "--threads", str(site.threads)),
        *("--keep-alive", "75", "--no-control-socket", "--log-level", "warning", *arguments),
    ]


def _tcp(site: Site) -> str:
    return f"{ADDRESS}:{site.port}"


def isowsgi(site: Site) -> list[list[str]]:
    quoted = ", ".join(f'"{folder}"' for folder in site.python_path)
    lines = ["[defaults]", f"pythonpath = [{quoted}]", "[mounts]"]
    lines += [f'"{mount.prefix}" = "{mount.module}:application"' for mount in site.mounts]
    return [_gunicorn(site, _tcp(site), "--worker-class", "isowsgi.Worker", site.write("isowsgi.toml", "\n".join(lines) + "\n"))]


def _dispatched(site: Site) -> str:
    """Write a module that serves all mounts from one interpreter, and return its name for a server."""
    lines = [
        "import importlib",
        "from werkzeug.exceptions import NotFound",
        "from werkzeug.middleware.dispatcher import DispatcherMiddleware",
    ]
    table = {mount.prefix: mount.module for mount in site.mounts}
    lines += [f"mounts = {table!r}"]
    lines += ["apps = {prefix: importlib.import_module(module).application for prefix, module in mounts.items()}"]
    lines += ["application = DispatcherMiddleware(NotFound(), apps)"]
    site.write("dispatched.py", "\n".join(lines) + "\n")
    return "dispatched:application"


def gunicorn(site: Site) -> list[list[str]]:
    return [_gunicorn(site, _tcp(site), "--worker-class", "gthread", _dispatched(site))]


def gunicorn_per_app(site: Site) -> list[list[str]]:
    """A gunicorn for each app on a Unix socket, and nginx in front of them all."""
    commands = []
    upstreams = locations = ""
    for mount in site.mounts:
        socket = f"unix:{site.folder}/{mount.name}.sock"
        commands.append(
            _gunicorn(site, socket, "--worker-class", "gthread", "--env", f"SCRIPT_NAME={mount.prefix}", f"{mount.module}:application")
        )
        upstreams += f"  upstream {mount.name} {{ server {socket}; keepalive {site.threads}; }}\n"
        locations += f"    location {mount.prefix}/ {{ proxy_pass http://{mount.name}; }}\n"
    folder = site.folder
    # nginx's worker would be another user than the one who owns the sockets, if root starts it.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = f"""\
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ }}
http {{
  access_log off;
  keepalive_requests 1000000000;
{temporary}{upstreams}
  server {{
    listen {_tcp(site)};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
{locations}  }}
}}
"""
    commands.append([_program("nginx"), "-e", f"{folder}/nginx.log", "-p", str(folder), "-c", site.write("nginx.conf", config)])
    return commands


# servers of their own


def granian(site: Site) -> list[list[str]]:
    return [
        [
            *(site.bin("granian"), "--interface", "wsgi", "--host", ADDRESS, "--port", str(site.port), "--http", "1", "--no-ws"),
            *("--workers", "1", "--blocking-threads", str(site.threads), "--log-level", "warning", _dispatched(site)),
        ]
    ]


def uwsgi(site: Site) -> list[list[str]]:
    """Mount mode: a subinterpreter for each app.

    http11-socket keeps connections alive and disregards a wish to close; http-socket closes each but does not say so, which wrk would
    count as an error, hence the header.
    """
    lines = ["[uwsgi]", f"virtualenv = {site.venv}", *(f"pythonpath = {folder}" for folder in site.python_path)]
    lines += ["master = true", "processes = 1", f"threads = {site.threads}", "enable-threads = true", "die-on-term = true"]
    lines += ["worker-reload-mercy = 2", "disable-logging = true", "need-app = true", "manage-script-name = true"]
    lines += [f"http11-socket = {_tcp(site)}", f"http-socket = {ADDRESS}:{site.close_port}"]
    lines += [f"route-if = equal:${{SERVER_PORT}};{site.close_port} addheader:Connection: close"]
    lines += [f"mount = {mount.prefix}={site.file(mount)}" for mount in site.mounts]
    return [[site.bin("uwsgi"), "--ini", site.write("uwsgi.ini", "\n".join(lines) + "\n")]]


# Threads of Apache's event MPM, its default. With fewer it closes connections that are to be kept.
_APACHE_THREADS = 25


def mod_wsgi(site: Site, *, has_own_gils: bool) -> list[list[str]]:
    """Apache with one child process and an application group for each app; own GILs are an option of mod_wsgi 6."""
    (module,) = glob.glob(f"{glob.escape(str(site.venv))}/lib/python*/site-packages/mod_wsgi/server/mod_wsgi-py*.so")
    folder = site.folder
    modules = subprocess.run([_program("apxs"), "-q", "LIBEXECDIR"], capture_output=True, text=True, check=True).stdout.strip()
    threads = max(site.threads, _APACHE_THREADS)
    lines = [f"LoadModule {name}_module {modules}/mod_{name}.so" for name in ("mpm_event", "authz_core")]
    lines += [f"LoadModule wsgi_module {module}", f"WSGIPythonHome {site.venv}", f"WSGIPythonPath {os.pathsep.join(site.python_path)}"]
    lines += [f"WSGIPerInterpreterGIL {'On' if has_own_gils else 'Off'}"]
    lines += ["ServerName localhost", f"ServerRoot {folder}", f"DefaultRuntimeDir {folder}", f"PidFile {folder}/apache.pid"]
    lines += [f"Listen {_tcp(site)}", f"ErrorLog {folder}/apache.log", "LogLevel warn"]
    lines += ["ServerLimit 1", "StartServers 1", f"ThreadsPerChild {threads}", f"MaxRequestWorkers {threads}"]
    lines += ["MinSpareThreads 1", f"MaxSpareThreads {threads}", "KeepAlive On", "MaxKeepAliveRequests 0"]
    lines += ["<Directory />", "Require all granted", "</Directory>"]
    group = "process-group=%{GLOBAL} application-group="
    lines += [f"WSGIScriptAlias {mount.prefix} {site.file(mount)} {group}{mount.name}" for mount in site.mounts]
    launcher = linkage_of(site.bin("python")).launcher
    command = [*launcher, _program("apache2"), "-DFOREGROUND", "-f", site.write("apache.conf", "\n".join(lines) + "\n")]
    if os.geteuid() == 0:
        # Apache will not serve as root, and its usual user may not be allowed to read this checkout. So it runs as the same user
        # under another number, in a user namespace.
        command = [_program("unshare"), "--user", "--map-user=65534", "--map-group=65534", *command]
    return [command]


# What was compiled for one Python and cached is no good for another of the same version in another place.
_COMPILED = ("--no-cache-dir",)

_APACHE = {"apache2": "apache2-bin", "apxs": "apache2-dev", "unshare": "util-linux"}

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="isowsgi",
            title="isowsgi, one worker",
            apart="subinterpreters, a GIL each from CPython 3.13.16 and 3.14.1 on",
            commands=isowsgi,
            venv="isowsgi",
            requirements=(str(CHECKOUT),),
        ),
        Peer(
            name="gunicorn",
            title="gunicorn's gthread, one worker, werkzeug's DispatcherMiddleware",
            apart="nothing",
            commands=gunicorn,
            venv="gunicorn",
            requirements=("gunicorn>=27",),
        ),
        Peer(
            name="gunicorn-per-app",
            title="a gunicorn (gthread) for each app behind nginx",
            apart="processes",
            commands=gunicorn_per_app,
            venv="gunicorn",
            requirements=("gunicorn>=27",),
            programs={"nginx": "nginx-light"},
        ),
        Peer(
            name="uwsgi",
            title="uWSGI, one process, mount mode",
            apart="subinterpreters, one GIL",
            commands=uwsgi,
            venv="uwsgi",
            requirements=(*_COMPILED, "uwsgi>=2.0.31"),
            has_close_port=True,
        ),
        Peer(
            name="granian",
            title="granian, one worker, werkzeug's DispatcherMiddleware",
            apart="nothing",
            commands=granian,
            venv="granian",
            requirements=("granian>=2.8",),
        ),
        Peer(
            name="mod_wsgi",
            title="Apache's event MPM with mod_wsgi, one process",
            apart="subinterpreters, one GIL",
            commands=functools.partial(mod_wsgi, has_own_gils=False),
            venv="mod_wsgi",
            requirements=(*_COMPILED, "mod_wsgi>=6"),
            programs=_APACHE,
        ),
        Peer(
            name="mod_wsgi-own-gil",
            title="the same with WSGIPerInterpreterGIL",
            apart="subinterpreters, a GIL each",
            commands=functools.partial(mod_wsgi, has_own_gils=True),
            venv="mod_wsgi",
            requirements=(*_COMPILED, "mod_wsgi>=6"),
            programs=_APACHE,
        ),
    )
}
