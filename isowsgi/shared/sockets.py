"""Where the control sockets of workers lie: a folder that nobody else can enter, and a name for each.

Both sides compute the place, so neither needs the other's environment: a service and a shell seldom have the same XDG_RUNTIME_DIR or
TMPDIR, and /run/user/UID goes away when the user logs out. The folder is opened once and checked by that descriptor; sockets are reached
through /proc/self/fd, so that nobody can put another folder in its place in between, and no path is too long for a socket (108 bytes).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import stat
import struct
import time
import tomllib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from isowsgi.shared import regularfiles

# A service manager makes it for the service's user (systemd: RuntimeDirectory=isowsgi, RuntimeDirectoryMode=0700); root makes it itself.
RUN_FOLDER = "/run/isowsgi"

# Everybody else's: one for each user. Not tempfile.gettempdir(), which follows the environment.
TEMP_FOLDER = "/tmp/isowsgi-{uid}"

# Names that are looked at in one folder, many times those of a real server: others may have made millions in theirs.
_MOST_NAMES = 10_000

_NAME = re.compile(r"(?P<config>[0-9a-f]{16})\.(?P<master>\d{1,10})\.(?P<worker>\d{1,10})\.sock")

# A socket is made under another name and gets its own once it listens; left over by who died in between.
_UNFINISHED_SUFFIX = ".new"
_UNFINISHED_S = 60.0

_MARK = re.compile(r"[0-9a-f]{16}\.(?P<master>\d+)\.(?P<started>\d+)\.[0-9a-f]{16}\.stopped")


class UnsafeFolder(Exception):
    """A folder is not there, or others could put or reach a socket in it; the text says which."""


class Place(NamedTuple):
    """One worker's socket."""

    folder: str
    owner: int  # of the folder, and so of the worker
    name: str
    config: str  # hash of the config file's path
    master: int  # process ids
    worker: int


def config_hash(path: str) -> str:
    """Return what a config file's absolute path becomes in a socket's name."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def socket_name(config_path: str, master: int, worker: int) -> str:
    return f"{config_hash(config_path)}.{master}.{worker}.sock"


class StopMarks:
    """Which mounts the operator has stopped, for workers that this gunicorn makes later: an empty file for each.

    Named with the master's start time too, for its process id may be another's one day.

    Args:
        folder_fd: the folder of the control sockets; stays the caller's.
    """

    def __init__(self, folder_fd: int, config_path: str, master: int) -> None:
        self._folder_fd = folder_fd
        self._prefix = f"{config_hash(config_path)}.{master}.{_started_at(master)}."
        for name in os.listdir(folder_fd):
            found = _MARK.fullmatch(name)
            if found and _started_at(int(found["master"])) != found["started"]:
                remove(folder_fd, name)

    def holds(self, pattern: str) -> bool:
        return os.access(self._name(pattern), os.F_OK, dir_fd=self._folder_fd)

    def set(self, pattern: str, is_stopped: bool) -> None:
        if not is_stopped:
            remove(self._folder_fd, self._name(pattern))
            return
        try:
            os.close(os.open(self._name(pattern), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._folder_fd))
        except OSError:
            return  # no room on the disk: then it is stopped in the workers of now only

    def _name(self, pattern: str) -> str:
        return f"{self._prefix}{hashlib.sha256(pattern.encode()).hexdigest()[:16]}.stopped"


def own_folders(configured: str | None) -> list[str]:
    """Return the folders in which a worker of this user may have its socket, the best one first."""
    return [configured] if configured else [RUN_FOLDER, TEMP_FOLDER.format(uid=os.geteuid())]


def all_folders(configured: str | None) -> list[str]:
    """Return the folders in which a client looks; root may look into everybody's."""
    if configured or os.geteuid() != 0:
        return own_folders(configured)
    parent = os.path.dirname(TEMP_FOLDER)
    folders = (os.path.join(parent, name) for name in sorted(os.listdir(parent)))
    return [RUN_FOLDER, *(folder for folder in folders if _named_owner(folder) is not None)]


def configured_folder(config_path: str) -> str | None:
    """Return `[control] folder` of a config file as an absolute path, or None.

    Reads no more of the file: it may have faults by now, and its env files need not be readable for whoever asks.
    """
    try:
        text = regularfiles.read(config_path, regularfiles.MAX_CONFIG_BYTES).decode("utf-8-sig")
        folder = tomllib.loads(text).get("control", {}).get("folder")
    except (OSError, regularfiles.NotRegular, ValueError, AttributeError, RecursionError):
        return None
    return os.path.join(os.path.dirname(config_path), os.path.expanduser(folder)) if isinstance(folder, str) else None


