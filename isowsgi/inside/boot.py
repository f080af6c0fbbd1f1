"""Life of an instance from the inside: prepare its surroundings, load its apps, serve, end.

`run` is called once: in a subinterpreter on the keeper's thread, which was born in the main interpreter; in a child process on its main
thread; for the main interpreter on a thread of it. App code never runs there: extensions that use PyGILState would find the main
interpreter (3.11). Apps are loaded, called and ended in threads born here.

A thread of ours that ends by a fault, one that serves for example, is reported by `telling`; the worker then replaces the instance (see
`worker.instancereports`).
"""

from __future__ import annotations

import _thread
import importlib
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from isowsgi.inside import closing, environment, extensions, forks, leftovers, locks, takeover
from isowsgi.inside.admission import Admission
from isowsgi.inside.console import Consoles
from isowsgi.inside.controlthread import Control
from isowsgi.inside.deadlines import Job, RequestTimeout, Watcher
from isowsgi.inside.errorbook import ErrorBook
from isowsgi.inside.files import FileWatch
from isowsgi.inside.growth import Growth
from isowsgi.inside.heap import Heap
from isowsgi.inside.loading import Loader
from isowsgi.inside.log import Log
from isowsgi.inside.permission import Permission
from isowsgi.inside.private import share, theirs
from isowsgi.inside.profiler import Profiler
from isowsgi.inside.runner import Runner
from isowsgi.inside.serve import Service
from isowsgi.inside.settings import Settings
from isowsgi.inside.stacks import Stacks
from isowsgi.inside.streams import unended
from isowsgi.inside.telling import Teller
from isowsgi.inside.threads import AppThread, Gate
from isowsgi.inside.wsgi import Connection
from isowsgi.shared import messages
from isowsgi.shared.cfunctions import load_ctypes
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import Exchange, Mail, Port, SameProcess, blocking
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.peek import Peeker
from isowsgi.shared.routing import Route, Router
from isowsgi.shared.rows import OWN_GILS, Region

_app_sys = theirs("sys")  # the app's, see `private`

# How long before the end of a drain connections that apps have taken over are ended: time for their threads to come out, before the
# instance counts as stuck.
_SHUT_BEFORE_S = 3.0

# Longest text about why the memory cannot be measured.
_MOST_PROBLEM_CHARS = 200

# A variable that libc reads for the whole process.
_OTHER_ZONE = (
    'env TZ = %r has no effect on local times: the process has one time zone for all of its mounts; set isolation = "process" for this '
    "mount, or TZ for gunicorn itself"
)


class Ground:
    """What an app stands on: its log, its streams, and all that is prepared before it is loaded.

    Attributes:
        cfg: gunicorn's settings.
        err: what the app has as standard error.
        apps: those that are loaded already, by their mounts' numbers: in a copy, see `original`.
    """

    def __init__(self, order: BootOrder, logger: Any = None) -> None:
        self.cfg = Settings(order.settings)
        self.log = Log(self.cfg, order.tag, order.log, logger, order.log_files, order.log_form)
        prepare(order, self.log)
        self._before = _app_sys.stdout, _app_sys.stderr
        self._log_files = order.log_files
        self._out, self.err = self.log.capture_streams()
        self.apps: dict[int, Any] = {}

    def take_over(self, order: BootOrder) -> None:
        """Be the ground of a copy, with its tag and its descriptors of log files."""
        for path, fd in self._log_files.items():
            if (new := order.log_files.get(path)) is not None:
                os.dup2(new, fd, inheritable=False)
        self.log.take_over(order.tag, order.log_form)

    def end_lines(self) -> None:
        self._out.end_lines()
        self.err.end_lines()
        unended.discard(threading.get_ident())

    def leave(self, is_main: bool, has_ended: bool) -> None:
        """Take leave of the app's output once it has ended.

        Args:
            is_main: whether this is the main interpreter.
            has_ended: whether no thread is left.
        """
        self.end_lines()
        if is_main:
            if _app_sys.stdout is self._out:  # else another instance has come since
                _app_sys.stdout, _app_sys.stderr = self._before
        elif has_ended:
            self._out.close()
            self.err.close()


