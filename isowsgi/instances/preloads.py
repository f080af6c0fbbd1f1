"""Which modules the processes of a venv have in common, as their boots tell: `preload = "auto"`.

What a process says is not believed. A module counts once two mounts, or two copies of one, have told of it; and only if its file lies in a
site-packages folder of that venv, where this side finds it by itself, link by link. So an app cannot have its neighbours import code of
its own, only packages that they could import anyway.

It is kept on disk beside the verdicts, so that the first processes of the next start have it; for as long as the folders are as they were.
Nothing there is ever an error.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import isowsgi
from isowsgi.shared import cachefolder
from isowsgi.shared.messages import BootOrder

# Modules of a venv that are told of: Django's admin with an API and a database has 1,500. More are not counted.
MOST_MODULES = 8000

# A name as packages have them, and its length.
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_MOST_CHARS = 150

# What is never preloaded: these are isowsgi's own affair, and a package's `__main__` is a command.
_OURS = frozenset({"isowsgi", "gunicorn"})
_COMMAND = "__main__"

# A server is replaced by one that has more only if that is worth its start: by this factor.
_GROWTH = 1.5

_SUFFIXES = (".py", ".so")

# Most bytes of a file: all modules with names of that length, and a little.
_MOST_BYTES = 2 * 1024 * 1024


class Venv(NamedTuple):
    """Where packages are."""

    python: str
    folder: str | None  # None: gunicorn's own packages
    site: tuple[str, ...]  # gunicorn's site-packages

    def packages(self) -> list[str]:
        """Return its site-packages folders."""
        if self.folder is not None:
            return sorted(glob.glob(os.path.join(glob.escape(self.folder), "lib*/python3*/site-packages")))
        # Another Python's own are not known here.
        return list(self.site) if self.python == sys.executable else []


def venv_of(python: str, order: BootOrder) -> Venv:
    return Venv(python, order.environment.venv, tuple(order.host.site))


class _Known:
    """What is known of one venv."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}  # who was the first to tell of a module; None: another one has, too
        self.remembered: list[str] = []  # modules that were on disk
        self.dropped: set[str] = set()  # modules, and top-level names of packages, that cannot be preloaded
        self.stamp: list[list[Any]] | None = None  # of the folders, when they were last looked at; None: never
        self.in_use: tuple[str, ...] = ()
        self.written: tuple[list[str], list[str]] = ([], [])

    def is_dropped(self, module: str) -> bool:
        return module in self.dropped or module.partition(".")[0] in self.dropped

    def in_common(self) -> list[str]:
        shared = [module for module, first in self.told.items() if first is None]
        return [module for module in dict.fromkeys([*self.remembered, *shared]) if not self.is_dropped(module)]


