"""`make demo`: build what the demo needs, then serve incompatible apps from one gunicorn worker until Ctrl-C.

    demo.py [--prepare]      --prepare only builds
    PORT=9000 demo.py        another port than 8000

Everything it makes is in .demo/pyX.Y in the checkout: a venv for isowsgi, one for each app, and the config file they are served by.
It runs on the Python that it builds for (the Makefile chooses it), and needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

DEMO = Path(__file__).resolve().parent
CHECKOUT = DEMO.parent.parent
sys.path.insert(0, str(CHECKOUT / "tools"))

import make_venv  # noqa: E402  # it is found in the folder above only
from make_venv import Venv  # noqa: E402

VERSION = sys.version_info[:2]
HOME = CHECKOUT / ".demo" / "py{}.{}".format(*VERSION)
CONFIG = HOME / "isowsgi.toml"
SITES = HOME / "sites.d"  # a file for each site that is added while the demo serves
ADDED = HOME / "added.toml"  # one, ready to be put there

ADDRESS = "127.0.0.1"
PORT = "8000"

# From 3.13 on an interpreter can have a GIL of its own and still run real apps. `auto` would say so only for the releases
# that carry all fixes; the demo shows what the others can do too.
OWN_GIL_SINCE = (3, 13)

# Flask 2.2 and Werkzeug 2.2 use pkgutil.get_loader and ast.Str, which 3.14 no longer has.
IS_FLASK_2_GONE = VERSION >= (3, 14)

# Seconds for all apps to answer the first time: five interpreters boot in about 2 s on two cores, and in many times that with cold disks.
FIRST_ANSWER_S = 60.0

# Seconds between Ctrl-C and the kill of what has not ended, so that all is over within 2.
STOP_S = 1.5


class Stop(BaseException):
    """Someone wants the demo to end: Ctrl-C, `kill`, or a terminal that was closed."""


class Fault(Exception):
    """The demo cannot continue; the text is one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """One app of the demo."""

    mount: str
    target: str  # as the config file names it
    contents: str  # what is in its venv, for people
    requirements: tuple[str, ...]  # none: it has no venv
    env: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return self.mount.strip("/") or self.target

    @property
    def venv(self) -> Venv:
        return Venv(folder=HOME / self.name, arguments=self.requirements, contents=self.contents)

    @property
    def path(self) -> str:
        return self.mount.rstrip("/") + "/"


FLASK = "flask_app:app"
DJANGO = "django_app.wsgi:application"
SETTINGS = (("DJANGO_SETTINGS_MODULE", "django_app.settings"),)
OLD_FLASK = "3.0" if IS_FLASK_2_GONE else "2.2"

APPS = (
    App(
        mount="/flask-old",
        target=FLASK,
        contents=f"Flask {OLD_FLASK}, Werkzeug {OLD_FLASK}",
        requirements=(f"flask=={OLD_FLASK}.*", f"werkzeug=={OLD_FLASK}.*"),
    ),
    App(mount="/flask-new", target=FLASK, contents="the newest Flask", requirements=("flask",)),
    App(mount="/django-old", target=DJANGO, contents="Django 4.2", requirements=("django==4.2.*",), env=SETTINGS),
    App(mount="/django-new", target=DJANGO, contents="the newest Django", requirements=("django",), env=SETTINGS),
    App(mount="/", target="hello.wsgi", contents="no package", requirements=()),
    App(mount="/-/isowsgi", target="isowsgi.status:application", contents="isowsgi's status page", requirements=()),
)

SERVER = Venv(folder=HOME / "isowsgi", arguments=(str(CHECKOUT),), contents="isowsgi from this checkout, gunicorn")


