"""Fork servers, as a worker has them: one for each Python that its mounts' processes run in, and from it one for each venv and `preload`.

A new process costs a start of Python and the import of what serves, and has a copy of all that. One that is forked has both already, and
shares the memory (`inside.forkserver`). It is the worker's own child in every way (`inside.cloning`).

Nothing depends on a server. If it cannot be had, is slow, hangs or dies, `fork` returns None, and the caller starts a process as if there
were none. Processes that were forked do not notice its end.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import IO, Any, NamedTuple

import isowsgi
from isowsgi.inside.warmth import shadows
from isowsgi.instances.subinterpreter import first_source
from isowsgi.shared import births, messages, wire, workdir
from isowsgi.shared.births import (
    FIRST_PLACE,
    MOST_FDS,
    TOKEN,
    Birth,
    Dropped,
    Forked,
    ForkOrder,
    NotForked,
    PreloadOrder,
    Settled,
    Stale,
    Unfit,
    Warm,
)
from isowsgi.shared.containment import Containment
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.wire import MessageError

# What a Python executes; the first code comes by its standard input, as a boot order may be longer than an argument.
START = "import sys; exec(compile(sys.stdin.buffer.read(), '<isowsgi>', 'exec'))"

# How long a process waits for a server that is being started: 0.3 to 0.6 s in general, some seconds on a busy machine.
_WARM_UP_S = 5.0

# How long that may take before the server counts as hanging, and how long one step of a fork may take, a matter of milliseconds.
_LONGEST_WARM_UP_S = 60.0
_STEP_S = 5.0

# How long to do without a server that has failed, and the most that doubling after each further failure comes to.
_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 600.0

# How long a module that could not be preloaded is not tried again, unless files change: the other packages' server is started anew for it.
_DROPPED_S = 600.0

# How long a server that was killed may take to end: longer only if the kernel does not come out of something, then nobody waits for it.
_END_S = 2.0

# Variables that a C library reads when it is loaded, which in a server it is already: OpenSSL's configuration (OPENSSL_CONF) and engines.
_READ_AT_LOADING = "OPENSSL_"

# Room in the server's arguments for the tag of a process, which `ps` shows there.
_TAG_BYTES = 200


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
        self._servers: dict[_Key, ForkServer] = {}
        self._pauses: dict[_Key, tuple[float, float]] = {}  # monotonic seconds of its end, and its length
        self._wanted: dict[str, _Key] = {}  # what the last process of a mount or a group was to come from, by its name
        self._dropped: dict[_Key, float] = {}  # of one module: it cannot be preloaded there until then (monotonic seconds)
        self._work: queue.SimpleQueue[tuple[Callable[[ForkServer], object], ForkServer]] = queue.SimpleQueue()
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
            wanted = {_Key(key.python, None, ()) for key in self._wanted.values()} | set(map(self._without_dropped, self._wanted.values()))
            for key in self._pauses.keys() - wanted:
                del self._pauses[key]
            places = {(key.python, key.venv) for key in self._wanted.values()}
            self._dropped = {key: until for key, until in self._dropped.items() if (key.python, key.venv) in places}
            for key in self._servers.keys() - wanted:
                self._work.put((ForkServer.end, self._servers.pop(key)))

    def fork(self, python: str, environ: Mapping[str, str], order: BootOrder) -> ForkedProcess | None:
        """Return a new process that is about to boot; None: start one without a server.

        Args:
            python: the executable.
            environ: of all processes that have this Python.
            order: with the descriptors by their numbers here; they stay the caller's.
        """
        try:
            return self._fork(python, environ, order)
        except Exception:
            self._containment.failed(f"{order.tag}: fork server")
            return None

    def _fork(self, python: str, environ: Mapping[str, str], order: BootOrder) -> ForkedProcess | None:
        until = time.monotonic() + _WARM_UP_S
        if any(name.startswith(_READ_AT_LOADING) for name in order.environment.env):
            return None
        # Packages are imported before a process has its policy, which says what an import may do.
        modules = () if order.environment.policy else tuple(order.environment.preload)
        wanted = _Key(python, order.environment.venv, modules)
        self._want(order.name, wanted)
        for _ in range(len(order.environment.preload) + 3):  # a module is dropped each time, or what is out of date is replaced
            base = self._server_of(_Key(python, None, ()), lambda: ForkServer(python, environ, self._packages))
            if base is None or not base.is_warm(until - time.monotonic()):
                return None
            server = self._venv_server(base, wanted, order)
            if not server.is_warm(until - time.monotonic()):
                if server.is_settled.is_set():
                    continue  # it has dropped a module; if it was lost, it is None next
                server = base
            try:
                return self._fork_from(server, order)
            except Replaceable:
                self._forget(server)
                self._try_dropped_again(server.key)
        return None

    def _want(self, name: str, key: _Key) -> None:
        with self._lock:
            self._wanted[name] = key
            now = time.monotonic()
            self._dropped = {dropped: until for dropped, until in self._dropped.items() if until > now}

    def _venv_server(self, base: ForkServer, wanted: _Key, order: BootOrder) -> ForkServer:
        """Return the server that has preloaded what a process is to share, or else the base itself."""
        with self._lock:
            key = self._without_dropped(wanted)
        return (self._server_of(key, lambda: VenvServer(key, base, order)) if key.modules else None) or base

    def _try_dropped_again(self, key: _Key) -> None:
        """Forget what could not be preloaded in a venv whose packages are others by now."""
        with self._lock:
            self._dropped = {each: until for each, until in self._dropped.items() if (each.python, each.venv) != (key.python, key.venv)}

    def _without_dropped(self, key: _Key) -> _Key:
        return key._replace(modules=tuple(name for name in key.modules if key._replace(modules=(name,)) not in self._dropped))

    def _fork_from(self, server: ForkServer, order: BootOrder) -> ForkedProcess | None:
        """Return a new process; None if there is none from this server.

        Raises:
            Replaceable: the server has ended, and another one would do.
        """
        if shadows(order.environment.pythonpath, server.names):
            return None
        try:
            return server.fork(order)
        except ForkFailed as exc:
            if not self._lose(server, str(exc), exc.for_good):
                raise Replaceable(server) from exc  # another thread has ended it, and knows why
        except OSError:  # no descriptor or no memory is left; a start may need less
            pass
        return None

    def _server_of(self, key: _Key, make: Callable[[], ForkServer]) -> ForkServer | None:
        with self._lock:
            server = self._servers.get(key)
            if server is None and not self._is_over and time.monotonic() >= self._pauses.get(key, (0.0, 0.0))[0]:
                if not self._has_parent():
                    return None
                server = self._servers[key] = make()
                self._work.put((self._launch, server))
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
            self._containment.call("fork server", *self._work.get())

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
            if isinstance(exc, ModuleDropped):
                with self._lock:
                    self._dropped[server.key._replace(modules=(exc.module,))] = time.monotonic() + _DROPPED_S
                self._forget(server)
                self._log.warning("%s: %r is not preloaded: %s", server.key, exc.module, exc.reason)
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


class _Key(NamedTuple):
    """What a server is for."""

    python: str
    venv: str | None  # None: gunicorn's own packages
    modules: tuple[str, ...]  # what is preloaded of them

    def __str__(self) -> str:
        return f"fork server of {self.venv if self.modules and self.venv else self.python}"


class ModuleDropped(Exception):
    """A module cannot be preloaded; the server has ended."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(module, reason)
        self.module, self.reason = module, reason