def run(order: BootOrder, logger: Any = None, ground: Ground | None = None) -> None:
    """Be an instance, until the supervisor stops it; returns with as few threads left inside as the apps allow.

    Args:
        logger: gunicorn's, where there is one already: in the main interpreter.
        ground: with the apps, where they were loaded before; None: all is prepared here.
    """
    ground = ground or Ground(order, logger)
    has_ended = Instance(order, ground).run()
    ground.leave(order.isolation == "main", has_ended)


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
    loading = order.loading
    if order.isolation != "main" and (loading.lazy_imports or loading.eager):
        from isowsgi.inside import laziness  # late, as above

        laziness.install(loading.lazy_imports, loading.eager)
    environment.set_signals(log.info)
    sys.argv[:] = [order.members[0].app.target]


class Instance:
    """Wires the service of one app, or of a group of them, its runner and its control thread together."""

    def __init__(self, order: BootOrder, ground: Ground) -> None:
        self._order = order
        self._cfg = ground.cfg
        self._log = log = ground.log
        self._end_lines = ground.end_lines
        assert order.fds is not None, "the maker of the instance gives it descriptors"
        self._fds = order.fds
        self._board = Region(self._fds.board, order.place.region)
        self._control_rows = self._board.control_rows(order.place.first_row, [member.mount for member in order.members])
        self._control_row = self._board.row(order.place.first_row)  # the first of them, for what is no mount's own
        self._containment = Containment(log, self._control_row.words)
        self._service: Service | None = None
        self._watcher: Watcher | None = None
        sees_stacks = _sees_stacks(order.host, self._board)
        self._stacks = Stacks(sees_stacks, order.host.frames_are_own)
        self._admission: Admission | None = None
        self._heap = Heap()
        self._growth = Growth(lambda ask, text: self._told.counted(ask, text), order.isolation)
        self._files = FileWatch(order.environment.links) if order.loading.watch else None
        self._is_draining = self._is_last = False  # as ordered, for a service that is not made yet
        self._routes = order.serving.routes
        self._limits = order.serving.limits
        self._new_routes: list[Route] = []  # as far as they have come
        self._shut_at = math.inf  # monotonic seconds when connections that apps have taken over are closed
        self._told = Teller(
            order,
            log,
            self._containment,
            self._stacks,
            report=lambda report: self._control.report(report),
        )
        self._book = ErrorBook(_package_of(member.app) for member in order.members)
        self._loader = Loader(order, ground.cfg, log, self._control_rows, ground.err, ground.end_lines, self._book, ground.apps)
        self._consoles = Consoles(lambda: self._loader.apps, self._told.shell, log.warning)
        self._profiler = Profiler(lambda: _jobs_of(self._service), self._told.profile, order.isolation, sees_stacks)
        self._runner: Runner[Connection] = Runner(lambda: self._control.rouse(), self._told.disturbance)
        self._permission = Permission(lambda report: self._control.report(report))
        self._control = self._make_control()
        self._loaded = Gate()  # for the threads that wait until there is something to serve
        self._is_served = False
        # Whether the process lives on without this instance: assumed until an order says otherwise. An instance that fails to boot gets no
        # order.
        self._must_free = order.isolation != "process"
        load_ctypes()  # before the app is loaded, see `private`

    def _make_control(self) -> Control:
        return Control(
            channel=blocking(socket.socket(fileno=os.dup(self._fds.channel))),
            runner=self._runner,
            rouse_fd=self._fds.rouse,
            needs_ticker=self._order.host.needs_ticker,
            orders={
                messages.Drain: lambda order: self._drain(),
                messages.Last: lambda order: self._last(),
                messages.Stop: self._on_stop,
                messages.Reopen: lambda order: self._log.reopen_files(),
                messages.Known: self._permission.take,
                messages.Reroute: self._reroute,
                messages.Limits: self._limit,
                messages.TellStacks: lambda order: self._told.stacks(order.ask, self._jobs_in_flight()),
                messages.Profile: lambda order: self._profiler.start(order, time.monotonic()),
                messages.OpenShell: self._consoles.open,
                messages.ShellInput: self._consoles.put,
                messages.EndShell: self._consoles.end,
                messages.EndProfile: lambda order: self._profiler.drop(order.ask),
                messages.Census: lambda order: self._growth.look(order.ask, order.trace_s, time.monotonic()),
                messages.EndCensus: lambda order: self._growth.drop(order.ask),
                messages.Measure: lambda order: self._control.report(_measured(self._heap)),
            },
            on_lost=self._lose_worker,
            duty=self._look_after,
            sampling=self._profiler,
            containment=self._containment,
        )

    def run(self) -> bool:
        """Be the instance until it has ended; return whether no thread is left."""
        control = threading.Thread(target=self._guarded, args=(self._book.within, self._control.run), name="isowsgi-control", daemon=True)
        control.start()
        self._run_threads()
        if (service := self._service) is not None and service.sender is not None:
            service.sender.finish()
        if self._loader.hooks is not None:
            self._loader.hooks.join()
        is_main = self._order.isolation == "main"
        if not is_main:  # else they are the worker's own, and run when it exits
            closing.run_exit_functions(self._must_free, self._log)
        left = 0 if is_main else closing.threads_left()
        if left and self._must_free:
            left = leftovers.end_threads({control.ident, threading.main_thread().ident}, lambda: _thread._count() - 1)
        self._book.flush(self._control.report)
        if not left:
            self._control.end()
            control.join()
            extensions.current.let_go()
        # Else the interpreter is left behind, and its control thread with it: before 3.13 a thread of the app's that is busy would keep
        # all others from running without the ticker.
        self._control.report(messages.Closed(threads=left))
        return not left

    def _boot(self) -> None:
        """Load the app, then be the first of the threads that serve it."""
        started = time.monotonic()
        try:
            service = self._load(started)
            self._is_served = True
        except BaseException as exc:  # SystemExit too: a script that exits has not loaded
            self._told.failure(exc, self._loader)
            return
        finally:
            self._loaded.open()
        self._told.ready(started)
        if self._files is not None:
            self._control.rouse()  # from now on it has something to look after
        self._work(service, 0)

    def _load(self, started: float) -> Service:
        record = extensions.current
        record.check()
        if self._order.loading.asks:
            self._permission.guard(record)
        service = self._make_service()
        for name in self._order.loading.imports:
            importlib.import_module(name)
        if self._fds.survey >= 0:
            self._look_closer(record, time.monotonic() - started)
        record.check()
        record.end_guard(lambda name, path, error: self._control.report(messages.Refused(name=name, path=path, error=error)))
        self._permission.end()  # a thread of the app's own that waits for an answer goes on, as one that comes to the file later
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
            self._told.failure(exc, self._loader)
            self._loaded.open()
        for thread in threads:
            thread.join()

    def _work_once_loaded(self, number: int) -> None:
        self._loaded.pass_through()
        if self._service is not None and self._is_served:
            self._work(self._service, number)

    def _look_closer(self, record: extensions.Extensions, load_s: float) -> None:
        """Do what only a trial does."""
        from isowsgi.inside import survey

        if (asked := self._order.loading.asked) is not None:
            survey.tell_answers(self._fds.survey, load_s, self._loader.answers(asked))
            return
        survey.resolve_lazy_imports()
        survey.tell(self._fds.survey, record, is_gil_shared=self._order.isolation == "shared-gil")

    def _work(self, service: Service, number: int) -> None:
        service.enter_thread(number)
        job = service.jobs[number]
        self._book.within(self._runner.work, service, line=job.line, is_serving=lambda: job.is_serving)

    def _jobs_in_flight(self) -> dict[int, str]:
        return {job.ident: job.row.line() for job in _jobs_of(self._service) if job.connection is not None}

    def _guarded(self, function: Callable[..., None], *args: Any) -> None:
        """Be one of the instance's own threads; if it ends by a fault, that is reported."""
        try:
            function(*args)
        except BaseException as exc:  # also what an app raises in a thread that is not its own
            self._control_row.count_internal_errors(1)
            self._told.broken(exc)

    def _make_service(self) -> Service:
        order, limits = self._order, self._limits
        gateways = self._loader.gateways()
        routes = self._routes
        board, peeker = self._board, self._make_peeker(routes)
        service = Service(order, gateways, self._log, peeker, board, _make_exchange(order, board), self._containment)
        self._admission = Admission(self._runner, service, limits)
        parts = service.jobs, limits, self._log, self._told.stuck, self._stacks, self._control_rows, self._containment, self._book.add
        self._watcher = Watcher(*parts)
        if order.isolation != "process" and all(is_files(member.app) for member in order.members):  # a process takes what it sends with it
            from isowsgi.inside.sender import Sender  # late: other instances have none

            within = partial(self._guarded, self._book.within)
            service.sender = Sender(service, self._log, limits, self._control_rows, self._containment, self._book.add, within)
            service.sender.start(gateways.values())
        # Whichever comes last, this or an order, finds the other.
        self._service = service
        service.in_service = self._runner.in_service
        service.draining = self._is_draining
        service.last = service.last or self._is_last
        if self._routes is not routes:
            self._use_routes(service)
        if self._limits is not limits:
            self._use_limits(service)
        return service

    def _make_peeker(self, routes: Iterable[Route]) -> Peeker:
        return Peeker(Router(routes), self._cfg, os.environ.get("SCRIPT_NAME", ""))

    def _reroute(self, order: messages.Reroute) -> None:
        """Take in a part of new routes; the last one puts them in place of the old ones."""
        self._new_routes = [*([] if order.is_first else self._new_routes), *order.routes]
        if order.is_last:
            self._routes, self._new_routes = self._new_routes, []
            if self._service is not None:
                self._use_routes(self._service)

    def _limit(self, limits: messages.Limits) -> None:
        """Have other limits count; those on a client's single calls for connections from now on."""
        self._limits = limits
        if self._service is not None:
            self._use_limits(self._service)

    # Also on the thread that makes the service. Whoever ends last looks again, so that an order that came meanwhile is not undone.

    def _use_routes(self, service: Service) -> None:
        used = None
        while used is not self._routes:
            used = self._routes
            service.peeker = self._make_peeker(used)

    def _use_limits(self, service: Service) -> None:
        assert self._watcher is not None, "made before the service can be found"
        assert self._admission is not None, "the same"
        used = None
        while used is not self._limits:
            used = self._limits
            for each in (self._watcher, self._admission, service):
                each.set_limits(used)

    def _look_after(self, now: float) -> bool:
        """Do what is due on the control thread; see `control.Duty`."""
        self._control_row.say_alive(now)
        watcher, admission, service = self._watcher, self._admission, self._service
        is_busy = False
        if watcher is not None and admission is not None and service is not None:
            service.enter_control(self._control_rows)
            watcher.look(now)
            is_busy = watcher.is_anyone_busy()
            if is_busy:  # each call contained alone: one may be a client's only rescue
                self._containment.call("check of waiting connections", admission.look, service.draining)
                if now > self._shut_at:
                    self._containment.call("closing connections that the app has taken over", takeover.shut_all, service.jobs)
            self._control_row.set_queued(admission.waiting if is_busy else 0)
        if self._files is not None and self._service is not None:
            changed = self._files.changed(now)
            if changed is not None:
                self._control.report(messages.Changed(file=changed))
        is_told = self._book.flush(self._control.report_if_room)
        return self._growth.is_tracing(now) or is_busy or not is_told or self._files is not None

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
        self._permission.end()
        self._loader.drain()  # last: its hooks start a thread, and may find no room for it

    def _last(self) -> None:
        self._is_last = True
        if self._service is not None:
            self._service.last = True
        self._drain()

    def _on_stop(self, order: messages.Stop) -> None:
        self._profiler.finish(time.monotonic())
        self._consoles.end_all()
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


