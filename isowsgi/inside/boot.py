"""Life of an instance from the inside: prepare its surroundings, load its apps, serve, end.

`run` is called once: in a subinterpreter on the keeper's thread, which was born in the main interpreter; in a child process on its main
thread; for the main interpreter on a thread of it. App code never runs there: extensions that use PyGILState would find the main
interpreter (3.11). Apps are loaded, called and ended in threads born here.
"""

from __future__ import annotations

import _thread
import atexit
import gc
import importlib.util
import math
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.machinery import SourceFileLoader
from typing import Any

from gunicorn import util

from isowsgi.inside import environment, extensions, forks, leftovers, locks
from isowsgi.inside.admission import Admission
from isowsgi.inside.control import Control
from isowsgi.inside.crew import AppThread, Gate, introduce
from isowsgi.inside.deadlines import Patience, RequestTimeout, Watcher
from isowsgi.inside.ending import load_ctypes
from isowsgi.inside.files import FileWatch, as_written, module_files
from isowsgi.inside.log import Log
from isowsgi.inside.private import share, theirs
from isowsgi.inside.runner import Runner, is_from_outside
from isowsgi.inside.serve import Service
from isowsgi.inside.settings import Settings
from isowsgi.inside.stacks import Stacks
from isowsgi.inside.wsgi import Application, Connection, Gateway
from isowsgi.shared import messages
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import Exchange, Mail, Port, SameProcess, blocking
from isowsgi.shared.messages import App, BootOrder, Member
from isowsgi.shared.peek import Peeker
from isowsgi.shared.routing import Router
from isowsgi.shared.scoreboard import BEAT, INTERNAL_ERRORS, LOADING, QUEUED, Scoreboard

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from isowsgi.inside.hooks import Hooks

_app_sys, _app_threading = theirs("sys"), theirs("threading")  # the app's, see `private`

# The module that a script's code becomes; in sys.modules, so that what it defines can be pickled.
_SCRIPT_MODULE = "isowsgi_script"

# Longest traceback that is sent to the supervisor; a packet's limit is the socket's send buffer, 208 KiB by default.
_MAX_TRACEBACK_CHARS = 32 * 1024

# Names and paths of extension modules in one packet: some 40 KiB, beside a traceback.
_EXTENSIONS_PER_PACKET = 200

# How long exit functions of the app may take before the instance counts as ended all the same.
_EXIT_FUNCTIONS_S = 5.0

# How long before the end of a drain connections that apps have taken over are ended: time for their threads to come out, before the
# instance counts as stuck.
_SHUT_BEFORE_S = 3.0

# How long a thread that was joined may still be counted: its state goes away a little later (3.11, 3.12).
_THREAD_GONE_S = 0.5


# How long after an exception of a request the next one is passed on; all are in the log, and the supervisor keeps the latest few.
_EXCEPTION_PAUSE_S = 0.1


# A variable that libc reads for the whole process.
_OTHER_ZONE = (
    'env TZ = %r has no effect on local times: the process has one time zone for all of its mounts; set isolation = "process" for this '
    "mount, or TZ for gunicorn itself"
)


def run(order: BootOrder, logger: Any = None) -> None:
    """Be an instance, until the supervisor stops it; returns with as few threads left inside as the apps allow.

    Args:
        logger: gunicorn's, where there is one already: in the main interpreter.
    """
    cfg = Settings(order.settings)
    log = Log(cfg, order.tag, order.log, logger, order.log_files)
    prepare(order, log)

    def end_lines() -> None:
        out.end_lines()
        err.end_lines()

    before = _app_sys.stdout, _app_sys.stderr
    out, err = log.capture_streams()
    has_ended = Instance(order, cfg, log, err, end_lines).run()
    end_lines()
    if order.isolation == "main":
        if _app_sys.stdout is out:  # else another instance has come since
            _app_sys.stdout, _app_sys.stderr = before
    elif has_ended:
        out.close()
        err.close()