class Replaceable(Exception):
    """A server has ended, or what it has loaded is out of date; another one would do."""

    def __init__(self, server: ForkServer) -> None:
        super().__init__(server)
        self.server = server


class ForkFailed(Exception):
    """A server did not do what it was asked for.

    Args:
        for_good: whether another one would not either.
    """

    def __init__(self, reason: str, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


class BaseFailed(ForkFailed):
    """The server of a Python did not do its part for that of a venv."""

    def __init__(self, base: ForkServer, failure: ForkFailed) -> None:
        super().__init__(str(failure), failure.for_good)
        self.base = base


class ForkServer:
    """One of them.

    Args:
        environ: of its processes, and its own.
        packages: as for `ForkServers`.

    Attributes:
        key: what it is for.
        names: top-level modules that its processes have loaded, beyond what serves.
    """

    def __init__(self, python: str, environ: Mapping[str, str], packages: Mapping[str, str]) -> None:
        self.key = _Key(python, None, ())
        self.names: Collection[str] = frozenset()
        self.environ = environ
        self.is_settled = threading.Event()  # whether it is warm, or has failed
        self._packages = packages
        self._is_warm = False
        self._socket_lock = threading.Lock()
        self._end_lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._pid = 0  # of its process, also once it has ended

    def is_warm(self, wait_s: float) -> bool:
        """Whether it can fork; waits if it is not decided yet."""
        return self.is_settled.wait(wait_s) and self._is_warm

    def launch(self) -> None:
        """Start it. For a thread that lives as long as the worker.

        Raises:
            ForkFailed, Replaceable, OSError: it is not started; `end` it.
        """
        self._socket, theirs = _pair()
        with theirs:
            self._process = self._launch(theirs)
        self._pid = self._process.pid

    def wait_warm(self) -> None:
        """Wait until it is warm.

        Raises:
            ForkFailed, ModuleDropped: it is not; `end` it.
        """
        message = _hear(self._open_socket(), _LONGEST_WARM_UP_S, "get ready")
        if isinstance(message, Unfit):
            raise ForkFailed(message.error, for_good=True)
        if isinstance(message, Dropped):
            raise ModuleDropped(message.module, message.reason)
        self.names, self._is_warm = frozenset(_expect(message, Warm).names), True

    def _launch(self, socket_of_server: socket.socket) -> subprocess.Popen[bytes] | ForkedProcess:
        fd = socket_of_server.fileno()
        order = ForkOrder(release=isowsgi.__version__, packages=dict(self._packages), server=fd, worker_pid=os.getpid())
        with memory_file(first_source(wire.encode(wire.plain(order))).encode()) as source:
            return subprocess.Popen(
                [self.key.python, "-c", START, "isowsgi", "fork server".ljust(_TAG_BYTES)],
                stdin=source,
                cwd=workdir.for_child(),
                env=self.environ,
                pass_fds=[fd],
            )

    def fork(self, order: BootOrder) -> ForkedProcess:
        """Return a new process that boots by an order.

        Raises:
            ForkFailed, Replaceable: the server is of no use any more; `end` it.
            OSError: descriptors, memory or processes are short.
        """
        fds = [*dict.fromkeys([*(order.fds.known() if order.fds else ()), *order.log_files.values()])]
        places = {fd: FIRST_PLACE + place for place, fd in enumerate(fds)}
        with self._new_process() as (process, ours):
            _give(ours, messages.encode(order.renumbered(places)), fds)
            _expect(_hear(ours, _STEP_S, "settle"), Settled)
        return process

    def fork_server(self, order: PreloadOrder, socket_of_server: socket.socket) -> ForkedProcess:
        """Return a new process that becomes a server; errors are those of `fork`."""
        with self._new_process() as (process, ours):
            _give(ours, wire.encode(wire.plain(order.replace(server=FIRST_PLACE))), [socket_of_server.fileno()])
        return process

    @contextlib.contextmanager
    def _new_process(self) -> Iterator[tuple[ForkedProcess, socket.socket]]:
        """Fork one; in the block it gets what it is to be, by the socket. If that raises, the process is ended."""
        ours, theirs = _pair()
        with ours:
            with theirs, self._socket_lock:
                sock = self._open_socket()
                try:
                    sock.settimeout(_STEP_S)
                    births.send(sock, TOKEN, [theirs.fileno()])
                except (BrokenPipeError, ConnectionResetError, TimeoutError) as exc:
                    raise ForkFailed("it has died, or hangs") from exc
            process = self._await_fork(ours)
            try:
                yield process, ours
            except BaseException:
                process.kill()
                process.wait()
                raise

    def _await_fork(self, ours: socket.socket) -> ForkedProcess:
        try:
            message, pid = _hear_from(ours, _STEP_S, "fork")
        except ForkFailed:
            self.end()  # from now on nothing is forked, but a process may be there since a moment ago
            with contextlib.suppress(ForkFailed, OSError):
                message, pid = _hear_from(ours, 0.1, "fork")
                late = self._process_of(message, pid)
                late.kill()
                late.wait()
            raise
        if isinstance(message, NotForked):
            raise OSError(message.error)
        if isinstance(message, Stale):
            raise Replaceable(self)
        return self._process_of(message, pid)

    def _process_of(self, message: Birth, pid: int) -> ForkedProcess:
        """Return the process that says that it was forked."""
        _expect(message, Forked)
        if pid == self._pid:
            raise ForkFailed("it said Forked itself, in place of a new process")
        try:
            return ForkedProcess(pid)
        except ChildProcessError:
            raise ForkFailed("its processes are not the worker's (the kernel does not know CLONE_PARENT)", for_good=True) from None

    def end(self) -> None:
        """Kill it, and close what this side has. Any thread may call it, more than once."""
        self._is_warm = False
        with self._end_lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
        with self._socket_lock:  # nobody has it for long, as the other side is gone
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)

    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise ForkFailed("it has been ended")
        return self._socket


