"""The operator's side of the control protocol: find the workers, ask all of them, collect the answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from isowsgi.shared import frames, sockets
from isowsgi.shared.frames import Decoder, FrameError
from isowsgi.shared.sockets import Place

_MOST_AT_A_TIME = 32


class NobodyServes(Exception):
    """No running worker was found; the text says what was looked for, and what runs instead."""


class Answer(NamedTuple):
    """What came of asking one worker.

    Attributes:
        message: its answer; with `ok` false also if there was none, and then `error` says why.
    """

    place: Place
    message: dict[str, Any]

    @property
    def is_ok(self) -> bool:
        return self.message.get("ok") is True

    @property
    def error(self) -> dict[str, Any]:
        error = self.message.get("error")
        return error if isinstance(error, dict) else {"kind": "malformed", "text": "the answer says neither ok nor what is wrong"}


def find(config: str | None, pidfile: str | None) -> list[Place]:
    """Return the sockets of the workers that serve a config file, of all gunicorns or of the one with a pid file.

    Raises:
        NobodyServes: there is none.
    """
    path = os.path.abspath(config or "isowsgi.toml")
    master = None if pidfile is None else _master(pidfile)
    found = [place for folder in sockets.all_folders(sockets.configured_folder(path)) for place in _living(folder)]
    hashes = {sockets.config_hash(path), sockets.config_hash(os.path.realpath(path))}
    if master is not None:
        wanted = [place for place in found if place.master == master and (config is None or place.config in hashes)]
        if not wanted:
            raise NobodyServes(f"{pidfile}: no worker of process {master} has a control socket here")
        return wanted
    wanted = [place for place in found if place.config in hashes]
    if wanted:
        return wanted
    others = sorted({f"{answer.message['config']} (gunicorn {answer.place.master})" for answer in ask(found, {"do": "errors"}, 2.0)
                     if isinstance(answer.message.get("config"), str)})  # fmt: skip
    me = "" if os.geteuid() == 0 else f" as uid {os.geteuid()}; ask as the user of its workers, or as root"
    if others:
        raise NobodyServes(f"no running gunicorn serves {path}{me}; running: {', '.join(others)}")
    missing = "; there is no such file, name it with --config" if not os.path.exists(path) else ""
    raise NobodyServes(f"no running gunicorn serves {path}{me}{missing}")


def ask(workers: Iterable[Place], request: Mapping[str, Any], timeout_s: float) -> list[Answer]:
    """Send a request to workers, all at the same time, and return their answers in the same order."""
    workers = list(workers)
    if not workers:
        return []
    with ThreadPoolExecutor(min(len(workers), _MOST_AT_A_TIME)) as pool:
        return list(pool.map(lambda place: Answer(place, _ask(place, request, timeout_s)), workers))


def _ask(place: Place, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    try:
        folder_fd = sockets.open_folder(place.folder)
    except sockets.UnsafeFolder as exc:
        return _no_answer("gone", str(exc))
    try:
        owner = os.fstat(folder_fd).st_uid
        with sockets.connect(folder_fd, place.name, timeout_s) as sock:
            if sockets.peer_uid(sock) not in (0, owner, os.geteuid()):
                return _no_answer("forbidden", f"another user answers at {place.folder}/{place.name}")
            return _exchange(sock, request)
    except TimeoutError:
        return _no_answer("timeout", f"no answer within {timeout_s:g} s")
    except (OSError, FrameError) as exc:
        return _no_answer("gone", f"no answer: {getattr(exc, 'strerror', None) or exc}")
    finally:
        os.close(folder_fd)


def _exchange(sock: socket.socket, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        sock.sendall(frames.encode({"v": frames.VERSION, **request}))
    except BrokenPipeError:
        pass  # it refused us before it read anything, and said why
    decoder = Decoder(frames.MAX_ANSWER_BYTES)
    while data := sock.recv(256 * 1024):
        if (answer := decoder.feed(data)) is not None:
            return answer
    raise FrameError("the worker closed the connection; it may have ended")


def _no_answer(kind: str, text: str) -> dict[str, Any]:
    return {"ok": False, "error": {"kind": kind, "text": text}}


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
        with open(pidfile, encoding="ascii") as file:
            return int(file.read())
    except OSError as exc:
        raise NobodyServes(f"{pidfile}: cannot read it: {(exc.strerror or str(exc)).lower()}") from exc
    except ValueError as exc:
        raise NobodyServes(f"{pidfile}: expected the process id of a gunicorn master") from exc
