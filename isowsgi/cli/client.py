"""The operator's side of the control protocol: find the workers, ask all of them, collect the answers.

root looks into folders of other users, who may have put there what they like. So a socket counts only if the folder's owner listens on it,
which the kernel says; all workers of one ask share one time limit; and what they answer is bounded, checked and shown as plain text.
"""

from __future__ import annotations

import os
import pwd
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from isowsgi.cli.answers import A, Told, no_answer, plain
from isowsgi.shared import controlmessages, frames, regularfiles, sockets, workdir
from isowsgi.shared.controlmessages import Error, Request, Worker
from isowsgi.shared.frames import Decoder, FrameError
from isowsgi.shared.sockets import Place

# Each waits in a thread; more workers than this share a machine only in tests of it.
_MOST_AT_A_TIME = 128

# How long all workers that serve something else may take to say what, and how much: they only tell which config file is theirs.
_OTHERS_S = 2.0
_OTHERS_BYTES = 16 * 1024

# Most bytes of a pid file: 20 digits, with some room for spaces.
_MOST_PIDFILE_BYTES = 64


class NobodyServes(Exception):
    """No running worker was found; the text says what was looked for, and what runs instead.

    Args:
        is_silent: whether the gunicorn that is meant has no control socket at all, so it may serve the config file all the same.
    """

    def __init__(self, text: str, *, is_silent: bool = False) -> None:
        super().__init__(text)
        self.is_silent = is_silent


def find(config: str | None, pidfile: str | None, master: int | None = None) -> list[Place]:
    """Return the sockets of the workers that serve a config file, of all gunicorns or of the one with a pid file.

    Raises:
        NobodyServes: there is none, or several users claim to serve it.
    """
    try:
        path = workdir.absolute(config or "isowsgi.toml")
    except FileNotFoundError:
        raise NobodyServes("the working directory was deleted; give the config file's absolute path with --config") from None
    found = [place for folder in sockets.all_folders(sockets.configured_folder(path)) for place in _living(folder)]
    if master is not None:  # a worker asks for its own gunicorn
        found = [place for place in found if place.master == master]
    master = None if pidfile is None else _master(pidfile)
    # As gunicorn has it: by the path as it was written, or without the links in it, or in the folder that its shell's link led to.
    names = {path, os.path.realpath(path), *([] if os.path.isabs(config or "") else [os.path.abspath(config or "isowsgi.toml")])}
    hashes = {sockets.config_hash(name) for name in names}
    if master is not None:
        wanted = [place for place in found if place.master == master and (config is None or place.config in hashes)]
        if not wanted:
            raise NobodyServes(
                f"{pidfile}: process {master} has no worker with a control socket; is it a running gunicorn with isowsgi's worker?"
            )
    else:
        wanted = [place for place in found if place.config in hashes]
    if not wanted:
        raise NobodyServes(_who_else(path, found), is_silent=not found)
    if len({place.owner for place in wanted}) > 1:
        claims = ", ".join(sorted({f"gunicorn {place.master} of {user(place.owner)}" for place in wanted}))
        raise NobodyServes(f"several users claim to serve {plain(path)}: {claims}; run this command as the right user")
    return wanted


def _who_else(path: str, found: list[Place]) -> str:
    """Say that nobody serves a config file, and what is served instead."""
    others = set()
    for told in ask(found, controlmessages.Errors(mount=""), _OTHERS_S, _OTHERS_BYTES):
        if told.worker is not None:
            others.add(f"{plain(told.worker.config)} (gunicorn {told.place.master}{of_whom(told.place)})")
    me = "" if os.geteuid() == 0 else f" as uid {os.geteuid()}; run this command as the workers' user or as root"
    if others:
        return f"no running gunicorn serves {plain(path)}{me}; running: {', '.join(sorted(others))}"
    missing = "; no such file: name the config file with --config" if not os.path.exists(path) else ""
    return f"no running gunicorn serves {plain(path)}{me}{missing}"


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def of_whom(place: Place) -> str:
    """Return " of USER" for another user's worker; root must know whose word it is."""
    return "" if place.owner == os.geteuid() else f" of {user(place.owner)}"


def ask(workers: Iterable[Place], request: Request[A], timeout_s: float, most_bytes: int = frames.MAX_ANSWER_BYTES) -> list[Told[A]]:
    """Send a request to workers, all at the same time, and return their answers in the same order.

    Args:
        timeout_s: for all of them together.
        most_bytes: of each answer.
    """
    return ask_each([(place, request) for place in workers], timeout_s, most_bytes)