class VenvServer(ForkServer):
    """One that is forked from the server of its Python, and has loaded packages of a venv.

    Args:
        base: the server of its Python, which is warm.
        order: of a process that is wanted from it.
    """

    def __init__(self, key: _Key, base: ForkServer, order: BootOrder) -> None:
        super().__init__(key.python, base.environ, {})
        self.key = key
        self._base = base
        self._order = PreloadOrder(
            release=order.release,
            server=-1,
            worker_pid=os.getpid(),
            venv=key.venv,
            site=order.host.site,
            start_folder=order.environment.start_folder,
            modules=list(key.modules),
        )

    def _launch(self, socket_of_server: socket.socket) -> ForkedProcess:
        try:
            return self._base.fork_server(self._order, socket_of_server)
        except ForkFailed as exc:
            raise BaseFailed(self._base, exc) from exc


class ForkedProcess:
    """A process of the worker's that a server has forked: what of `subprocess.Popen` an instance uses.

    It is known by a descriptor and not by its number. An app in the worker may wait for any child, `os.wait()`; it takes this one's status
    then, and the number may soon be another process'.

    Args:
        pid: of a child of this process.

    Raises:
        ChildProcessError: it is none.
        ForkFailed: this kernel has no such descriptors.
        OSError: no descriptor is left; the process was killed.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self._lock = threading.Lock()
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except OSError as exc:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if exc.errno in (errno.ENOSYS, errno.EPERM):  # before Linux 5.3; a container's filter of system calls
                raise ForkFailed("the kernel does not let it have pidfd_open(2)", for_good=True) from exc
            raise

    def kill(self) -> None:
        """Kill it, if it is still there. Any thread may call it."""
        with self._lock:
            if self._fd is not None:
                with contextlib.suppress(ProcessLookupError):  # somebody else has waited for it
                    signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self, limit_s: float | None = None) -> int:
        """Wait for its end, and return its exit status as `subprocess` has it: negative for a signal, 0 if somebody else has taken it.

        By one thread, and once.

        Raises:
            subprocess.TimeoutExpired: it has not ended within the limit.
        """
        assert self._fd is not None, "it was not waited for"
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if limit_s is None else limit_s * 1000):
            raise subprocess.TimeoutExpired(str(self.pid), limit_s or 0.0)
        with self._lock:
            fd, self._fd = self._fd, None
        try:
            end = os.waitid(os.P_PIDFD, fd, os.WEXITED)
        except ChildProcessError:
            return 0
        finally:
            os.close(fd)
        assert end is not None, "it has ended"
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def _pair() -> tuple[socket.socket, socket.socket]:
    with contextlib.ExitStack() as undo:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, theirs = (blocking(undo.enter_context(end)) for end in ends)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # each packet says which process has sent it
        undo.pop_all()
    return ours, theirs


def _give(sock: socket.socket, order: bytes, fds: list[int]) -> None:
    """Give a new process its order, and its descriptors."""
    if len(fds) > MOST_FDS - FIRST_PLACE:
        raise OSError("an order with too many descriptors for a packet")
    with memory_file(order) as source:
        births.send(sock, TOKEN, [source.fileno(), 1, 2, *fds])


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[IO[bytes]]:
    with open(os.memfd_create("isowsgi-boot"), "wb+") as file:
        file.write(content)
        file.seek(0)
        yield file


def _hear(sock: socket.socket, limit_s: float, what: str) -> Birth:
    return _hear_from(sock, limit_s, what)[0]


def _hear_from(sock: socket.socket, limit_s: float, what: str) -> tuple[Birth, int]:
    """Return what comes next, and the process id of who has sent it, by the kernel's word.

    Raises:
        ForkFailed: nothing that makes sense.
    """
    sock.settimeout(limit_s)
    try:
        packet, pid = births.receive_from(sock)
        if packet:
            return births.decode(packet), pid
    except TimeoutError:
        raise ForkFailed(f"it did not {what} within {limit_s:g} s") from None
    except OSError:  # it was killed with a packet of ours unread
        pass
    except MessageError as exc:
        raise ForkFailed(f"it said what makes no sense: {exc}") from exc
    raise ForkFailed(f"it died before it could {what}")


def _expect(message: Birth, kind: Any) -> Any:
    if not isinstance(message, kind):
        raise ForkFailed(f"it said {type(message).__name__} where {kind.__name__} was due")
    return message