def prepare(order: BootOrder, log: Log) -> None:
    """Give an app its own path, variables, arguments and signals."""
    around = order.environment
    if order.isolation == "process":
        environment.enter_folder(around.chdir)
        environment.update_environ(around.env)
        time.tzset()  # for a TZ among them
    else:
        if around.env.get("TZ", zone := os.environ.get("TZ")) != zone:
            log.warning(_OTHER_ZONE, around.env["TZ"])
        environment.set_environ(around.env)
        forks.refuse()
        if order.isolation != "main":
            environment.guard_new_interpreters(order.host.packages["isowsgi"])
    share(RequestTimeout)
    if around.policy:
        from isowsgi.inside import policy  # late: most mounts have none, and need not pay for it

        policy.install(around.policy, order.name, log)
    if order.isolation == "main":
        environment.extend_path(around.pythonpath)
    else:
        if order.isolation != "process":
            locks.install()
        extensions.install(order.loading.extensions)
        try:
            environment.set_path(around.pythonpath, around.venv, order.host.site, around.start_folder)
        except extensions.UnknownExtension:  # a .pth file imports it; the boot reports it
            pass
    sys.set_int_max_str_digits(order.host.max_int_digits)  # 3.11 sets no limit in new interpreters (CVE-2020-10735)
    environment.set_signals(log.info)
    sys.argv[:] = [order.members[0].app.target]


class WarmUpError(Exception):
    """The app was loaded, but its answer to the warm-up request is a server error."""


