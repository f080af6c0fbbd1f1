"""A process that this worker's spawner has started, and the spawner as the worker has it; see `shared.spawning` for what they say."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading

from isowsgi.instances.forkserver import memory_file
from isowsgi.shared import births, spawning, wire
from isowsgi.shared.handover import blocking
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.spawning import FIRST_PLACE, KILL, READY, Ended, Refused, Started
from isowsgi.shared.wire import MessageError

# How long the spawner may take for one step, a matter of milliseconds.
_STEP_S = 10.0

# How long a process may take to end after the spawner has: the kernel kills it then.
_END_S = 2.0


class SpawnFailed(Exception):
    """There is no process; the text says why."""


class SpawnedProcess:
    """What of `subprocess.Popen` an instance uses.

    Args:
        birth: the worker's end; it is this object's from now on.
        fd: of the process (pidfd), likewise.
    """

    def __init__(self, birth: socket.socket, pid: int, fd: int) -> None:
        self.pid = pid
        self._birth = birth
        self._fd = fd
        self._lock = threading.Lock()
        self._is_over = False

    def kill(self) -> None:
        """Have it killed, if it is still there. Any thread may call it."""
        with self._lock:
            if not self._is_over:
                with contextlib.suppress(OSError):  # the spawner has ended; or does not read, and was told before
                    self._birth.send(KILL, socket.MSG_DONTWAIT)

    def wait(self) -> int:
        """Wait for its end, and return its exit status as `subprocess` has it. By one thread, and once.

        Raises:
            SpawnFailed: it could not become what it was to be.
        """
        try:
            message = self._last_word()
            if isinstance(message, Refused):
                raise SpawnFailed(message.error)
            if isinstance(message, Ended):
                return message.status
            self._wait_for_kernel()
            return -signal.SIGKILL
        finally:
            os.close(self._fd)

    def _last_word(self) -> spawning.Answer | None:
        self._birth.settimeout(None)
        try:
            message, fds = _hear(self._birth)
            for fd in fds:  # it has no reason to send any
                os.close(fd)
            return message
        finally:
            with self._lock:
                self._is_over = True
                self._birth.close()

    def _wait_for_kernel(self) -> None:
        """Wait until the kernel has ended it, which it does with the spawner."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(_END_S * 1000)


class SpawnerClient:
    """A worker's spawner.

    Args:
        sock: the worker's end of the pair with it.
        pid: its process id.
    """

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.pid = pid
        self.is_gone = False
        self._sock = sock
        self._lock = threading.Lock()

    def wait_ready(self, limit_s: float) -> bool:
        """Wait until it can start processes, and return whether it can; if not, it is ended, and this object is of no more use."""
        self._sock.settimeout(limit_s)
        with contextlib.suppress(OSError):
            if self._sock.recv(births.MAX_PACKET_BYTES) == READY:
                return True
        os.kill(self.pid, signal.SIGKILL)  # what it does in place of answering may take for ever; it has no child yet
        self.is_gone = True
        self._sock.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        return False

    def fileno(self) -> int:
        """Return the descriptor that is readable once the spawner has ended: it says nothing more there."""
        return self._sock.fileno()

    def note_end(self) -> None:
        """Take note that it has ended."""
        self.is_gone = True
        with contextlib.suppress(OSError):  # an app in the main interpreter may have waited for it
            os.waitpid(self.pid, os.WNOHANG)

    def start(self, order: BootOrder) -> SpawnedProcess:
        """Have a process started. Any thread may call it; it waits for some milliseconds.

        Args:
            order: says which mount's it is, and which descriptors it gets; they stay the caller's.

        Raises:
            SpawnFailed: there is none.
            OSError: no descriptor is left.
        """
        fds = [*dict.fromkeys([*(order.fds.known() if order.fds else ()), *order.log_files.values()])]
        places = {fd: FIRST_PLACE + place for place, fd in enumerate(fds)}
        start = wire.encode(wire.plain(spawning.start_of(order, places)))
        ours, theirs = map(blocking, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            with theirs, memory_file(start) as source:
                source.flush()
                self._send([theirs.fileno(), source.fileno(), *fds])
            ours.settimeout(_STEP_S)
            message, process_fds = _hear(ours)
            if isinstance(message, Started) and len(process_fds) == 1:
                return SpawnedProcess(ours, message.pid, process_fds[0])
            for fd in process_fds:
                os.close(fd)
            raise SpawnFailed(message.error if isinstance(message, Refused) else "the spawner has ended, or says what makes no sense")
        except BaseException:
            ours.close()
            raise

    def _send(self, fds: list[int]) -> None:
        with self._lock:
            self._sock.settimeout(_STEP_S)
            try:
                births.send(self._sock, births.TOKEN, fds)
            except (BrokenPipeError, ConnectionResetError, TimeoutError) as exc:
                raise SpawnFailed("the spawner, which starts processes as other users, has ended or hangs") from exc


def spawn(spawner: SpawnerClient | None, order: BootOrder) -> SpawnedProcess:
    """Have a process started; errors are those of `SpawnerClient.start`."""
    if spawner is None:
        text = "this worker has no spawner: its master has read of no user for it in the config file, or is not root, or the log says why"
        raise SpawnFailed(f"{text}; send it SIGHUP")
    return spawner.start(order)


def _hear(sock: socket.socket) -> tuple[spawning.Answer | None, list[int]]:
    """Return what comes next; None if nothing does any more.

    Raises:
        SpawnFailed: not in time.
    """
    try:
        packet, fds = births.receive(sock, 1)
    except TimeoutError:
        raise SpawnFailed(f"the spawner did not answer within {_STEP_S:g} s") from None
    except ConnectionResetError:
        return None, []
    try:
        return (spawning.decode(packet) if packet else None), fds
    except MessageError as exc:
        for fd in fds:
            os.close(fd)
        raise SpawnFailed(f"the spawner said what makes no sense: {exc}") from exc
