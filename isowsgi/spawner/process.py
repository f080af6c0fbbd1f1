"""The spawner: a small process beside a worker that stays root, to start the processes of mounts with their own user, and nothing else.

It is forked from the worker before that gives root up, and has one thread. It keeps a few of root's rights (`rights`), the table of what it
may start (`vouched`), and no descriptor but its socket to the worker. It starts what a worker asks for by name, never a command, user or
path that a worker says; so a worker that was taken over can have apps started that are configured, as their own users, and no more.

Its processes end with the worker: it kills them, and all that they have left behind, once the worker has ended. Should it end itself, by
whatever, the kernel kills them (PR_SET_PDEATHSIG); a process that has asked the kernel not to, and what a process has started in a session
of its own, would outlive that. A process of another user would not be killed with the worker by the kernel: only root's death is heard.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import secrets
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from isowsgi.configuration.accounts import Account
from isowsgi.shared import births, spawning
from isowsgi.shared.messages import BootOrder
from isowsgi.shared.spawning import FIRST_PLACE, MOST_START_BYTES, Ended, Refused, Start, Started
from isowsgi.shared.wire import MessageError
from isowsgi.spawner import child, rights
from isowsgi.spawner.vouched import Charge, NotVouchedFor, Vouched

# gunicorn's signals come to all processes of a terminal or a systemd unit. The worker decides when its processes end.
_WORKERS_SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGTTIN", "SIGTTOU", "SIGABRT")

_NAME = "isowsgi-spawner"  # as `ps` and `top` show it; the kernel keeps 15 characters

# How long what its processes have left behind may take to be gone at the end, once it is killed.
_END_S = 2.0
_LOOK_S = 0.02


@dataclass(slots=True)
class Process:
    """One that was started and has not ended.

    Attributes:
        birth: None: the worker has closed it, and is told nothing any more.
        folder: for temporary files, that is its own; "" if it has none.
        template: of which it is a tenant's; "" if of none.
    """

    name: str
    account: Account
    birth: socket.socket | None
    folder: str
    template: str


def fork(worker_socket: socket.socket, vouched: Callable[[], Vouched]) -> int:
    """Fork the spawner, and return its process id; in a worker that is root still, and has one thread.

    Args:
        worker_socket: the spawner's end of the pair; the caller closes it.
        vouched: returns what it may start.

    Raises:
        OSError: there is no room for one more process.
    """
    worker = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _run(worker_socket, worker, vouched)
    except BaseException:
        os.write(2, f"isowsgi: the spawner of worker {worker} ended: {traceback.format_exc()}".encode("utf-8", "replace"))
    finally:
        os._exit(1)


def _run(requests: socket.socket, worker: int, vouched: Callable[[], Vouched]) -> None:
    gc.freeze()  # what the worker has made is left as it is: descriptors in it are closed below, and their numbers others' by then
    for name in _WORKERS_SIGNALS:
        signal.signal(getattr(signal, name), _leave_to_worker)  # and not SIG_IGN, which the processes would inherit
    worker_fd = os.pidfd_open(worker)
    if os.getppid() != worker:
        return
    table = vouched()
    folder = tempfile.gettempdir()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    child.close_all_but(requests.fileno(), worker_fd)
    rights.keep_what_it_takes(_NAME)
    spawner = Spawner(requests, worker_fd, table, folder)
    requests.send(spawning.READY)
    try:
        spawner.serve()
    finally:
        spawner.end()


def _leave_to_worker(number: int, frame: object) -> None:
    return


class Spawner:
    """What it has and does.

    Args:
        requests: its socket to the worker.
        worker_fd: a descriptor of the worker's process (pidfd).
        vouched: what it may start.
        folder: where folders for temporary files are made.
    """

    def __init__(self, requests: socket.socket, worker_fd: int, vouched: Vouched, folder: str) -> None:
        self._requests = requests
        self._worker_fd = worker_fd
        self._vouched = vouched
        self._folder = folder
        self._processes: dict[int, Process] = {}  # by process id
        self._births: dict[int, int] = {}  # process ids, by the descriptor of the birth
        self._poll = select.epoll()
        self._wake_reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, _leave_to_worker)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for fd in (requests.fileno(), worker_fd, self._wake_reader):
            self._poll.register(fd, select.EPOLLIN)

    def serve(self) -> None:
        """Start what the worker asks for, until the worker ends."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._worker_fd:
                    return
                if fd == self._requests.fileno():
                    if not self._read_request():
                        return
                elif fd == self._wake_reader:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                elif fd in self._births:
                    self._hear(fd)
            self._reap()

    def _read_request(self) -> bool:
        """Do what one packet asks for; return whether the worker is still there."""
        try:
            packet, fds = births.receive(self._requests, births.MOST_FDS)
        except OSError:  # no descriptor is left for all of them; the worker sees its end of the birth closed
            return True
        try:
            if packet and fds:
                with socket.socket(fileno=fds[0]) as birth:
                    fds[0] = -1
                    self._answer(birth, fds)
        except OSError:  # what came is no socket
            pass
        finally:
            for fd in fds:
                if fd >= 0:
                    with contextlib.suppress(OSError):
                        os.close(fd)
        return bool(packet)

    def _answer(self, birth: socket.socket, fds: list[int]) -> None:
        """Start what is asked for, or say why not.

        Args:
            birth: a copy is kept.
            fds: what came with the request, from the second on.
        """
        birth.setblocking(False)  # each call says so too: the worker may have a copy, and make it block again
        try:
            pid, process_fd = self._start(birth, fds)
        except (NotVouchedFor, MessageError, OSError) as exc:
            _tell(birth, Refused(error=str(exc)))
            return
        except Exception as exc:
            traceback.print_exc(file=sys.stderr)
            _tell(birth, Refused(error=f"the spawner failed: {type(exc).__name__}: {exc}; its standard error has more"))
            return
        rights_to = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, process_fd.to_bytes(4, sys.byteorder))]
        try:
            birth.sendmsg([spawning.encode(Started(pid=pid))], rights_to, socket.MSG_DONTWAIT)
        except OSError:  # the worker has gone
            self._kill(pid)
        finally:
            os.close(process_fd)

    def _start(self, birth: socket.socket, fds: list[int]) -> tuple[int, int]:
        """Start a process; return its number, and a descriptor of it."""
        if len(fds) < FIRST_PLACE:
            raise MessageError("expected a file that says what to start")
        start = spawning.read_start(_content(fds[1]))
        charge = self._vouched.charge(start.name)
        if charge.account is None:
            raise NotVouchedFor(charge.fault)
        self._check_room(start.name, charge)
        order = _with_numbers(self._vouched.order(start), start, fds).replace(worker_pid=os.getpid())
        folder = ""
        if order.walls is not None and order.walls.sandbox is not None:
            folder = os.path.join(self._folder, f"isowsgi-{secrets.token_hex(8)}")  # nobody can have made it before
            walls = order.walls.replace(sandbox=order.walls.sandbox.replace(tmp=folder))
            around = order.environment.replace(env={"TMPDIR": folder, **order.environment.env})
            order = order.replace(walls=walls, environment=around)
        assert order.fds is not None, "they came along"
        held = socket.socket(fileno=os.dup(birth.fileno()))
        try:
            pid = child.start(order, charge.account, {*order.fds.known(), *order.log_files.values()}, held)
        except BaseException:
            held.close()
            raise
        self._processes[pid] = Process(start.name, charge.account, held, folder, charge.template)
        self._births[held.fileno()] = pid
        self._poll.register(held.fileno(), select.EPOLLIN)
        return pid, os.pidfd_open(pid)  # it is there until it is waited for, which is not before

    def _check_room(self, name: str, charge: Charge) -> None:
        """Raise OSError if a mount, or all tenants of its template, have as many processes as they may."""
        if sum(process.name == name for process in self._processes.values()) >= charge.most:
            raise OSError(f"{name!r} has {charge.most} processes, and no more are started for it")
        if charge.template and sum(each.template == charge.template for each in self._processes.values()) >= charge.most_of_template:
            text = f"the tenants of {charge.template!r} have {charge.most_of_template} processes, and no more are started for them"
            raise OSError(text)

    def _hear(self, fd: int) -> None:
        """Take in what the worker says on a birth, which is always that the process is to end."""
        pid = self._births[fd]
        birth = self._processes[pid].birth
        assert birth is not None, "it is among the births"
        try:
            is_there = bool(birth.recv(births.MAX_PACKET_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            is_there = False
        self._kill(pid)
        if not is_there:
            self._forget(self._processes[pid])

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # its number is its own until it is waited for
            os.kill(pid, signal.SIGKILL)

    def _forget(self, process: Process) -> None:
        """Let go of the birth of a process."""
        if process.birth is not None:
            del self._births[process.birth.fileno()]
            self._poll.unregister(process.birth.fileno())
            process.birth.close()
            process.birth = None

    def _reap(self) -> None:
        """Take note of processes that have ended, and of what others have left behind."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._processes.pop(pid, None)
            if process is None:
                continue
            if process.birth is not None:
                _tell(process.birth, Ended(status=os.waitstatus_to_exitcode(status)))
                self._forget(process)
            self._remove_folder(process)

    def _remove_folder(self, process: Process) -> None:
        if process.folder:
            with contextlib.suppress(OSError):  # no room for one more process
                child.remove(process.folder, process.account)

    def end(self) -> None:
        """Kill all processes, with what they have left behind, and remove their folders."""
        left = [process for process in self._processes.values() if process.folder]
        self._end_children()
        for process in left:
            self._remove_folder(process)
        self._wait_for_children(time.monotonic() + _END_S)
        self._end_children()

    def _end_children(self) -> None:
        """Kill all children, and those that become this process' because of it, until there is none."""
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            children = _children()
            for pid in children:
                self._kill(pid)
            if not children or self._wait_for_children(time.monotonic() + _LOOK_S):
                return

    def _wait_for_children(self, deadline: float) -> bool:
        """Wait until there is no child; return whether that is so."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                if time.monotonic() > deadline:
                    return False
                time.sleep(_LOOK_S / 4)


def _children() -> list[int]:
    """Return the process ids of this process' children."""
    own, found = os.getpid(), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])  # proc(5): pid (comm) state ppid
            except (OSError, ValueError, IndexError):
                continue
            if parent == own:
                found.append(int(name))
    return found


def _content(fd: int) -> bytes:
    """Return what is in the file of a `Start`.

    Raises:
        MessageError: it is no file, or too long.
        OSError: it cannot be read.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise MessageError("expected a file in memory that says what to start") from None  # to read from another one may take for ever
    if os.fstat(fd).st_size > MOST_START_BYTES:
        raise MessageError("expected a short file that says what to start")
    return os.pread(fd, MOST_START_BYTES, 0)


def _with_numbers(order: BootOrder, start: Start, fds: list[int]) -> BootOrder:
    """Return an order with the numbers of descriptors in the place of their places in the packet.

    Raises:
        MessageError: there are not as many.
    """
    places = dict(enumerate(fds))
    if any(not FIRST_PLACE <= place < len(fds) for place in (*start.fds.known(), *start.log_files.values())):
        raise MessageError(f"expected places of descriptors from {FIRST_PLACE} to {len(fds) - 1}")
    return order.renumbered(places)


def _tell(birth: socket.socket, message: spawning.Answer) -> None:
    with contextlib.suppress(OSError):  # the worker has gone, or does not read
        birth.send(spawning.encode(message), socket.MSG_DONTWAIT)