class Instance:
    """Wires the service of one app, or of a group of them, its runner and its control thread together."""

    def __init__(self, order: BootOrder, cfg: Any, log: Log, errors: Any, end_lines: Callable[[], None]) -> None:
        self._order = order
        self._cfg = cfg
        self._log = log
        self._errors = errors
        self._end_lines = end_lines
        assert order.fds is not None, "the maker of the instance gives it descriptors"
        self._fds = order.fds
        self._board = Scoreboard(self._fds.board, order.place.region)
        self._control_rows = self._board.control_rows(order.place.first_row, [member.mount for member in order.members])
        self._control_row = self._board.row(order.place.first_row)  # the first of them, for what is no mount's own
        self._containment = Containment(log, self._control_row.words)
        self._service: Service | None = None
        self._watcher: Watcher | None = None
        self._stacks = Stacks(order.host.can_see_stacks, order.host.frames_are_own)
        self._admission: Admission | None = None
        self._files = FileWatch(order.environment.links) if order.loading.watch else None
        self._is_draining = self._is_last = False  # as ordered, for a service that is not made yet
        self._shut_at = math.inf  # monotonic seconds when connections that apps have taken over are closed
        self._runner: Runner[Connection] = Runner(lambda: self._control.rouse(), self._note_disturbance)
        self._control = Control(
            channel=blocking(socket.socket(fileno=os.dup(self._fds.channel))),
            runner=self._runner,
            rouse_fd=self._fds.rouse,
            needs_ticker=order.host.needs_ticker,
            orders={
                messages.Drain: lambda order: self._drain(),
                messages.Last: lambda order: self._last(),
                messages.Stop: self._on_stop,
                messages.Reopen: lambda order: log.reopen_files(),
                messages.TellStacks: lambda order: self._tell_stacks(order.ask),
                messages.Measure: lambda order: self._control.report(messages.Measured(objects=len(gc.get_objects()))),
            },
            on_lost=self._lose_worker,
            duty=self._look_after,
            containment=self._containment,
        )
        self._is_in_hook = False  # while they are loaded and `on_boot` is called
        self._whose = ""  # app could not be loaded, in a group
        self._loaded = Gate()  # for the threads that wait until there is something to serve
        self._is_served = False
        self._next_exception = 0.0
        # Whether the process lives on without this instance: assumed until an order says otherwise. An instance that fails to boot gets no
        # order.
        self._must_free = order.isolation != "process"
        self._hooks: Hooks | None = None
        # Before the app is loaded, see `private`.
        if order.serving.request_timeout_s:
            load_ctypes()
        if order.hooks:
            from isowsgi.inside import hooks  # noqa: F401 # most mounts have none, and need not pay for it

    def run(self) -> bool:
        """Be the instance until it has ended; return whether no thread is left."""
        control = threading.Thread(target=self._guarded, args=(self._control.run,), name="isowsgi-control", daemon=True)
        control.start()
        self._run_threads()
        if self._hooks is not None:
            self._hooks.join()
        is_main = self._order.isolation == "main"
        if not is_main:  # else they are the worker's own, and run when it exits
            self._run_exit_functions()
        left = 0 if is_main else _threads_left()
        if left and self._must_free:
            left = leftovers.end_threads({control.ident, threading.main_thread().ident}, lambda: _thread._count() - 1)
        if not left:
            self._control.end()
            control.join()
        # Else the interpreter is left behind, and its control thread with it: before 3.13 a thread of the app's that is busy would keep
        # all others from running without the ticker.
        self._control.report(messages.Closed(threads=left))
        return not left

    def _boot(self) -> None:
        """Load the app, then be the first of the threads that serve it."""
        started = time.monotonic()
        try:
            service = self._load()
            self._is_served = True
        except BaseException as exc:  # SystemExit too: a script that exits has not loaded
            self._report_failure(exc)
            return
        finally:
            self._loaded.open()
        self._report_files(set(module_files()))
        refused, loaded = extensions.current.refused, self._report_extensions()
        boot_s = round(time.monotonic() - started, 3)
        self._control.report(messages.Ready(boot_s=boot_s, objects=len(gc.get_objects()), extensions=loaded, refused=refused))
        if self._files is not None:
            self._control.rouse()  # from now on it has something to look after
        self._work(service, 0)

    def _load(self) -> Service:
        record = extensions.current
        record.check()
        service = self._make_service()
        for name in self._order.loading.imports:
            importlib.import_module(name)
        if self._fds.survey >= 0:
            self._look_closer(record)
        record.check()
        record.end_guard(lambda name, path, error: self._control.report(messages.Refused(name=name, path=path, error=error)))
        if self._order.loading.pause_s:
            from isowsgi.inside import pace  # late: only replacements have it

            pace.speed_up()
        self._end_lines()
        return service

    def _run_threads(self) -> None:
        """Start the threads, of which the first loads the app, and wait for their end; all, or the app is not loaded."""
        threads: list[AppThread] = []
        try:
            for number in range(1, self._order.serving.threads):
                threads.append(AppThread(partial(self._guarded, self._work_once_loaded, number), f"isowsgi-{number}"))
            threads.append(AppThread(partial(self._guarded, self._boot), "isowsgi-0"))
        except RuntimeError as exc:
            self._report_failure(exc)
            self._loaded.open()
        for thread in threads:
            thread.join()

    def _work_once_loaded(self, number: int) -> None:
        self._loaded.pass_through()
        if self._service is not None and self._is_served:
            self._work(self._service, number)

    def _report_failure(self, exc: BaseException) -> None:
        """Say why the app was not loaded; in the handler of that exception."""
        self._report_files(set(module_files()) | _files_of(exc))
        self._control.report(
            messages.Failed(
                error=_one_line(exc) + self._whose + environment.green_threads(),
                traceback=_traceback(),
                is_in_hook=self._is_in_hook,
                unknown_extension=extensions.current.unknown,
                extensions=self._report_extensions(),
                refused=extensions.current.refused,
            )
        )

    def _look_closer(self, record: extensions.Extensions) -> None:
        """Do what only a trial does."""
        from isowsgi.inside import survey

        survey.resolve_lazy_imports()
        survey.tell(self._fds.survey, record, is_gil_shared=self._order.isolation == "shared-gil")

    def _report_files(self, files: set[str]) -> None:
        """Report the files on which the app depends, if they are watched."""
        names = sorted(as_written(files, self._order.environment.links)) if self._order.loading.report_files else []
        for start in range(0, len(names), 200):
            self._control.report(messages.Files(files=names[start : start + 200]))

    def _report_extensions(self) -> list[tuple[str, str]]:
        """Say which extension modules were loaded, but for the last of them, which are returned: they are too many for one packet."""
        loaded = list(extensions.current.loaded)
        rest = max(len(loaded) - 1, 0) // _EXTENSIONS_PER_PACKET * _EXTENSIONS_PER_PACKET
        for start in range(0, rest, _EXTENSIONS_PER_PACKET):
            self._control.report(messages.Extensions(extensions=loaded[start : start + _EXTENSIONS_PER_PACKET]))
        return loaded[rest:]

    def _work(self, service: Service, number: int) -> None:
        service.enter_thread(number)
        self._runner.work(service)

    def _run_exit_functions(self) -> None:
        closing = threading.Thread(target=_run_exit_functions, args=(self._must_free,), name="isowsgi-exit", daemon=True)
        try:
            closing.start()
        except RuntimeError:
            self._log.error("cannot start a thread for the app's exit functions; they are not called")
        else:
            closing.join(_EXIT_FUNCTIONS_S)

    def _note_disturbance(self, exc: BaseException) -> None:
        """Say that an exception came in a serving thread between two requests."""
        if is_from_outside(exc):
            text = (
                "a serving thread got an exception after its request had ended, probably raised by another thread; the thread continues: %s"
            )
            self._log.warning(text, _one_line(exc))
            return
        try:
            raise exc
        except Exception:
            self._containment.failed("serving thread between two requests")

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        """Be one of the instance's own threads; if it ends by a fault, that is reported."""
        try:
            function(*args)
        except BaseException as exc:  # also what an app raises in a thread that is not its own
            self._tell_broken(exc)

    def _tell_broken(self, exc: BaseException) -> None:
        """Say that the calling thread, which is one of ours, ends by a fault: the instance cannot do all of its work any more."""
        self._control_row.words[INTERNAL_ERRORS] += 1
        name = threading.current_thread().name
        self._control.report(messages.Broken(thread=name, error=_one_line(exc)[:1000], traceback=_traceback()))

    def _make_service(self) -> Service:
        order, serving = self._order, self._order.serving
        end_loading = environment.be_main_thread_while_loading()
        try:
            apps = [self._load_app(member) for member in order.members]
        finally:
            end_loading()
        if order.hooks:
            self._is_in_hook = True
            self._load_hooks()
            self._is_in_hook = False
        gateways = {member.mount: self._make_gateway(member, app) for member, app in zip(order.members, apps, strict=True)}
        for member in order.members:
            self._warm_up(gateways[member.mount], member.warmup)
        peeker = Peeker(Router(serving.routes), self._cfg, os.environ.get("SCRIPT_NAME", ""))
        service = Service(order, gateways, self._log, peeker, self._board, self._make_exchange(), self._containment)
        self._admission = Admission(self._runner, service, serving.queue, serving.queue_timeout_s)
        self._watcher = Watcher(
            service.jobs,
            serving.request_timeout_s,
            self._log,
            lambda stack: self._control.report(messages.Stuck(stack=stack[-_MAX_TRACEBACK_CHARS:])),
            self._stacks,
            self._control_rows,
            Patience(serving.body_timeout_s, serving.send_timeout_s, serving.min_rate),
            self._containment,
            slow_s=serving.slow_request_s,
        )
        # Whichever comes last, this or an order, finds the other.
        self._service = service
        service.in_service = self._runner.in_service
        service.draining = self._is_draining
        service.last = service.last or self._is_last
        return service

    def _load_app(self, member: Member) -> Application:
        words = self._control_rows[member.mount].words
        words[LOADING] = 1  # if that ends the process, the master knows whose doing it was
        try:
            return load(member.app, member.mount)
        except BaseException:
            if len(self._order.members) > 1:
                self._whose = f" (the app of {member.pattern})"
            raise
        finally:
            words[LOADING] = 0

    def _make_gateway(self, member: Member, app: Application) -> Gateway:
        order = self._order
        extra: dict[str, Any] = {
            "wsgi.errors": self._errors,
            "wsgi.multithread": order.serving.threads > 1,
            "wsgi.multiprocess": order.serving.multiprocess,
            "isowsgi.mount": member.pattern,
            "isowsgi.generation": order.generation,
            "isowsgi.isolation": order.isolation,
        }
        if (status := order.status) is not None:
            extra["isowsgi.status"] = {"host": status.host, "allow": status.allow, "hosts": status.hosts, "board": self._fds.board}
        prefix = next(route.prefix for route in order.serving.routes if route.mount == member.mount)
        parts = (member.mount, app, self._cfg, self._log, prefix, extra, self._end_lines, self._tell_exception)
        if self._hooks is None or not self._hooks.for_requests:
            return Gateway(*parts)
        from isowsgi.inside.hooks import HookedGateway  # late, as in _load_hooks

        gateway = HookedGateway(*parts)
        gateway.hooks = self._hooks
        return gateway

    def _load_hooks(self) -> None:
        """Load the mount's hooks and call the first of them."""
        # Late: most mounts have none, and need not pay for it.
        from isowsgi.inside.hooks import Hooks

        order = self._order
        info = {"generation": order.generation, "isolation": order.isolation, "threads": order.serving.threads, "mount": order.name}
        hooks = Hooks(order.hooks, info, self._log)
        hooks.boot()
        self._hooks = hooks  # whichever comes last, this or the order to drain, finds the other
        if self._is_draining:
            hooks.drain()

    def _warm_up(self, gateway: Gateway, path: str | None) -> None:
        if path is None:
            return
        listeners = self._order.serving.listeners
        status = gateway.warm_up(path, tuple(listeners[0]) if listeners else None)
        if not "100" <= status[:3] < "500":
            raise WarmUpError(f"the warm-up request {path!r} was answered {status!r}")

    def _make_exchange(self) -> Exchange:
        fds = self._fds
        if fds.mail >= 0:
            return Mail(blocking(socket.socket(fileno=os.dup(fds.mail))))
        returns, lingering = (Port.open(fd, self._order.serving.arm_returns) for fd in (fds.returns, fds.lingering))
        return SameProcess(returns, lingering, self._board.row(0).words, lambda: os.eventfd_write(fds.capacity, 1))

    def _look_after(self, now: float) -> bool:
        """Do what is due on the control thread; see `control.Duty`."""
        self._control_row.words[BEAT] = int(now * 1000)
        watcher, admission, service = self._watcher, self._admission, self._service
        is_busy = False
        if watcher is not None and admission is not None and service is not None:
            service.enter_control(self._control_rows)
            watcher.look(now)
            is_busy = watcher.is_anyone_busy()
            if is_busy:  # each call contained alone: one may be a client's only rescue
                self._containment.call("check of waiting connections", admission.look, service.draining)
                if now > self._shut_at:
                    self._containment.call("closing connections that the app has taken over", service.shut_taken_over)
            self._control_row.words[QUEUED] = admission.waiting if is_busy else 0
        if self._files is not None and self._service is not None:
            changed = self._files.changed(now)
            if changed is not None:
                self._control.report(messages.Changed(file=changed))
        return is_busy or self._files is not None

    # Orders, on the control thread. The runner's baton may be held by a thread inside a request, so they only leave a note and poke.

    def _drain(self) -> None:
        if not self._is_draining:
            drain_s = self._order.serving.drain_s
            self._shut_at = time.monotonic() + max(drain_s - _SHUT_BEFORE_S, drain_s / 2)
        self._is_draining = True
        self._files = None  # what replaces it has its own watch; until then a repaired file must be seen too
        if self._service is not None:
            self._service.draining = True
            self._poke()
        if self._hooks is not None:  # last: it starts a thread, and may find no room for it
            self._hooks.drain()

    def _last(self) -> None:
        self._is_last = True
        if self._service is not None:
            self._service.last = True
        self._drain()

    def _tell_stacks(self, ask: int) -> None:
        """Say where all threads are, also while the app is being loaded."""
        jobs = self._service.jobs if self._service is not None else []
        text = self._stacks.of_all({job.ident: job.row.line() for job in jobs if job.connection is not None})
        while True:
            part, text = text[:_MAX_TRACEBACK_CHARS], text[_MAX_TRACEBACK_CHARS:]
            self._control.report(messages.Stacks(ask=ask, text=part, is_last=not text))
            if not text:
                return

    def _tell_exception(self, request: str, exc: BaseException) -> None:
        """Pass on what a request raised; on a serving thread, so it must not wait, and reports must be few."""
        now = time.monotonic()
        if now < self._next_exception:
            return
        self._next_exception = now + _EXCEPTION_PAUSE_S
        self._control.report_if_room(messages.Raised(request=request[:500], error=_one_line(exc)[:1000], traceback=_traceback()[-8192:]))

    def _on_stop(self, order: messages.Stop) -> None:
        self._must_free = order.frees and self._order.isolation != "process"
        self._stop()

    def _stop(self) -> None:
        self._runner.stopping = True
        self._poke()

    def _lose_worker(self) -> None:
        if self._order.isolation == "process":
            end_process(1)

    def _poke(self) -> None:
        os.eventfd_write(self._fds.poke, 1)