class Preloads:
    """One worker's; any thread may call it that may wait for the disk.

    Args:
        folder: where it is kept; None: see `cachefolder`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder or cachefolder.default_folder()
        self._lock = threading.Lock()
        self._venvs: dict[Venv, _Known] = {}

    def learn(self, python: str, order: BootOrder, modules: Iterable[str]) -> bool:
        """Take in what a process has loaded.

        Returns:
            whether that makes it more that several have in common.
        """
        teller = (order.name, order.slot)
        own = {member.app.target.partition(".")[0] for member in order.members} | _OURS
        is_news = False
        with self._lock:
            told = self._venvs.setdefault(venv_of(python, order), _Known()).told
            for module in modules:
                if module in told:
                    if told[module] not in (None, teller):
                        told[module] = None
                        is_news = True
                elif len(told) < MOST_MODULES and _is_name(module) and module.partition(".")[0] not in own:
                    told[module] = teller
        return is_news

    def of(self, python: str, order: BootOrder) -> tuple[str, ...]:
        """Return the modules that a process is to have; looks at the disk."""
        venv = venv_of(python, order)
        with self._lock:
            known = self._venvs.setdefault(venv, _Known())
            self._look(venv, known)
            found = _lying_in(venv.packages(), known.in_common())
            in_use = tuple(module for module in known.in_use if module in found)
            if len(found) >= len(in_use) * _GROWTH:
                in_use = tuple(found)
            known.in_use = in_use
            return in_use

    def drop(self, python: str, venv: str | None, names: Iterable[str]) -> None:
        """Note modules, or packages by their top-level names, that cannot be preloaded, until the venv changes; writes to the disk."""
        gone = list(names)
        with self._lock:
            for each, known in self._venvs.items():
                if (each.python, each.folder) == (python, venv):
                    self._look(each, known)  # before, as it forgets what was dropped if the venv has changed
                    known.dropped.update(gone)
                    self._write(each, known)

    def save(self, python: str, order: BootOrder) -> bool:
        """Keep on disk what several have in common; return whether it was written."""
        venv = venv_of(python, order)
        with self._lock:
            known = self._venvs.setdefault(venv, _Known())
            self._look(venv, known)
            return self._write(venv, known)

    def _write(self, venv: Venv, known: _Known) -> bool:
        with contextlib.suppress(OSError, ValueError):
            modules, dropped = _lying_in(venv.packages(), known.in_common()), sorted(known.dropped)
            if (modules, dropped) == known.written:
                return False
            content = json.dumps({"stamp": known.stamp, "modules": modules, "dropped": dropped}).encode()
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if len(content) <= _MOST_BYTES and cachefolder.is_ours_alone(self._folder):
                cachefolder.put(self._folder, _file_of(venv), content)
                known.written = modules, dropped
                return True
        return False

    def _look(self, venv: Venv, known: _Known) -> None:
        """Begin again with what was remembered and dropped, if the folders have changed."""
        stamp = [[folder, _mtime_ns(folder)] for folder in venv.packages()]
        if stamp != known.stamp:
            known.stamp = stamp
            known.remembered, dropped = self._recall(venv, stamp)
            known.dropped = set(dropped)
            known.written = known.remembered, dropped

    def _recall(self, venv: Venv, stamp: list[list[Any]]) -> tuple[list[str], list[str]]:
        try:
            if not cachefolder.is_ours_alone(self._folder):
                return [], []
            with open(os.path.join(self._folder, _file_of(venv)), "rb") as file:
                facts = json.loads(file.read(_MOST_BYTES + 1))
            if facts["stamp"] != stamp:
                return [], []
            modules, dropped = ([name for name in facts[key][:MOST_MODULES] if _is_name(name)] for key in ("modules", "dropped"))
        except (OSError, ValueError, KeyError, TypeError):
            return [], []
        return modules, dropped


def _mtime_ns(folder: str) -> int:
    """Return the time of a folder; 0 if there is none, as Python names more of them than a system has."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _file_of(venv: Venv) -> str:
    facts = json.dumps([isowsgi.__version__, sys.version, *venv]).encode()
    return hashlib.sha256(facts).hexdigest() + cachefolder.PRELOADS_SUFFIX


def _is_name(text: object) -> bool:
    return (
        isinstance(text, str)
        and len(text) <= _MOST_CHARS
        and _NAME.fullmatch(text) is not None
        and _COMMAND not in text.split(".")
        and text.partition(".")[0] not in _OURS
    )


def _lying_in(folders: Sequence[str], modules: Iterable[str]) -> list[str]:
    """Return those of the modules whose files lie in one of these folders, as Python looks for them; links below it lead elsewhere."""
    seen: dict[str, dict[str, bool]] = {}

    def content(folder: str) -> dict[str, bool]:
        if folder not in seen:
            seen[folder] = _modules_in(folder)
        return seen[folder]

    return [module for module in modules if any(_is_there(folder, module.split("."), content) for folder in folders)]


def _is_there(folder: str, parts: Sequence[str], content: Callable[[str], dict[str, bool]]) -> bool:
    for part in parts[:-1]:
        if not content(folder).get(part):
            return False
        folder = os.path.join(folder, part)
    return parts[-1] in content(folder)


def _modules_in(folder: str) -> dict[str, bool]:
    """Return the modules in a folder by name, and whether each is a package."""
    found: dict[str, bool] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name, dot, _ = entry.name.partition(".")
                if not dot and entry.is_dir(follow_symlinks=False):
                    start = os.path.join(entry.path, "__init__.py")
                    if os.path.isfile(start) and not os.path.islink(start):
                        found[name] = True
                elif entry.name.endswith(_SUFFIXES) and entry.is_file(follow_symlinks=False):
                    found.setdefault(name, False)
    except OSError:
        return {}
    return found