def config_text() -> str:
    """Return the config file, with comments for who reads it to learn how one is written."""
    demo = os.path.relpath(DEMO, HOME)
    if VERSION >= OWN_GIL_SINCE:
        isolation = 'isolation = "own-gil"        # one GIL for each app, so they use all cores; auto, the default, decides itself'
    else:
        isolation = f'# isolation = "own-gil"      # needs CPython 3.13; on {platform.python_version()} the apps share one GIL'
    lines = [
        "# Written by examples/demo/demo.py, and again each time it runs. Paths are relative to this file.",
        "",
        f'include = "{SITES.name}/*.toml"   # more mounts: put a file there, then `isowsgi apply`',
        "",
        "[defaults]                   # for every mount below",
        isolation,
        f'pythonpath = ["{demo}"]   # where the apps\' modules are',
        "",
        "# Each mount is an interpreter of its own: one source, two venvs, two versions of its framework.",
    ]
    for app in APPS:
        target = app.target if ":" in app.target else f"{demo}/{app.target}"
        if app.mount.startswith("/-/"):
            lines += ["", "# What serves, how fast, and what is wrong: open it in a browser. It answers this machine only."]
        lines += ["", f'[mounts."{app.mount}"]', f'app = "{target}"']
        if app.requirements:
            lines.append(f'venv = "{app.name}"')
        env = ", ".join(f'{name} = "{value}"' for name, value in (("APP_NAME", app.name), *app.env))
        lines.append(f"env = {{ {env} }}   # seen by this app alone")
    return "\n".join(lines) + "\n"


def added_text() -> str:
    """Return a file with one more mount, for `isowsgi apply`. Its paths are relative to the folder that it is put in."""
    demo = os.path.relpath(DEMO, SITES)
    return f'[mounts."/added"]\napp = "{demo}/hello.wsgi"\npythonpath = ["{demo}"]\nenv = {{ APP_NAME = "added" }}\n'


def prepare() -> None:
    """Build the venvs that are missing or out of date, and write the config file; raises make_venv.Failed."""
    say(f"demo: CPython {platform.python_version()}, building in {shown(HOME)}")
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME.parent / ".gitignore").write_text("*\n")
    venvs = [SERVER, *(app.venv for app in APPS if app.requirements)]
    if not make_venv.make(sys.executable, venvs, make_venv.Progress(sys.stdout)):
        say("demo: all venvs are up to date")
    CONFIG.write_text(config_text())
    SITES.mkdir(exist_ok=True)
    (SITES / ADDED.name).unlink(missing_ok=True)  # of an earlier run
    ADDED.write_text(added_text())


def port_of(environ: dict[str, str]) -> int:
    text = environ.get("PORT") or PORT
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):  # what TCP has
        raise Fault(f"PORT: expected a number from 1 to 65535, got {text!r}")
    return int(text)


