"""What an app finds around it: its path and venv, its environment variables, arguments and signals.

All of these belong to the process, or are copied from it when an interpreter is made. Each function here gives the interpreter one of
its own, before any of the app's code runs.
"""

from __future__ import annotations

import os as own_os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from isowsgi.inside import forks
from isowsgi.inside.private import theirs
from isowsgi.shared import releases

# The app's modules, not ours: see `private`.
_posixsubprocess = theirs("_posixsubprocess")
_thread = theirs("_thread")
os = theirs("os")
signal = theirs("signal")
site = theirs("site")
sys = theirs("sys")
threading = theirs("threading")


class PrivateEnviron(os._Environ):  # type: ignore[name-defined,misc] # the app's `os` is known at run time only
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


def update_environ(values: Mapping[str, str]) -> None:
    """Add the mount's variables to the environment of this process, which is the app's alone."""
    os.environ.update(values)
    _copy_environ(os.environ)


def _copy_environ(environ: Mapping[str, str]) -> None:
    """Let those who serve see the app's variables of now: gunicorn looks for SCRIPT_NAME at each request."""
    if own_os is not os:  # else there is only one
        own_os.environ = dict(environ)  # type: ignore[assignment]


def set_environ(values: Mapping[str, str]) -> None:
    """Give this interpreter its own `os.environ`: the process' variables and the mount's; child processes get it too."""
    text: Any = os.environ
    octets: Any = os.environb
    own = PrivateEnviron(dict(text._data), *_codecs_of(text))
    own.update(values)

    def put(key: Any, value: Any) -> None:
        own[os.fsdecode(key)] = os.fsdecode(value)

    def unset(key: Any) -> None:
        own.pop(os.fsdecode(key), None)

    os.environ = own  # noqa: B003 # the process' own environment is what must stay as it is
    _copy_environ(own)
    os.environb = PrivateEnviron(own._data, *_codecs_of(octets))
    os.putenv = put
    os.unsetenv = unset
    if hasattr(os, "reload_environ"):  # 3.14+; it would bring the process' variables back
        os.reload_environ = lambda: None
    os.system = _system

    start_process = _posixsubprocess.fork_exec

    def fork_exec(args: Any, executables: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *rest: Any) -> Any:
        # No environment given: C would pass on the process' own. subprocess and multiprocessing both come through here.
        if env is None:
            env = [key + b"=" + value for key, value in own._data.items()]
        return start_process(args, executables, close_fds, pass_fds, cwd, env, *rest)

    _posixsubprocess.fork_exec = fork_exec
    if "subprocess" in sys.modules:  # else it takes this one when it is imported; that costs a mount 0.3 MiB, so it is left to the app
        sys.modules["subprocess"]._fork_exec = fork_exec

    def with_own_environ(spawn: Callable[..., int]) -> Callable[..., int]:
        # As above: subprocess comes this way from 3.13 on for an executable with a folder, and so for shell=True.
        def call(path: Any, argv: Any, env: Any, **options: Any) -> int:
            return spawn(path, argv, own._data if env is None else env, **options)

        return call

    os.posix_spawn = with_own_environ(os.posix_spawn)
    os.posix_spawnp = with_own_environ(os.posix_spawnp)


def guard_new_interpreters(package_folder: str) -> None:
    """Give interpreters that the app makes its own environment, as child processes have it, and not the process'.

    `InterpreterPoolExecutor` (3.14+) makes them. Their `os.environ` would write through to the process.

    Args:
        package_folder: in which `isowsgi` lies.
    """
    try:
        module = theirs("_interpreters")
    except ImportError:  # before 3.13 there is no way to them but a private one
        return
    make, run = module.create, module.run_string

    def create(*args: Any, **options: Any) -> Any:
        made = make(*args, **options)
        values = {name.decode("latin-1"): value.decode("latin-1") for name, value in os.environ._data.items()}
        failure = run(made, _PRELUDE.format(folder=package_folder, values=values))
        if failure is not None:
            module.destroy(made)
            raise RuntimeError(f"cannot prepare an interpreter: {failure}")
        return made

    module.create = create


# Run in an interpreter that an app makes. It leaves nothing in its `__main__`.
_PRELUDE = """
def prepare():
    import sys
    sys.path.insert(0, {folder!r})
    try:
        from isowsgi.inside import environment
    finally:
        sys.path.remove({folder!r})
    environment.inherit({values!r}, {folder!r})
prepare()
del prepare
"""