def open_folder(path: str, *, make: bool = False) -> int:
    """Return a descriptor of a folder that only its owner can enter.

    The owner must be this process's user. root takes the folders of others too, but in /tmp, where everybody can make one, only those that
    belong to the user in their name.

    Args:
        make: whether to make it, for this process's user, if it is not there.

    Raises:
        UnsafeFolder: there is none that is safe.
    """
    try:
        if make:
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        what = "is a symbolic link" if exc.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.islink(path) else str(exc.strerror).lower()
        raise UnsafeFolder(f"{path}: {what}") from exc
    facts = os.fstat(fd)
    problem = ""
    owner = os.geteuid() if make or os.geteuid() != 0 else _named_owner(path)
    if owner is not None and facts.st_uid != owner:
        problem = f"belongs to uid {facts.st_uid}, expected {owner}"
    elif stat.S_IMODE(facts.st_mode) & 0o077:
        problem = f"has mode {stat.S_IMODE(facts.st_mode):#o}, expected 0o700"
    if problem:
        os.close(fd)
        raise UnsafeFolder(f"{path}: {problem}")
    return fd


def _named_owner(path: str) -> int | None:
    """Return the uid in the name of a folder that is one user's, or None."""
    prefix = TEMP_FOLDER.format(uid="")
    uid = path.removeprefix(prefix)
    return int(uid) if path.startswith(prefix) and re.fullmatch(r"0|[1-9][0-9]{0,9}", uid) else None


def listen(folder_fd: int, name: str) -> socket.socket:
    """Return a listening socket, not blocking, with mode 0600, under a name in a folder."""
    unfinished, final = _reached(folder_fd, f"{name}{_UNFINISHED_SUFFIX}"), _reached(folder_fd, name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(unfinished)
        os.chmod(unfinished, 0o600)
        sock.setblocking(False)
        sock.listen(64)
        os.rename(unfinished, final)  # from here on it answers, so nobody takes it for one that was left over
    except OSError:
        sock.close()
        raise
    return sock


def connect(folder_fd: int, name: str, timeout_s: float) -> socket.socket:
    """Return a connection to a socket in a folder.

    Raises:
        OSError: nobody listens there (ConnectionRefusedError), it is gone, or its queue is full for so long (TimeoutError).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if timeout_s:
            # A blocking connect with a limit of the kernel's: one that does not block fails at once when the listener's queue is full.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1_000_000)))
        else:
            sock.setblocking(False)
        sock.connect(_reached(folder_fd, name))
        sock.settimeout(timeout_s)
    except BlockingIOError as exc:
        sock.close()
        raise TimeoutError(f"no connection within {timeout_s:g} s") from exc
    except OSError:
        sock.close()
        raise
    return sock


def places(folder: str, folder_fd: int) -> Iterator[Place]:
    """Yield the sockets in a folder, those left over included; no links, as root asks in the folders of others."""
    owner = os.fstat(folder_fd).st_uid
    for name in _names(folder_fd):
        if (found := _NAME.fullmatch(name)) and _is_socket(folder_fd, name):
            yield Place(folder, owner, name, found["config"], int(found["master"]), int(found["worker"]))


def _names(folder_fd: int) -> list[str]:
    with os.scandir(folder_fd) as entries:
        return sorted(entry.name for entry in islice(entries, _MOST_NAMES))


def remove(folder_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder_fd)
    except OSError:
        return  # gone, or not ours to remove


def clean_up(folder: str, folder_fd: int) -> None:
    """Remove the sockets of workers that have ended: those on which nobody listens, whatever their process ids say.

    A process id means nothing in another container that shares the folder, nor after another process has got it.
    """
    for place in places(folder, folder_fd):
        try:
            connect(folder_fd, place.name, 0.0).close()
        except ConnectionRefusedError:
            remove(folder_fd, place.name)
        except OSError:  # its queue is full: it lives
            continue
    for name in _names(folder_fd):
        if name.endswith(_UNFINISHED_SUFFIX):
            try:
                if time.time() - os.stat(name, dir_fd=folder_fd).st_mtime > _UNFINISHED_S:
                    remove(folder_fd, name)
            except OSError:
                continue


def _is_socket(folder_fd: int, name: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)
    except OSError:  # it has just ended
        return False


def _reached(folder_fd: int, name: str) -> str:
    return f"/proc/self/fd/{folder_fd}/{name}"


def _started_at(pid: int) -> str:
    """Return when a process was started, in the kernel's clock ticks; "0" if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]  # field 22 of proc(5); the name before it may hold anything
    except (OSError, IndexError):
        return "0"


def peer_pid(sock: socket.socket) -> int:
    """Return the process that listens, or that connected, at the other end."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(pid)


def peer_uid(sock: socket.socket) -> int:
    """Return the user on the other side of a connection, as the kernel noted it then."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
