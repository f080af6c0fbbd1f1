"""What an app touches while it is tried, and its sandbox would refuse: in the process of a trial, where there is no sandbox.

Landlock has no mode in which it only tells: a ruleset refuses or does not. So Python's own audit events are compared with the rules
(sys.addaudithook, PEP 578). They name what Python code opens, makes, removes, starts and connects to. Not what C code opens by itself, but
for SQLite, nor what a program does that the app starts; and no more than what the app does when it is loaded and warmed up.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from typing import Any

from isowsgi.inside import sandbox
from isowsgi.shared.landlock import (
    EXECUTE,
    MAKE_DIR,
    MAKE_REG,
    MAKE_SYM,
    READ_DIR,
    READ_FILE,
    REMOVE_DIR,
    REMOVE_FILE,
    RESOLVE_UNIX,
    WRITE_FILE,
)
from isowsgi.shared.messages import BootOrder, Sandbox

# Different paths that are kept; an app may walk over the whole disk. Of one folder so many are told one by one.
_MOST, _ONE_BY_ONE = 1000, 2

# Python tries to keep bytecode beside the code, and does without where it may not.
_BYTECODE = re.compile(r"__pycache__(?:$|/)")

# It looks for modules in all folders of the path, and passes over those that it may not list: gunicorn's `chdir`, which has all sites.
_IMPORTLIB = "<frozen importlib._bootstrap_external>"

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Of one process, from `start` to its end."""

    def __init__(self, order: BootOrder, allowed: Sandbox) -> None:
        self._sandbox = allowed
        self._rules: dict[str, int] = {}
        for path, access in sandbox.rules(order, allowed):
            real = os.path.realpath(path) if path else ""
            self._rules[real] = self._rules.get(real, 0) | access
        self._count = 0
        self._found: dict[tuple[str, str, str, bool], dict[str, None]] = {}  # by verb, word, folder, and whether that must be added
        self._handlers: dict[str, Callable[..., None]] = {
            "open": self._on_open,
            "os.listdir": lambda path: self._needs(path or ".", READ_DIR, "lists"),
            "os.scandir": lambda path: self._needs(path or ".", READ_DIR, "lists"),
            "os.mkdir": lambda path, mode, fd: self._changes(path, fd, MAKE_DIR, "makes"),
            "os.rmdir": lambda path, fd: self._changes(path, fd, REMOVE_DIR, "removes"),
            "os.remove": lambda path, fd: self._changes(path, fd, REMOVE_FILE, "removes"),
            "os.truncate": lambda path, length: self._needs(path, WRITE_FILE, "writes"),
            "os.rename": self._on_rename,
            "os.link": lambda source, target, source_fd, target_fd: self._changes(target, target_fd, MAKE_REG, "makes"),
            "os.symlink": lambda source, target, fd: self._changes(target, fd, MAKE_SYM, "makes"),
            "sqlite3.connect": self._on_sqlite,
            "ctypes.dlopen": lambda name: self._needs(name, READ_FILE, "loads") if "/" in str(name) else None,
            "os.exec": lambda path, *rest: self._runs(path),
            "os.posix_spawn": lambda path, *rest: self._runs(path),
            "subprocess.Popen": lambda path, *rest: self._runs(path),
            "socket.connect": self._on_connect,
            "socket.bind": self._on_bind,
        }

    def start(self) -> None:
        sys.addaudithook(self._on_event)

    def lines(self) -> list[str]:
        """Return what was found, with what to add to the sandbox, in the order in which it was met."""
        lines: list[str] = []
        for (verb, word, folder, is_folders), found in self._found.items():
            if folder and len(found) > _ONE_BY_ONE:
                lines.append(f"{verb} {len(found)} files in {folder}: add that to {word}")
            else:
                lines += [f"{verb} {what}: add {repr(folder) if is_folders else 'it'} to {word}" for what in found]
        return lines

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        handler = self._handlers.get(event)
        if handler is None or self._count >= _MOST:
            return
        try:
            if event == "os.listdir" and sys._getframe(1).f_code.co_filename == _IMPORTLIB:
                return
            handler(*arguments)
        except Exception:  # what the app passes may be anything, and an exception here would be raised in its call
            return

    def _on_open(self, path: Any, mode: Any, flags: Any) -> None:
        if isinstance(path, int):
            return
        if not int(flags or 0) & _WRITES:
            self._needs(path, READ_DIR if os.path.isdir(path) else READ_FILE, "reads")
        elif os.path.exists(path):
            self._needs(path, WRITE_FILE, "writes")
        else:
            self._changes(path, -1, MAKE_REG, "writes")

    def _on_rename(self, source: Any, target: Any, source_fd: int, target_fd: int) -> None:
        self._changes(source, source_fd, REMOVE_FILE, "moves")
        self._changes(target, target_fd, MAKE_REG, "makes")

    def _on_sqlite(self, database: Any) -> None:
        name = os.fsdecode(database)
        if name and name != ":memory:" and not name.startswith("file:"):
            self._changes(name, -1, MAKE_REG, "keeps a database in")

    def _runs(self, program: Any) -> None:
        path = os.fsdecode(program)
        self._needs(path if "/" in path else shutil.which(path) or path, EXECUTE, "runs")

    def _on_connect(self, sock: Any, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
            if self._sandbox.connect is not None and address[1] not in self._sandbox.connect:
                self._add("connects to", _spelt(address), "connect")
        elif sock.family == socket.AF_UNIX and self._sandbox.connect is not None:
            path = os.fsdecode(address)
            if os.path.isabs(path) and not self._has(os.path.realpath(path), RESOLVE_UNIX):
                self._add("connects to", f"unix:{path}", "connect")

    def _on_bind(self, sock: Any, address: Any) -> None:
        is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
        if is_tcp and address[1] and address[1] not in (self._sandbox.listen or ()):
            self._add("listens on", _spelt(address), "listen")

    def _changes(self, path: Any, fd: int, access: int, verb: str) -> None:
        """Note a change of what a folder has."""
        name = os.fsdecode(path)
        if isinstance(fd, int) and fd >= 0 and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), name)
        folder = os.path.realpath(os.path.dirname(os.path.abspath(name)))
        is_bytecode = _BYTECODE.search(name) or (sys.pycache_prefix and os.path.abspath(name).startswith(sys.pycache_prefix))
        if os.path.isdir(folder) and not is_bytecode and not self._has(folder, access):
            self._add(verb, os.path.join(folder, os.path.basename(name)), "write", folder, True)

    def _needs(self, path: Any, access: int, verb: str) -> None:
        """Note an access to what is there."""
        if isinstance(path, int):
            return
        real = os.path.realpath(os.fsdecode(path))
        if os.path.exists(real) and not self._has(real, access):
            self._add(verb, real, "write" if access == WRITE_FILE else "read", os.path.dirname(real))

    def _has(self, real: str, access: int) -> bool:
        """Whether the rules allow an access: each of them counts for all that is beneath its path."""
        allowed = 0
        while True:
            allowed |= self._rules.get(real, 0)
            above = os.path.dirname(real)
            if not access & ~allowed or above == real:
                return not access & ~allowed
            real = above

    def _add(self, verb: str, what: str, word: str, folder: str = "", is_folders: bool = False) -> None:
        found = self._found.setdefault((verb, word, folder, is_folders), {})
        self._count += what not in found
        found[what] = None


def _spelt(address: Any) -> str:
    host, port = address[:2]
    try:
        return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"
    except ValueError:
        return f"{host}:{port}"


def begin(order: BootOrder) -> Watch | None:
    """Begin to watch, if the app has a sandbox."""
    if order.walls is None or order.walls.sandbox is None:
        return None
    watch = Watch(order, order.walls.sandbox)
    watch.start()
    return watch