def end_process(status: int) -> None:
    """End a process that is this instance's alone, whatever its threads do; in one place, for a policy to know it."""
    os._exit(status)


def load(app: App, mount: int) -> Application:
    """Import an app as gunicorn's `import_app` does, or run a script as mod_wsgi does and take its callable.

    Args:
        app: of kind "module" with a dotted name as target, or "script" with a path; and the attribute or factory call.
        mount: the mount's number; scripts of one interpreter are modules of different names.
    """
    target = app.target
    if app.kind == "script":
        name = _SCRIPT_MODULE if _SCRIPT_MODULE not in _app_sys.modules else f"{_SCRIPT_MODULE}_{mount}"
        loader = SourceFileLoader(name, target)
        spec = importlib.util.spec_from_file_location(name, target, loader=loader)
        assert spec is not None, "a loader was given"
        module = importlib.util.module_from_spec(spec)
        _app_sys.modules[name] = module
        loader.exec_module(module)
        target = name
    loaded: Application = util.import_app(f"{target}:{app.call}")
    return loaded


def _one_line(exc: BaseException) -> str:
    lines = traceback.format_exception_only(exc)
    try:
        notes = len("\n".join(map(str, getattr(exc, "__notes__", ()))).splitlines())  # they come behind it
    except Exception:  # the app's code made them
        notes = 0
    return lines[max(-1 - notes, -len(lines))].strip()[: messages.MAX_ERROR_CHARS]