def check_free(port: int) -> None:
    """Raise Fault if nobody could listen on the port now; said early, not after a minute of installing."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn does, so TIME_WAIT is no obstacle
        try:
            probe.bind((ADDRESS, port))
        except OSError as exc:
            raise Fault(f"cannot listen on {ADDRESS}:{port}: {exc.strerror}; set PORT to another, as in: make demo PORT=8001") from exc


def serve(port: int) -> int:
    """Run gunicorn until it ends or Stop is raised, tell what answers where, and return its exit status."""
    say(f"\ndemo: serving {shown(CONFIG)} from one worker process\n")
    for app in APPS:
        say(f"  {app.path:<14} {app.target:<28} {app.contents}")
    say()
    command = ["gunicorn", "-k", "isowsgi.Worker", "--workers", "1", "--bind", f"{ADDRESS}:{port}", "--no-control-socket", CONFIG.name]
    gunicorn = None
    try:
        with stop_put_off():  # else a Ctrl-C could come when gunicorn runs and nobody knows of it yet
            gunicorn = subprocess.Popen(
                [SERVER.python, "-m", *command],
                cwd=HOME,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C reaches it once, from us, and one signal to its group reaches its worker too
            )
        announce(port, gunicorn)
        status = gunicorn.wait()
    finally:
        if gunicorn is not None:
            stop(gunicorn)
    say(f"demo: gunicorn ended by itself with status {status}")
    return status if status >= 0 else 128 - status  # negative: the signal that ended it, which a shell adds to 128


def announce(port: int, gunicorn: subprocess.Popen[bytes]) -> None:
    """Print the URL of each app as soon as it answers; name those that do not in time, and continue with the rest."""
    deadline = time.monotonic() + FIRST_ANSWER_S
    waiting = {app.path: f"http://{ADDRESS}:{port}{app.path}" for app in APPS}
    width = max(map(len, waiting.values()))
    while waiting and gunicorn.poll() is None:
        for path, url in list(waiting.items()):
            status, text = ask(port, path)
            if status == http.client.OK:
                say(f"open {url:<{width}}   {summary(text)}")
            elif status >= http.client.INTERNAL_SERVER_ERROR and status != http.client.SERVICE_UNAVAILABLE:  # 503: it still boots
                say(f"     {url:<{width}}   answered {status}; its traceback is above")
            elif time.monotonic() > deadline:
                say(f"     {url:<{width}}   did not answer within {FIRST_ANSWER_S:g} s")
            else:
                continue
            del waiting[path]
        time.sleep(0.1)
    if gunicorn.poll() is None:
        say(f"\nin another terminal:\n{hints()}\nCtrl-C ends it\n")


def hints() -> str:
    """Return the commands that look after the apps while they are served, for the config file of this demo."""
    command, config = shown(SERVER.folder / "bin" / "isowsgi"), shown(CONFIG)
    hints = {
        f"{command} status --config {config}": "what serves where",
        f"{command} reload /flask-new --config {config}": "load one app again; the others do not notice",
        f"cp {shown(ADDED)} {shown(SITES)}/": "write one more app into the configuration ...",
        f"{command} plan --config {config}": "... see what that changes ...",
        f"{command} apply --config {config}": "... and serve it, without a restart: /added/",
        f"{command} stacks /django-new --config {config}": "what its threads do now",
        f"{command} check {config}": "which isolation each app supports",
    }
    width = max(map(len, hints))
    return "".join(f"  {text:<{width}}   {meaning}\n" for text, meaning in hints.items())


def ask(port: int, path: str) -> tuple[int, str]:
    """Return status and body of a GET, or status 0 while nobody answers."""
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=1)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def summary(text: str) -> str:
    """Return what tells the apps apart, of a page in plain text (page.py writes it); the status page is HTML."""
    if text.startswith("<"):
        return "what serves, how fast, and what is wrong"
    first, *lines = text.splitlines() or [""]
    facts = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    return f"{first.partition(': ')[2]} (interpreter {facts.get('interpreter')}, {facts.get('GIL')})"


def stop(gunicorn: subprocess.Popen[bytes]) -> None:
    """End gunicorn and its worker within STOP_S; a request that still runs then is cut off."""
    if gunicorn.poll() is None:
        gunicorn.send_signal(signal.SIGINT)  # gunicorn's quick stop
        with contextlib.suppress(subprocess.TimeoutExpired):
            gunicorn.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(gunicorn.pid, signal.SIGKILL)
    gunicorn.wait()


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Be the terminal's foreground process group for a while, as a job that the shell itself started.

    Without it, Ctrl-C goes to `make` as well, which then reports an interrupt and fails although the demo ended as it should.
    """
    try:
        tty = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no terminal: a signal comes from `kill`, to us alone
        yield
        return
    shell_group = os.tcgetpgrp(tty)
    if shell_group != os.getpgrp() or os.getpid() == shell_group:  # in the background, or not started by make
        os.close(tty)
        yield
        return
    # A process that is not in the foreground is stopped by SIGTTOU when it takes the terminal. And Ctrl-Z would stop the demo alone,
    # behind a `make` that keeps waiting: nobody could type `fg`.
    for number in (signal.SIGTTOU, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(tty, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(tty, shell_group)
        os.close(tty)


def raise_stop(number: int, frame: FrameType | None) -> None:
    on_stop_signals(signal.SIG_IGN)  # the first is enough; a second must not cut the clean-up short
    raise Stop


@contextlib.contextmanager
def stop_put_off() -> Iterator[None]:
    """Let a stop signal that comes during the block raise Stop after it."""
    came: list[int] = []
    on_stop_signals(lambda number, frame: came.append(number))
    yield
    on_stop_signals(raise_stop)
    if came:
        raise_stop(came[0], None)


def on_stop_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def shown(path: Path) -> str:
    return os.path.relpath(path)


def say(text: str = "") -> None:
    print(text, flush=True)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--prepare"]):
        print("usage: demo.py [--prepare]", file=sys.stderr)
        return 2
    on_stop_signals(raise_stop)
    is_serving = False
    with terminal():
        try:
            port = port_of(dict(os.environ))
            if not arguments:
                check_free(port)
            prepare()
            if arguments:
                return 0
            check_free(port)
            is_serving = True
            return serve(port)
        except Fault as exc:
            print(f"demo: {exc}", file=sys.stderr)
            return 1
        except make_venv.Failed as exc:
            make_venv.fail("demo", exc)
        except Stop:
            say("\ndemo: stopped")
            return 0 if is_serving else 128 + signal.SIGINT  # what was interrupted while it was built is not built


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