def inherit(values: Mapping[str, str], package_folder: str) -> None:
    """Give this interpreter the environment of the one that made it, byte by byte, and nothing of the process'."""
    os.environ = PrivateEnviron({}, *_codecs_of(os.environ))  # noqa: B003 # as in set_environ
    os.environ._data.update({name.encode("latin-1"): value.encode("latin-1") for name, value in values.items()})
    set_environ({})
    forks.refuse()
    guard_new_interpreters(package_folder)


def _codecs_of(environ: Any) -> tuple[Any, ...]:
    return environ.encodekey, environ.decodekey, environ.encodevalue, environ.decodevalue


def _system(command: Any) -> int:
    """`os.system` with this interpreter's environment; C's passes on the process'."""
    code: int = theirs("subprocess").call(command, shell=True, close_fds=False)  # C's passes on every inheritable descriptor
    return -code if code < 0 else code << 8


# Our own in `sys.meta_path`, by their class: `bootstrap`'s, `pace`'s and `private`'s.
_OWN_FINDERS = ("PinnedFinder", "Pacer", "SharedCode")

# What Python sets at the start of a process; all else is SIG_DFL.
_HANDLERS_AT_START = {signal.SIGINT: signal.default_int_handler, signal.SIGPIPE: signal.SIG_IGN, signal.SIGXFSZ: signal.SIG_IGN}


def set_signals(log: Callable[[str], None]) -> None:
    """Make `signal.signal` a logged no-op: a worker's signals are gunicorn's, and CPython refuses handlers here anyway.

    Apps and libraries that install one at import would not load otherwise. As the real one does, it returns the handler that was set
    before, as far as this interpreter was told: never gunicorn's, which is an object of another interpreter. The timers do nothing
    either: without a handler their signals end the process.
    """
    told: dict[int, Any] = {}
    said: set[str] = set()

    def say_once(call: str, reason: str) -> None:
        if call not in said:
            said.add(call)
            log(f"{call} has no effect: {reason}")

    def ignore(signalnum: int, handler: Any) -> Any:
        previous = current(signalnum)
        name = signal.Signals(signalnum).name if signalnum in list(signal.Signals) else str(signalnum)
        say_once(f"signal.signal({name})", "gunicorn handles a worker's signals")
        told[signalnum] = handler
        return previous

    def current(signalnum: int) -> Any:
        if signalnum not in signal.valid_signals():
            raise ValueError("signal number out of range")
        return told.get(signalnum, _HANDLERS_AT_START.get(signalnum, signal.SIG_DFL))

    def alarm(seconds: int) -> int:
        if seconds:
            say_once("signal.alarm", "its signal would end the worker with all its mounts")
        return 0

    def setitimer(which: int, seconds: float, interval: float = 0.0) -> tuple[float, float]:
        if seconds:
            say_once("signal.setitimer", "its signal would end the worker with all its mounts")
        return 0.0, 0.0

    def interrupt_main(signum: int = signal.SIGINT) -> None:
        say_once("_thread.interrupt_main", "it would end the worker with all its mounts")

    signal.signal, signal.getsignal, signal.alarm, signal.setitimer = ignore, current, alarm, setitimer
    _thread.interrupt_main = interrupt_main


def be_main_thread_while_loading() -> Callable[[], None]:
    """Have the calling thread pass for the main thread, which loads apps everywhere else; call what is returned once that is done.

    Apps and libraries call `asyncio.get_event_loop()` at import, see `releases.MAIN_THREAD_HAS_A_LOOP`.
    """
    loader, real = threading.current_thread(), threading.main_thread
    is_loading = True

    def main_thread() -> Any:
        return loader if is_loading and threading.current_thread() is loader else real()

    def end() -> None:
        nonlocal is_loading
        is_loading = False
        if threading.main_thread is main_thread:  # else another instance's, or the app's, came since, and asks this one
            threading.main_thread = real

    if releases.MAIN_THREAD_HAS_A_LOOP:
        threading.main_thread = main_thread
    return end