def ask_each(requests: Sequence[tuple[Place, Request[A]]], timeout_s: float, most_bytes: int = frames.MAX_ANSWER_BYTES) -> list[Told[A]]:
    """Send each worker its request, otherwise as `ask`."""
    if not requests:
        return []
    deadline = time.monotonic() + timeout_s
    answers: list[Told[A] | BaseException | None] = [None] * len(requests)
    numbers = iter(range(len(requests)))

    def work() -> None:
        for number in numbers:  # each takes the next
            place, wanted = requests[number]
            try:
                answers[number] = Told(place, *_ask(place, wanted, deadline, timeout_s, most_bytes))
            except BaseException as exc:
                answers[number] = exc

    # Not concurrent.futures, with which a command would import logging: a tenth of its CPU time, beside apps that are served.
    threads = [threading.Thread(target=work) for _ in range(min(len(requests), _MOST_AT_A_TIME))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [_known(answer) for answer in answers]


def _known(answer: Told[A] | BaseException | None) -> Told[A]:
    if isinstance(answer, BaseException):
        raise answer
    assert answer is not None, "each was asked"
    return answer


def ask_one(place: Place, request: Request[A], timeout_s: float) -> tuple[Worker | None, A | Error]:
    """Send one worker a request, in the calling thread."""
    return _ask(place, request, time.monotonic() + timeout_s, timeout_s, frames.MAX_ANSWER_BYTES)


def _ask(place: Place, request: Request[A], deadline: float, timeout_s: float, most_bytes: int) -> tuple[Worker | None, A | Error]:
    try:
        folder_fd = sockets.open_folder(place.folder)
    except sockets.UnsafeFolder as exc:
        return no_answer("gone", str(exc))
    try:
        with sockets.connect(folder_fd, place.name, _left_s(deadline)) as sock:
            # Whoever can put a link there leads us to another's socket: then it is not the folder's owner who listens.
            if sockets.peer_uid(sock) != os.fstat(folder_fd).st_uid:
                return no_answer("forbidden", f"another user answers at {place.folder}/{place.name}")
            if isinstance(request, controlmessages.Prepare) and not _may_know_secrets(place, sockets.peer_pid(sock)):
                text = f"process {place.master} is no gunicorn of root's; run this command as {user(place.owner)}"
                return no_answer("forbidden", text)
            return controlmessages.decode_answer(_exchange(sock, request, deadline, most_bytes), request)
    except TimeoutError:
        return no_answer("timeout", f"no answer within {timeout_s:g} s")
    except (OSError, FrameError) as exc:
        return no_answer("gone", f"no answer: {getattr(exc, 'strerror', None) or exc}")
    finally:
        os.close(folder_fd)


def _may_know_secrets(place: Place, listener: int) -> bool:
    """Whether a worker may get what only root can read: root's command gives that only to children of root's gunicorn.

    Any user can make a socket that looks like a worker's. But nobody else's parent is a process of root's that has isowsgi's memory.
    """
    if os.geteuid() != 0 or place.owner == 0:
        return True
    try:
        with open(f"/proc/{listener}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        if parent != place.master or os.stat(f"/proc/{parent}").st_uid != 0:
            return False
        if parent == 1 and not os.path.basename(os.readlink("/proc/1/exe")).startswith("python"):
            return False  # the parent of orphans, and systemd keeps descriptors for others
        return has_our_memory(parent)
    except (OSError, ValueError, IndexError):
        return False


def has_our_memory(pid: int) -> bool:
    """Whether a process has memory of isowsgi's, as gunicorn's master has from its first worker on; False if we may not look."""
    try:
        return any(_is_our_memory(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _is_our_memory(path: str) -> bool:
    try:
        return os.readlink(path).startswith("/memfd:isowsgi-")
    except OSError:  # closed meanwhile
        return False


def is_trusted(place: Place) -> bool:
    """Whether a worker's word on where its config file lies may be taken, by whoever runs this command."""
    return os.geteuid() != 0 or place.owner == 0 or _may_know_secrets(place, place.worker)


def may_signal(place: Place) -> bool:
    """Whether the process that a worker's socket names as its master may be sent a signal: root's command signals no process unseen.

    Who else runs this command is kept by the kernel from signalling processes that are not its own.
    """
    try:
        return os.geteuid() != 0 or os.stat(f"/proc/{place.master}").st_uid == place.owner or is_trusted(place)
    except OSError:
        return False


def _exchange(sock: socket.socket, request: Request[Any], deadline: float, most_bytes: int) -> dict[str, Any]:
    sock.settimeout(_left_s(deadline))
    try:
        sock.sendall(controlmessages.encode_request(request))
    except BrokenPipeError:
        pass  # it refused us before it read anything, and said why
    decoder = Decoder(most_bytes)
    while True:
        sock.settimeout(_left_s(deadline))  # again for each: a worker that sends a byte now and then must not hold us
        data = sock.recv(256 * 1024)
        if not data:
            raise FrameError("the worker closed the connection; it may have ended")
        if (answer := decoder.feed(data)) is not None:
            return answer


def _left_s(deadline: float) -> float:
    """Return how long may still be waited.

    Raises:
        TimeoutError: no longer.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _living(folder: str) -> list[Place]:
    """Return the sockets in a folder; those that were left over are removed."""
    try:
        folder_fd = sockets.open_folder(folder)
    except sockets.UnsafeFolder:
        return []
    try:
        sockets.clean_up(folder, folder_fd)
        return list(sockets.places(folder, folder_fd))
    finally:
        os.close(folder_fd)


def _master(pidfile: str) -> int:
    try:
        return int(regularfiles.read(pidfile, _MOST_PIDFILE_BYTES))
    except OSError as exc:
        raise NobodyServes(f"{pidfile}: cannot read it: {(exc.strerror or str(exc)).lower()}") from exc
    except (ValueError, regularfiles.NotRegular) as exc:
        raise NobodyServes(f"{pidfile}: expected the process id of a gunicorn master") from exc
