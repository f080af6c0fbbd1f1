"""What an app finds around it: its path and venv, its environment variables, arguments and signals.

All of these belong to the process, or are copied from it when an interpreter is made. Each function here gives the interpreter one of
its own, before any of the app's code runs.
"""

from __future__ import annotations

import _posixsubprocess
import os
import signal
import site
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class PrivateEnviron(os._Environ):  # type: ignore[type-arg] # generic for the type checker only
    """`os.environ` that does not write through to the process.

    CPython's own calls putenv(), so that interpreters made later and every child process would see one app's settings: two Djangos
    would get each other's DJANGO_SETTINGS_MODULE.
    """

    _data: dict[bytes, bytes]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._data[self.encodekey(key)] = self.encodevalue(value)

    def __delitem__(self, key: Any) -> None:
        try:
            del self._data[self.encodekey(key)]
        except KeyError:
            raise KeyError(key) from None


def set_environ(values: Mapping[str, str]) -> None:
    """Give this interpreter its own `os.environ`: the process' variables and the mount's; child processes get it too."""
    text: Any = os.environ
    octets: Any = os.environb
    own = PrivateEnviron(dict(text._data), text.encodekey, text.decodekey, text.encodevalue, text.decodevalue)
    own.update(values)

    def unset(key: Any) -> None:
        own.pop(key, None)

    os.environ = own  # noqa: B003 # the process' own environment is what must stay as it is
    os.environb = PrivateEnviron(own._data, octets.encodekey, octets.decodekey, octets.encodevalue, octets.decodevalue)
    os.putenv = own.__setitem__
    os.unsetenv = unset
    os.system = _system

    start_process = _posixsubprocess.fork_exec

    def fork_exec(args: Any, executables: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any) -> int:
        # No environment given: C would pass on the process' own. subprocess and multiprocessing both come through here.
        if env is None:
            env = [key + b"=" + value for key, value in own._data.items()]
        return start_process(args, executables, close_fds, pass_fds, cwd, env, *rest)

    _posixsubprocess.fork_exec = fork_exec
    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]


def _system(command: Any) -> int:
    """`os.system` with this interpreter's environment; C's passes on the process'."""
    code = subprocess.call(command, shell=True)
    return -code if code < 0 else code << 8


def set_signals(log: Callable[[str], None]) -> None:
    """Make `signal.signal` a logged no-op: a worker's signals are gunicorn's, and CPython refuses handlers here anyway.

    Apps and libraries that install one at import would not load otherwise. As the real one does, it returns the handler that was set
    before, as far as this interpreter was told.
    """
    told: dict[int, Any] = {}

    def ignore(signalnum: int, handler: Any) -> Any:
        if signalnum not in told:
            log(f"signal.signal({signal.Signals(signalnum).name}) has no effect: a worker's signals are gunicorn's")
        previous = told.get(signalnum, signal.getsignal(signalnum))
        told[signalnum] = handler
        return previous

    signal.signal = ignore


def set_path(pythonpath: Iterable[str], venv: str | None, host_site: Iterable[str]) -> None:
    """Build `sys.path` anew: the mount's folders, the standard library, then its venv's site-packages or the host's.

    Args:
        pythonpath: absolute folders, first come first.
        venv: an environment made by `venv` or `virtualenv` for this Python version; its `.pth` files run, as in its own interpreter.
        host_site: the site-packages folders of gunicorn's environment; left out where there is a venv.
    """
    host_site = [os.path.realpath(folder) for folder in host_site]
    if venv is None:
        rest = [folder for folder in sys.path if folder and not _is_script_folder(folder)]
    else:
        rest = [folder for folder in sys.path if folder and not _inside(folder, host_site) and not _is_script_folder(folder)]
        _forget_host_modules(host_site)
    sys.path[:] = list(dict.fromkeys([*pythonpath, *rest]))
    if venv is not None:
        _enter_venv(venv)
    sys.path_importer_cache.clear()


def _is_script_folder(folder: str) -> bool:
    """Whether CPython put it on the path because the `gunicorn` script lies there."""
    return folder == os.path.dirname(os.path.abspath(sys.argv[0] or "."))


def _inside(path: str, folders: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _forget_host_modules(host_site: list[str]) -> None:
    """Undo what the host's `.pth` files did when this interpreter was made: modules they imported, import hooks they installed."""
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if origin and name.partition(".")[0] not in ("isowsgi", "gunicorn") and _inside(origin, host_site):
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ == "PinnedFinder" or _is_importlibs(finder)]


def _is_importlibs(finder: Any) -> bool:
    return str(getattr(finder, "__module__", "")).startswith(("_frozen_importlib", "importlib"))


def _enter_venv(venv: str) -> None:
    """Do what `site` does at the start of the venv's own interpreter."""
    base = [sys.base_prefix, sys.base_exec_prefix]
    sys.prefix = sys.exec_prefix = venv
    sys.executable = os.path.join(venv, "bin", "python")
    os.environ["VIRTUAL_ENV"] = venv
    with open(os.path.join(venv, "pyvenv.cfg"), encoding="utf-8") as file:
        options = dict(line.lower().replace(" ", "").strip().split("=", 1) for line in file if "=" in line)
    site.PREFIXES = [venv]
    if options.get("include-system-site-packages") == "true":
        site.PREFIXES = [venv, *dict.fromkeys(base)]
    known = {os.path.normcase(os.path.abspath(folder)) for folder in sys.path}
    site.addsitepackages(known, site.PREFIXES)
    site.execsitecustomize()
