"""Life of an instance from the inside: prepare the interpreter, load the app, serve, end.

`run` is called once, on the keeper's thread, which was born in the main interpreter. App code never runs there: extensions that use
PyGILState would find the main interpreter (3.11). The app is loaded, called and ended in threads born here.
"""

from __future__ import annotations

import _thread
import atexit
import importlib.util
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from typing import Any

from gunicorn import util

from isowsgi.inside import environment
from isowsgi.inside.control import Control
from isowsgi.inside.log import Log
from isowsgi.inside.runner import Runner
from isowsgi.inside.serve import Service
from isowsgi.inside.settings import Settings
from isowsgi.inside.wsgi import Application, Gateway
from isowsgi.peek import Peeker
from isowsgi.routing import Route, Router
from isowsgi.scoreboard import Scoreboard

# The module that a script's code becomes; in sys.modules, so that what it defines can be pickled.
_SCRIPT_MODULE = "isowsgi_script"

# Longest traceback that is sent to the supervisor; a packet's limit is the socket's send buffer, 208 KiB by default.
_MAX_TRACEBACK_CHARS = 32 * 1024

# How long exit functions of the app may take before the instance counts as ended all the same.
_EXIT_FUNCTIONS_S = 5.0

# How long a thread that was joined may still be counted: its state goes away a little later (3.11, 3.12).
_THREAD_GONE_S = 0.5


def run(order: dict[str, Any]) -> None:
    """Be an instance, until the supervisor stops it; returns with as few threads left inside as the app allows."""
    cfg = Settings(order["settings"])
    log = Log(cfg, order["tag"])
    environment.set_environ(order["env"])
    environment.set_path(order["pythonpath"], order["venv"], order["host_site"])
    environment.set_signals(log.info)
    out, err = log.capture_streams()
    app = order["app"]
    sys.argv[:] = [app["target"]]

    def end_lines() -> None:
        out.end_lines()
        err.end_lines()

    Instance(order, cfg, log, err, end_lines).run()
    out.close()
    err.close()


class Instance:
    """Wires an app's service, its runner and its control thread together."""

    def __init__(self, order: dict[str, Any], cfg: Any, log: Log, errors: Any, end_lines: Callable[[], None]) -> None:
        self._order = order
        self._cfg = cfg
        self._log = log
        self._errors = errors
        self._end_lines = end_lines
        self._fds = order["fds"]
        self._service: Service | None = None
        self._runner = Runner(lambda: self._control.rouse())
        self._control = Control(
            socket.socket(fileno=os.dup(self._fds["channel"])),
            self._runner,
            self._fds["rouse"],
            order["needs_ticker"],
            {"drain": self._drain, "last": self._last, "stop": self._stop, "reopen": log.reopen_files},
        )
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        control = threading.Thread(target=self._control.run, name="isowsgi-control", daemon=True)
        control.start()
        first = threading.Thread(target=self._boot, name="isowsgi-0")
        first.start()
        first.join()
        for thread in self._threads:
            thread.join()
        closing = threading.Thread(target=_run_exit_functions, name="isowsgi-exit", daemon=True)
        closing.start()
        closing.join(_EXIT_FUNCTIONS_S)
        self._control.end()
        control.join()
        self._control.report("closed", threads=_threads_left())

    def _boot(self) -> None:
        """Load the app, then be the first of the threads that serve it."""
        started = time.monotonic()
        try:
            app = load(self._order["app"])
            service = self._service = self._make_service(app)
        except BaseException as exc:  # SystemExit too: a script that exits has not loaded
            self._control.report("failed", error=_one_line(exc), traceback=_traceback())
            return
        self._log.survive_reconfiguration()
        self._end_lines()
        for number in range(1, self._order["threads"]):
            thread = threading.Thread(target=self._work, args=(service, number), name=f"isowsgi-{number}")
            self._threads.append(thread)
            thread.start()
        files = _module_files() if self._order["report_files"] else []
        for start in range(0, len(files), 200):
            self._control.report("files", files=files[start : start + 200])
        self._control.report("ready", boot_s=round(time.monotonic() - started, 3))
        self._work(service, 0)

    def _work(self, service: Service, number: int) -> None:
        service.enter_thread(number)
        self._runner.work(service.poll, service.serve)

    def _make_service(self, app: Application) -> Service:
        order = self._order
        routes = [Route(*route) for route in order["routes"]]
        prefix = next(route.prefix for route in routes if route.mount == order["mount"])
        extra = {
            "wsgi.errors": self._errors,
            "wsgi.multithread": order["threads"] > 1,
            "wsgi.multiprocess": order["multiprocess"],
            "isowsgi.mount": order["pattern"],
            "isowsgi.generation": order["generation"],
            "isowsgi.isolation": order["isolation"],
        }
        script_name = os.environ.get("SCRIPT_NAME", "")
        board = Scoreboard(order["board_rows"], self._fds["board"])
        return Service(
            order,
            Gateway(app, self._cfg, self._log, prefix, extra, self._end_lines),
            self._log,
            Peeker(Router(routes), self._cfg, script_name),
            board,
            lambda: os.eventfd_write(self._fds["capacity"], 1),
        )

    # Orders, on the control thread. The runner's baton may be held by a thread inside a request, so they only leave a note and poke.

    def _drain(self) -> None:
        if self._service is not None:
            self._service.draining = True
            self._poke()

    def _last(self) -> None:
        if self._service is not None:
            self._service.last = True
        self._drain()

    def _stop(self) -> None:
        self._runner.stopping = True
        self._poke()

    def _poke(self) -> None:
        os.eventfd_write(self._fds["poke"], 1)


def load(app: dict[str, str]) -> Application:
    """Import an app as gunicorn's `import_app` does, or run a script as mod_wsgi does and take its callable.

    Args:
        app: kind "module" with a dotted name as target, or "script" with a path; and the attribute or factory call.
    """
    target = app["target"]
    if app["kind"] == "script":
        loader = SourceFileLoader(_SCRIPT_MODULE, target)
        spec = importlib.util.spec_from_file_location(_SCRIPT_MODULE, target, loader=loader)
        assert spec is not None, "a loader was given"
        module = importlib.util.module_from_spec(spec)
        sys.modules[_SCRIPT_MODULE] = module
        loader.exec_module(module)
        target = _SCRIPT_MODULE
    loaded: Application = util.import_app(f"{target}:{app['call']}")
    return loaded


def _one_line(exc: BaseException) -> str:
    lines = traceback.format_exception_only(exc)
    return lines[-1].strip()


def _traceback() -> str:
    """Return the current exception's traceback from the app's first frame on."""
    text = traceback.format_exc()
    return text if len(text) <= _MAX_TRACEBACK_CHARS else "...\n" + text[-_MAX_TRACEBACK_CHARS:]


def _module_files() -> list[str]:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(file for file in files if file)


def _run_exit_functions() -> None:
    """Do what the end of the interpreter would: end thread pools, then call the app's `atexit` functions.

    Here and not in destroy(), since at a worker's exit nothing is destroyed, and a pool's idle threads must go before it may be.
    """
    for function in reversed(getattr(threading, "_threading_atexits", [])):
        try:
            function()
        except Exception:
            traceback.print_exc()
    atexit._run_exitfuncs()


def _threads_left() -> int:
    """Count the threads that the app leaves behind."""
    deadline = time.monotonic() + _THREAD_GONE_S
    while _thread._count() and time.monotonic() < deadline:
        time.sleep(0.005)
    return _thread._count()