def _traceback() -> str:
    """Return the current exception's traceback from the app's first frame on."""
    text = traceback.format_exc()
    return text if len(text) <= _MAX_TRACEBACK_CHARS else "...\n" + text[-_MAX_TRACEBACK_CHARS:]


def _files_of(exc: BaseException | None) -> set[str]:
    """Return the files an exception came through; a module that fails to load is no longer in `sys.modules`."""
    files = set()
    while exc is not None:
        files |= {frame.f_code.co_filename for frame, _ in traceback.walk_tb(exc.__traceback__)}
        if isinstance(exc, SyntaxError) and exc.filename:
            files.add(exc.filename)
        exc = exc.__cause__ or exc.__context__
    return files


def _run_exit_functions(must_free: bool) -> None:
    """Do what the end of the interpreter would: end thread pools, then call the app's `atexit` functions; and what it would not.

    Here and not in destroy(), since at a worker's exit nothing is destroyed, and a pool's idle threads must go before it may be.
    """
    introduce("isowsgi-exit")
    for function in reversed(getattr(_app_threading, "_threading_atexits", [])):
        try:
            function()
        except Exception:
            traceback.print_exc()
    atexit._run_exitfuncs()
    if must_free:
        leftovers.end_helpers()


def _threads_left() -> int:
    """Count the threads that the app leaves behind: all but the control thread."""
    deadline = time.monotonic() + _THREAD_GONE_S
    while _thread._count() > 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    return _thread._count() - 1
