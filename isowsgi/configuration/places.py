"""Checks of what lies in the file system: folders and files, virtual environments, other Pythons."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sysconfig
from typing import Any

from isowsgi.configuration import pythons, tenants
from isowsgi.configuration.checks import typed
from isowsgi.configuration.faults import Fault, quoted
from isowsgi.shared import regularfiles

# Largest pyvenv.cfg that is read; they have six lines.
_MAX_PYVENV_BYTES = 64 * 1024


def path_of(value: Any, folder: str) -> tuple[str, str]:
    """Return a path as an absolute one, and how to show it in a fault."""
    if not typed(str, value):
        raise Fault("expected a path, got ''")
    expanded = os.path.expanduser(value)
    if expanded.startswith("~") and (value.startswith("~/") or value == "~"):
        raise Fault(
            f"write the absolute path: uid {os.getuid()} has no home folder, neither by HOME nor in the user database, got {value!r}"
        )
    path = os.path.abspath(os.path.join(folder, expanded))
    return path, repr(value) if path == value else f"{value!r} (that is {path!r})"


def folder(value: Any, *, folder: str) -> str:
    path, shown = path_of(value, folder)
    if not os.path.isdir(path) and tenants.PLACE not in value:  # else it is looked for when a tenant's app is loaded
        raise Fault(f"expected an existing folder, got {shown}")
    return path


def served(value: Any, *, folder: str) -> str:
    if isinstance(value, dict):
        text = "a folder or a file; folders by their paths stand beside an app"
        raise Fault(f"without an app all of the mount is files: expected {text}, got a table")
    path, shown = path_of(value, folder)
    if "\0" in path or not os.path.exists(path):
        raise Fault(f"expected an existing folder or file, got {shown}")
    return path


def venv(value: Any, *, folder: str) -> str:
    path, shown = path_of(value, folder)
    try:
        text = _pyvenv_cfg(path)
    except (OSError, regularfiles.NotRegular, ValueError):  # ValueError: a NUL in the path
        raise Fault(f"expected a virtual environment (a folder with pyvenv.cfg), got {shown}") from None
    if _venv_version(text) is None:
        raise Fault(f"expected a Python version in its pyvenv.cfg, got none in {shown}")
    return path


def _pyvenv_cfg(venv: str) -> str:
    return regularfiles.read(os.path.join(venv, "pyvenv.cfg"), _MAX_PYVENV_BYTES).decode(errors="replace")


def _venv_version(text: str) -> tuple[int, int] | None:
    # venv writes `version`, uv `version_info`, virtualenv both.
    found = re.search(r"^\s*version(?:_info)?\s*=\s*(\d+)\.(\d+)", text, re.MULTILINE | re.IGNORECASE)
    return None if found is None else (int(found[1]), int(found[2]))


def venv_fault(venv: str, wanted: tuple[int, int], python: str | None) -> str | None:
    """Say why a venv, checked by `venv`, is none of the Python that runs the app, or return None."""
    try:
        version = _venv_version(_pyvenv_cfg(venv))
    except (OSError, regularfiles.NotRegular):  # it was there a moment ago
        version = None
    again = f"recreate it with python{wanted[0]}.{wanted[1]} -m venv --clear {shlex.quote(venv)}"
    if version is not None and version != wanted:
        runs_on = f"gunicorn runs on Python {wanted[0]}.{wanted[1]}" if python is None else f"{python!r} is Python {wanted[0]}.{wanted[1]}"
        own = os.path.join(venv, "bin", "python")
        if python is None and version >= pythons.oldest_version() and os.path.exists(own):
            again += f", or set python = {quoted(own)} to run the app on that Python, in its own process"
        return f"made for Python {version[0]}.{version[1]}, but {runs_on}; {again}"
    packages = f"lib/python{wanted[0]}.{wanted[1]}/site-packages"
    if wanted == pythons.HOST:
        packages = os.path.relpath(sysconfig.get_path("purelib", "venv", vars={"base": venv}), venv)
    if not os.path.isdir(os.path.join(venv, packages)):
        return f"expected the folder {packages!r} in {venv!r}, got none; {again}"
    return None


def python(value: Any, *, folder: str) -> str:
    """Return the absolute path of another Python: a path, or the name of a command."""
    found = None if os.sep in typed(str, value) else shutil.which(value)
    path = os.path.abspath(found) if found else path_of(value, folder)[0]
    try:
        return pythons.ask(path).path
    except pythons.UnusableError as exc:
        raise Fault(str(exc)) from exc


def new_path(value: Any, *, folder: str) -> str:
    return path_of(value, folder)[0]


def new_file(value: Any, *, folder: str) -> str:
    path, shown = path_of(value, folder)
    if os.path.isdir(path):
        raise Fault(f"expected a file, got the folder {shown}")
    return _in_existing_folder(path, shown)


def new_folder(value: Any, *, folder: str) -> str:
    path, shown = path_of(value, folder)
    if os.path.exists(path) and not os.path.isdir(path):
        raise Fault(f"expected a folder, got the file {shown}")
    return _in_existing_folder(path, shown)


def _in_existing_folder(path: str, shown: str) -> str:
    if "\0" in path or not os.path.isdir(os.path.dirname(path)):
        raise Fault(f"expected a path in an existing folder, got {shown}")
    return path
