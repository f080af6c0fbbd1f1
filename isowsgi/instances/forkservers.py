"""The fork servers of a worker: one for each Python that its mounts' processes run in, and from it one for each venv and `preload`.

A new process costs a start of Python and the import of what serves, and has a copy of all that. One that is forked has both already, and
shares the memory (`inside.forkserver`). It is the worker's own child in every way (`inside.cloning`).

Nothing depends on a server. If it cannot be had, is slow, hangs or dies, `fork` returns None, and the caller starts a process as if there
were none. Processes that were forked do not notice its end.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from isowsgi.inside.warmth import shadows
from isowsgi.instances.forkedprocess import ForkedProcess, ForkFailed
from isowsgi.instances.forkserver import BaseFailed, ForkServer, Key, ModulesDropped, Replaceable, VenvServer
from isowsgi.instances.original import Edition, Original, begin
from isowsgi.instances.preloads import Preloads
from isowsgi.shared.containment import Containment
from isowsgi.shared.messages import BootOrder

T = TypeVar("T")

# How long a process waits for a server that is being started: 0.3 to 0.6 s in general, some seconds on a busy machine.
_WARM_UP_S = 5.0

# The same for the original of a mount's copies: without it each of them loads the app.
_LONGEST_WAIT_S = 60.0

# How long to do without a server that has failed, and the most that doubling after each further failure comes to.
_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 600.0

# How long a module that could not be preloaded is not tried again, unless files change: the other packages' server is started anew for it.
_DROPPED_S = 600.0

# How often a process asks for a server before it does without: once for each module in `preload` that is no good, at most.
_MOST_ATTEMPTS = 20

# Variables that a C library reads when it is loaded, which in a server it is already: OpenSSL's configuration (OPENSSL_CONF) and engines.
_READ_AT_LOADING = "OPENSSL_"


class ForkServers:
    """One worker's. Any thread may call `fork`, which waits.

    Args:
        packages: folders of isowsgi and gunicorn, by package.
        log: gunicorn's logger.
        containment: where mistakes end that are one server's.
    """

    def __init__(self, packages: Mapping[str, str], log: Any, containment: Containment) -> None:
        self._packages = dict(packages)
        self._log = log
        self._containment = containment
        self._lock = threading.Lock()
        self._servers: dict[Key, ForkServer] = {}
        self._pauses: dict[Key, tuple[float, float]] = {}  # monotonic seconds of its end, and its length
        self._wanted: dict[str, Key] = {}  # what the last process of a mount or a group was to come from, by its name
        self._dropped: dict[Key, float] = {}  # of one module: it cannot be preloaded there until then (monotonic seconds)
        self._preloads = Preloads()
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._parent: threading.Thread | None = None
        self._is_over = False

    def end(self) -> None:
        """End all servers, and start none any more; processes that they have forked stay."""
        with self._lock:
            self._is_over = True
            servers = list(self._servers.values())
            self._servers.clear()
        for server in servers:
            server.end()

    def keep(self, names: Collection[str]) -> None:
        """End the servers that none of these mounts and groups has its processes from, say of a release that was left. Does not wait."""
        with self._lock:
            for name in self._wanted.keys() - names:
                del self._wanted[name]
            wanted = {Key(key.python, None, ()) for key in self._wanted.values()} | set(map(self._without_dropped, self._wanted.values()))
            for key in self._pauses.keys() - wanted:
                del self._pauses[key]
            places = {(key.python, key.venv) for key in self._wanted.values()}
            self._dropped = {key: until for key, until in self._dropped.items() if (key.python, key.venv) in places}
            for key in self._servers.keys() - wanted:
                self._work.put(self._servers.pop(key).end)

    def fork(self, python: str, environ: Mapping[str, str], order: BootOrder) -> ForkedProcess | None:
        """Return a new process that is about to boot; None: start one without a server.

        Args:
            python: the executable.
            environ: of all processes that have this Python.
            order: with the descriptors by their numbers here; they stay the caller's.
        """
        try:
            return self._from_server(python, environ, order, lambda server: server.fork(order), _WARM_UP_S)
        except Exception:
            self._containment.failed(f"{order.tag}: fork server")
            return None

    def copy(self, python: str, environ: Mapping[str, str], order: BootOrder, edition: Edition) -> ForkedProcess | None:
        """Return a new process that is a copy of a loaded app; None: load it by itself. Arguments are those of `fork`."""
        longest_s = edition.limit_s or math.inf

        def begin_original(order: BootOrder) -> Original | None:
            return self._from_server(python, environ, order, lambda server: begin(server, order), min(_LONGEST_WAIT_S, longest_s))

        try:
            return edition.fork(order, begin_original, self._log)
        except Exception:
            self._containment.failed(f"{order.tag}: original of its copies")
            return None

    def _from_server(
        self, python: str, environ: Mapping[str, str], order: BootOrder, ask: Callable[[ForkServer], T], limit_s: float
    ) -> T | None:
        """Ask the server that a process is to come from; return what it gives, None if there is none."""
        until = time.monotonic() + limit_s
        if any(name.startswith(_READ_AT_LOADING) for name in order.environment.env):
            return None
        for _ in range(_MOST_ATTEMPTS):  # each time modules are dropped, or what is out of date is replaced
            wanted = Key(python, order.environment.venv, self._modules_for(python, order))
            self._want(order.name, wanted)
            base = self._server_of(Key(python, None, ()), lambda: ForkServer(python, environ, self._packages))
            if base is None or not base.is_warm(until - time.monotonic()):
                return None
            server = self._venv_server(base, wanted, order)
            if not server.is_warm(until - time.monotonic()):
                if server.is_settled.is_set():
                    continue  # it has dropped a module; if it was lost, it is None next
                server = base
            try:
                return self._ask(server, order, ask)
            except Replaceable:
                self._forget(server)
                self._try_dropped_again(server.key)
        return None

    def learn(self, python: str, order: BootOrder, modules: Sequence[str]) -> None:
        """Take in which modules a process has loaded, for others with `preload = "auto"`. Does not wait."""
        if self._parent is not None:  # which may wait for the disk
            self._work.put(partial(self._learn, python, order, modules))

    def _learn(self, python: str, order: BootOrder, modules: Sequence[str]) -> None:
        if self._preloads.learn(python, order, modules):
            self._preloads.save(python, order)

    def _modules_for(self, python: str, order: BootOrder) -> tuple[str, ...]:
        """Return what a process is to find loaded."""
        if order.environment.policy:  # packages are imported before a process has it, and it says what an import may do
            return ()
        learnt = self._preloads.of(python, order) if order.environment.learns else ()
        return tuple(dict.fromkeys([*order.environment.preload, *learnt]))

    def _want(self, name: str, key: Key) -> None:
        with self._lock:
            self._wanted[name] = key
            now = time.monotonic()
            self._dropped = {dropped: until for dropped, until in self._dropped.items() if until > now}

    def _venv_server(self, base: ForkServer, wanted: Key, order: BootOrder) -> ForkServer:
        """Return the server that has preloaded what a process is to share, or else the base itself."""
        with self._lock:
            key = self._without_dropped(wanted)
        return (self._server_of(key, lambda: VenvServer(key, base, order)) if key.modules else None) or base

    def _try_dropped_again(self, key: Key) -> None:
        """Forget what could not be preloaded in a venv whose packages are others by now."""
        with self._lock:
            self._dropped = {each: until for each, until in self._dropped.items() if (each.python, each.venv) != (key.python, key.venv)}

    def _without_dropped(self, key: Key) -> Key:
        return key._replace(modules=tuple(name for name in key.modules if key._replace(modules=(name,)) not in self._dropped))

    def _ask(self, server: ForkServer, order: BootOrder, ask: Callable[[ForkServer], T]) -> T | None:
        """Return what a server gives; None if there is nothing from this one.

        Raises:
            Replaceable: the server has ended, and another one would do.
        """
        if shadows(order.environment.pythonpath, server.names):
            return None
        try:
            return ask(server)
        except ForkFailed as exc:
            if not self._lose(server, str(exc), exc.for_good):
                raise Replaceable(server) from exc  # another thread has ended it, and knows why
        except OSError:  # no descriptor or no memory is left; a start may need less
            pass
        return None

    def _server_of(self, key: Key, make: Callable[[], ForkServer]) -> ForkServer | None:
        with self._lock:
            server = self._servers.get(key)
            if server is None and not self._is_over and time.monotonic() >= self._pauses.get(key, (0.0, 0.0))[0]:
                if not self._has_parent():
                    return None
                server = self._servers[key] = make()
                self._work.put(partial(self._launch, server))
            return server

    def _has_parent(self) -> bool:
        """Whether there is a thread that starts servers; begins it."""
        if self._parent is None:
            parent = threading.Thread(target=self._start_servers, name="isowsgi-fork-servers", daemon=True)
            try:
                parent.start()
            except RuntimeError:  # no thread is left
                return False
            self._parent = parent
        return True

    def _start_servers(self) -> None:
        """Be the parent of all servers, and of what they fork, for as long as the worker lives: the kernel ends them with this thread."""
        while True:
            self._containment.call("fork server", self._work.get())

    def _launch(self, server: ForkServer) -> None:
        """Start a server. A thread for just that waits until it is warm, so that one that takes its time delays no other."""
        try:
            server.launch()
            waits = threading.Thread(target=self._containment.call, args=("fork server", self._warm_up, server), daemon=True)
            waits.start()
        except Exception as exc:
            self._give_up(server, exc)

    def _warm_up(self, server: ForkServer) -> None:
        try:
            server.wait_warm()
        except Exception as exc:
            self._give_up(server, exc)
        else:
            server.is_settled.set()

    def _give_up(self, server: ForkServer, exc: Exception) -> None:
        """Do without a server that did not get warm; called while its exception is handled."""
        try:
            if isinstance(exc, ModulesDropped):
                self._drop(server, exc)
                self._forget(server)
            elif isinstance(exc, Replaceable):  # the base
                self._forget(exc.server)
                self._forget(server)
            elif isinstance(exc, BaseFailed):
                self._lose(exc.base, str(exc), exc.for_good)
                self._forget(server)
            else:
                self._lose(server, str(exc), isinstance(exc, ForkFailed) and exc.for_good)
                if not isinstance(exc, (ForkFailed, OSError, RuntimeError)):  # RuntimeError: no thread is left
                    self._containment.failed("fork server")
        finally:
            server.is_settled.set()  # only now: who waits sees what was dropped

    def _drop(self, server: ForkServer, dropped: ModulesDropped) -> None:
        """Do without modules, and say so."""
        key = server.key
        until = time.monotonic() + _DROPPED_S
        with self._lock:
            self._dropped.update({key._replace(modules=(name,)): until for name in (*dropped.failed, *dropped.harmful)})
        self._preloads.drop(key.python, key.venv, [*dropped.failed, *(name.partition(".")[0] for name in dropped.harmful)])
        for name in dropped.failed.keys() & server.named:
            self._log.warning("%s: %r is not preloaded: it cannot be imported: %s", key, name, dropped.failed[name] or "as the others")
        if learnt := [name for name in dropped.failed if name not in server.named]:
            text = "%s: %d modules that its apps have in common cannot be imported before an app, and are not preloaded: %r (%s), ..."
            self._log.info(text, key, len(learnt), learnt[0], dropped.failed[learnt[0]])
        for name, reason in dropped.harmful.items():
            self._log.warning("%s: %r is not preloaded: %s", key, name, reason)

    def _lose(self, server: ForkServer, reason: str, for_good: bool) -> bool:
        """Do without a server for a while; return False if another thread was first to find that it is of no use."""
        if not self._forget(server):
            return False
        with self._lock:
            pause_s = min(2 * self._pauses.get(server.key, (0.0, _PAUSE_S / 2))[1], _LONGEST_PAUSE_S)
            self._pauses[server.key] = (math.inf if for_good else time.monotonic() + pause_s, pause_s)
        then = "not trying again" if for_good else f"next attempt in {pause_s:g} s"
        self._log.warning("%s: %s; processes start without it, %s", server.key, reason, then)
        return True

    def _forget(self, server: ForkServer) -> bool:
        """End a server; return whether it was still to be asked."""
        with self._lock:
            was_known = self._servers.get(server.key) is server
            if was_known:
                del self._servers[server.key]
        server.end()
        return was_known