def _jobs_of(service: Service | None) -> Sequence[Job]:
    return service.jobs if service is not None else ()


def _make_exchange(order: BootOrder, board: Region) -> Exchange:
    fds = order.fds
    assert fds is not None, "the maker of the instance gives it descriptors"
    if fds.mail >= 0:
        return Mail(blocking(socket.socket(fileno=os.dup(fds.mail))))
    returns, lingering = (Port.open(fd, order.serving.arm_returns) for fd in (fds.returns, fds.lingering))
    return SameProcess(returns, lingering, board.row(0).words, lambda: os.eventfd_write(fds.capacity, 1))


def is_files(app: messages.App) -> bool:
    """Whether an app is isowsgi's own for static files."""
    return app.kind == "module" and app.target == "isowsgi.files"


def _sees_stacks(host: messages.Host, board: Region) -> Callable[[], bool]:
    """Return what says whether stacks can be read without a crash, just now: see `interpreters.can_see_stacks`."""
    words = board.row(0).words
    return lambda: host.can_see_stacks and (host.frames_are_own or not words[OWN_GILS])


def _package_of(app: messages.App) -> str:
    """Return the top-level module of an app."""
    return "" if app.kind == "script" else app.target.partition(".")[0]


def end_process(status: int) -> None:
    """End a process that is this instance's alone, whatever its threads do; in one place, for a policy to know it."""
    os._exit(status)


def _measured(heap: Heap) -> messages.Measured:
    """Have a look at the memory; hooks of the app's (`sys.addaudithook`) may refuse what it takes."""
    try:
        return heap.measure()
    except Exception as exc:
        problem = f"{type(exc).__name__}: {exc}"[:_MOST_PROBLEM_CHARS]
        return messages.Measured(is_whole=True, took_s=0.0, objects=0, small=-1, large=0, weight=0, problem=problem)