# Packages that make the standard library's threads, locks and sockets green: the module and its variable that say what was replaced so far,
# and another way to run such an app, if gunicorn has one.
_GREEN = (
    ("gevent", "gevent.monkey._state", "saved", ", or run this app with gunicorn's gevent worker"),
    ("eventlet", "eventlet.patcher", "already_patched", ""),
)


def green_threads() -> str:
    """Say what to do where an app has made the standard library's threads green, to go behind an error; "" if it has not."""
    for package, module, variable, elsewhere in _GREEN:
        if getattr(sys.modules.get(module), variable, None):
            return (
                f"; {package} patched the standard library while the app was loaded, but isowsgi serves requests in threads of its own,"
                f" where that does not work: remove the call that patches{elsewhere}"
            )
    return ""


def extend_path(pythonpath: Iterable[str]) -> None:
    """Put folders in front of `sys.path`; for the main interpreter, whose path is gunicorn's too."""
    sys.path[:] = list(dict.fromkeys([*pythonpath, *sys.path]))
    sys.path_importer_cache.clear()


def enter_folder(path: str) -> None:
    """Make a folder the working directory of this process, which is one app's alone: what it inherits may be where a neighbour went.

    Stays where it is if the folder is gone or closed to this user.
    """
    try:
        os.chdir(path)
    except OSError:
        return


def set_path(pythonpath: Iterable[str], venv: str | None, host_site: Iterable[str], start_folder: str) -> None:
    """Build `sys.path` from scratch: the mount's folders, the standard library, then its venv's site-packages or the host's.

    Args:
        pythonpath: absolute folders, first come first.
        venv: an environment made by `venv` or `virtualenv` for this Python version; its `.pth` files run, as in its own interpreter.
        host_site: the site-packages folders of gunicorn's environment; left out where there is a venv.
        start_folder: the working directory before any app could change it. Nothing here asks for that of now, which may be deleted.
    """
    host_site = [os.path.realpath(folder) for folder in host_site]
    rest = [folder for folder in sys.path if os.path.isabs(folder) and folder != _script_folder(start_folder)]
    if venv is not None:
        rest = [folder for folder in rest if not _inside(folder, host_site)]
        _forget_host_modules(host_site)
    sys.path[:] = list(dict.fromkeys([*pythonpath, *rest]))
    if venv is not None:
        _enter_venv(venv)
    sys.path_importer_cache.clear()


def _script_folder(start_folder: str) -> str | None:
    """Return the folder that CPython put on the path because the `gunicorn` script lies there; None in a process of an app."""
    if sys.argv[0] == "-c":
        return None
    return str(os.path.dirname(os.path.normpath(os.path.join(start_folder, sys.argv[0] or "."))))


def _inside(path: str, folders: Iterable[str]) -> bool:
    real = os.path.realpath(path) if os.path.isabs(path) else ""  # else it would look for the working directory
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _forget_host_modules(host_site: list[str]) -> None:
    """Undo what the host's `.pth` files did when this interpreter was made: modules they imported, import hooks they installed."""
    for name, module in list(sys.modules.items()):
        origin = file_of(module)
        if origin and name.partition(".")[0] not in ("__main__", "isowsgi", "gunicorn") and _inside(origin, host_site):
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if _is_to_stay(finder, host_site)]


def file_of(module: object) -> str | None:
    """Return the file of a module, if it has one; one that is lazy (`importlib.util.LazyLoader`) is not loaded by that."""
    try:
        file = object.__getattribute__(module, "__dict__").get("__file__")
    except AttributeError:  # an object in the place of a module
        return None
    return file if isinstance(file, str) else None


def _is_to_stay(finder: Any, host_site: list[str]) -> bool:
    """Whether an import hook is ours, importlib's, or from a file elsewhere: a sitecustomize that PYTHONPATH leads to."""
    if type(finder).__name__ in _OWN_FINDERS or str(getattr(finder, "__module__", "")).startswith(("_frozen_importlib", "importlib")):
        return True
    find = getattr(finder if isinstance(finder, type) else type(finder), "find_spec", None)
    file = str(getattr(getattr(getattr(find, "__func__", find), "__code__", None), "co_filename", ""))
    return os.path.isabs(file) and not _inside(file, host_site)


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
    known = {os.path.normcase(os.path.normpath(folder)) for folder in sys.path}
    site.addsitepackages(known, site.PREFIXES)
    site.execsitecustomize()
