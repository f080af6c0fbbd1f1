"""One fork server, as a worker has it: how it is started, what it is asked for, and what becomes of it if it does not do that.

What it says comes from a process that may have loaded anything. So a process that it has forked is known by the kernel's word alone, and
each answer has a limit of time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import isowsgi
from isowsgi.instances.forkedprocess import ForkedProcess, ForkFailed
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
    LoadOrder,
    NotForked,
    PreloadOrder,
    Settled,
    Stale,
    Unfit,
    Warm,
)
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.wire import MessageError

# What a Python executes; the first code comes by its standard input, as a boot order may be longer than an argument. Not from the folder
# that it is started in, which may be the app's: a json.py there ran before the walls were up. Nor with -P, which is new in 3.11.
START = "import sys; sys.path[:] = filter(None, sys.path); exec(compile(sys.stdin.buffer.read(), '<isowsgi>', 'exec'))"

# How long a server may take to get warm before it counts as hanging, and how long one step of a fork may take, a matter of milliseconds.
_LONGEST_WARM_UP_S = 60.0
_STEP_S = 5.0

# How long a server that was killed may take to end: longer only if the kernel does not come out of something, then nobody waits for it.
_END_S = 2.0

# Room in the server's arguments for the tag of a process, which `ps` shows there.
_TAG_BYTES = 200


class Key(NamedTuple):
    """What a server is for."""

    python: str
    venv: str | None  # None: gunicorn's own packages
    modules: tuple[str, ...]  # what is preloaded of them

    def __str__(self) -> str:
        return f"fork server of {self.venv if self.modules and self.venv else self.python}"


class ModulesDropped(Exception):
    """Modules cannot be preloaded; the server has ended."""

    def __init__(self, message: Dropped) -> None:
        super().__init__(message)
        self.failed = dict(message.failed)
        self.harmful = {message.module: message.reason} if message.module else {}


class Replaceable(Exception):
    """A server has ended, or what it has loaded is out of date; another one would do."""

    def __init__(self, server: ForkServer) -> None:
        super().__init__(server)
        self.server = server


class BaseFailed(ForkFailed):
    """The server of a Python did not do its part for that of a venv."""

    def __init__(self, base: ForkServer, failure: ForkFailed) -> None:
        super().__init__(str(failure), failure.for_good)
        self.base = base


class ForkServer:
    """One of them.

    Args:
        environ: of its processes, and its own.
        packages: folders of isowsgi and gunicorn, by package.

    Attributes:
        key: what it is for.
        names: top-level modules that its processes have loaded, beyond what serves.
        named: modules of `key` that the config file names; apps were seen to have the others in common.
    """

    def __init__(self, python: str, environ: Mapping[str, str], packages: Mapping[str, str]) -> None:
        self.key = Key(python, None, ())
        self.names: Collection[str] = frozenset()
        self.named: Collection[str] = frozenset()
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

    def wait_warm(self, limit_s: float | None = _LONGEST_WARM_UP_S) -> None:
        """Wait until it is warm.

        Args:
            limit_s: None: without end.

        Raises:
            ForkFailed, ModulesDropped: it is not; `end` it.
        """
        message = _hear(self._open_socket(), limit_s, "get ready")
        if isinstance(message, Unfit):
            raise ForkFailed(message.error, for_good=True)
        if isinstance(message, Dropped):
            raise ModulesDropped(message)
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

    def fork_server(self, order: PreloadOrder | LoadOrder, socket_of_server: socket.socket, fds: Sequence[int] = ()) -> ForkedProcess:
        """Return a new process that becomes a server; errors are those of `fork`.

        Args:
            fds: more that the order names, by their places from `FIRST_PLACE` + 1 on.
        """
        with self._new_process() as (process, ours):
            _give(ours, wire.encode(wire.plain(order.replace(server=FIRST_PLACE))), [socket_of_server.fileno(), *fds])
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

    def kill(self) -> None:
        """Kill it; who waits for it hears of that, and has to `end` it."""
        with self._end_lock:
            if self._process is not None:
                self._process.kill()

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

    def __init__(self, key: Key, base: ForkServer, order: BootOrder) -> None:
        super().__init__(key.python, base.environ, {})
        self.key = key
        self.named = frozenset(order.environment.preload)
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


def _hear(sock: socket.socket, limit_s: float | None, what: str) -> Birth:
    return _hear_from(sock, limit_s, what)[0]


def _hear_from(sock: socket.socket, limit_s: float | None, what: str) -> tuple[Birth, int]:
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
