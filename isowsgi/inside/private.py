"""Private copies of modules: what serves an app uses these, which the app cannot reach.

An app may change any module of its interpreter: gevent patches `socket` and `threading`, freezegun `time`, PySocks' recipe replaces
`socket.socket`, others wrap `json`. What serves must not notice. So the modules that serve are not in the app's `sys.modules`: they lie in
a table here, and what they import comes from it, late imports included.

* `isowsgi`, `gunicorn` and the modules of `OWN` are executed a second time for us: what their functions look up is ours too.
* Of every other module we have a snapshot, made before the app is loaded: a module with the same contents. Functions in it that are
  written in Python look things up in the app's module, so what serves may call only those in C; or it belongs into `OWN`.
* What is imported and hardly ever used has a stand-in, as each mount pays for it in time and memory.

`import os` in our modules is ours, `theirs("os")` is the app's: for what prepares the app's modules, as `environment` does.

A mount with `isolation = "main"` has none of this: there the app shares the modules of the worker itself.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from importlib.machinery import FrozenImporter, ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec, resolve_name
from types import CodeType, FunctionType, ModuleType

TYPE_CHECKING = False  # as typing's, without the 2 ms of importing typing
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

# Modules of the standard library that are called while requests are served and are written in Python, packages with all that is in them.
# `make patch-fuzz` says what is missing. Together they take 0.3 MiB beside an app that has them all itself.
OWN = frozenset((
    "_weakrefset", "ast", "genericpath", "ipaddress", "json", "linecache", "logging", "os", "posixpath", "stat", "textwrap",
    "threading", "tokenize", "traceback", "urllib",
))  # fmt: skip

# Its functions are made a second time, over the snapshot. It cannot be executed twice: its flags would be put into the app's `re`.
_OWN_FUNCTIONS = frozenset(("re",))

# What gunicorn's modules import and nothing that serves calls: loaded when one of its names is used. In an app that has no use for
# them either, they would take 1.5 MiB.
_SELDOM_USED = frozenset(("email.utils", "html", "importlib.metadata", "inspect", "random", "ssl"))

# Of gunicorn's class of workers an instance uses one function, its map from exceptions to answers. What the class itself would use stays
# out: with `tempfile`, `platform` and what else it imports, each mount took 1.5 MiB more.
_OF_WORKERS = {
    "gunicorn.reloader": ("reloader_engines",),
    "gunicorn.workers.workertmp": ("WorkerTmp",),
    "random": ("randint",),
}

# Functions of our `logging` that a few of gunicorn's settings of logs need, all before the app is loaded: `logging` is made whole then.
# With `pickle` and `socketserver` the two modules took a tenth of the imports of an instance.
_LATE_LOGGING = ("dictConfig", "fileConfig")


class Table:
    """Our modules by name.

    Args:
        folders: of the packages that are ours and lie in site-packages, by name.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = folders
        self._builtins = {**vars(builtins), "__import__": self._import}
        if hasattr(builtins, "__lazy_import__"):  # PEP 810, 3.15: what serves is not imported when the first request needs it
            self._builtins["__lazy_import__"] = self._import
        self.modules: dict[str, ModuleType] = {}
        for module, changed in ((sys, {"modules": self.modules}), (builtins, self._builtins)):
            self.modules[module.__name__] = _snapshot(module, changed)
        own = self.modules[__name__] = ModuleType(__name__)
        vars(own).update(globals())

    def load(self, name: str) -> ModuleType:
        """Return a module; make it if it is not there yet. By one thread at a time, as what is loaded late has nothing that runs then."""
        parent, _, last = name.rpartition(".")
        if parent and name not in self.modules:
            self.load(parent)
        module = self.modules.get(name)  # the parent may have made it: os.path
        if module is None:
            module = self._make(name, parent)
        if parent:
            setattr(self.modules[parent], last, module)
        return module

    def _make(self, name: str, parent: str) -> ModuleType:
        top = name.partition(".")[0]
        if name == "logging.config":
            module = self._late_logging()
        elif name not in _OF_WORKERS and (top in self._folders or top in OWN):
            return self._execute(name, parent)
        elif name == "_colorize":
            module = _no_colours()
        else:
            module = _on_demand(name) if name in _SELDOM_USED or name in _OF_WORKERS else _snapshot(importlib.import_module(name))
        self.modules[name] = module
        return module

    def _late_logging(self) -> ModuleType:
        """Return a stand-in for `logging.config`; the real one, and `logging.handlers`, are executed when they are used."""

        def late(function: str) -> Callable[..., Any]:
            return lambda *args, **options: getattr(self._execute("logging.config", "logging"), function)(*args, **options)

        def submodule(name: str) -> ModuleType:
            if name != "handlers":
                raise AttributeError(f"module 'logging' has no attribute {name!r}")
            return self.load("logging.handlers")

        vars(self.modules["logging"])["__getattr__"] = submodule
        module = ModuleType("logging.config")
        vars(module).update({name: late(name) for name in _LATE_LOGGING})
        return module

    def _execute(self, name: str, parent: str) -> ModuleType:
        spec = self._find(name, parent)
        loader: Any = spec.loader
        code = loader.get_code(name)
        if name not in sys.modules and isinstance(loader, SourceFileLoader) and name.partition(".")[0] in OWN:
            _shared.codes[name] = code
        module = self.modules[name] = module_from_spec(spec)
        vars(module)["__builtins__"] = self._builtins
        try:
            exec(code, vars(module))
        except BaseException:
            del self.modules[name]
            raise
        return module

    def _find(self, name: str, parent: str) -> ModuleSpec:
        spec = None
        if parent:
            spec = PathFinder.find_spec(name, self.modules[parent].__path__)
        elif name in self._folders:
            spec = PathFinder.find_spec(name, [self._folders[name]])
        else:
            spec = FrozenImporter.find_spec(name) or PathFinder.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> ModuleType:
        """Stand in for `__import__` in the modules of the table."""
        if level:
            name = resolve_name("." * level + name, globals["__package__"])
        module = self.load(name)
        if not fromlist:
            return self.modules[name.partition(".")[0]]
        for each in fromlist:
            if not hasattr(module, each) and hasattr(module, "__path__"):
                try:
                    self.load(f"{name}.{each}")
                except ModuleNotFoundError:
                    continue  # `from` says so
        return module


def theirs(name: str) -> Any:
    """Return the app's copy of a module; before the app is loaded, or it may be anything."""
    return importlib.import_module(name)


def share(exception: type[BaseException]) -> None:
    """Let the app import an exception that we raise: its own copy of the module would have another one, which catches nothing."""
    when_app_loads(exception.__module__, lambda module: setattr(module, exception.__name__, exception))


def when_app_loads(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call a function with the app's copy of one of our modules: now, or once the app has loaded it."""
    module = sys.modules.get(name)
    if module is not None:
        function(module)
    else:
        _shared.listeners[name] = function


class SharedCode:
    """Finds for the app what we have executed for us alone: code cannot be changed, and is most of what a module takes (0.5 MiB in all)."""

    def __init__(self) -> None:
        self.codes: dict[str, CodeType] = {}
        self.listeners: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(self, name: str, path: Any = None, target: object = None) -> ModuleSpec | None:
        code, listener = self.codes.pop(name, None), self.listeners.pop(name, None)
        spec = PathFinder.find_spec(name, path) if code is not None or listener is not None else None
        if spec is None or spec.origin is None:
            return None
        if code is not None and spec.origin != code.co_filename:
            code = None
        spec.loader = _SharedCodeLoader(name, spec.origin, code, listener)
        return spec


class _SharedCodeLoader(SourceFileLoader):
    def __init__(self, name: str, path: str, code: CodeType | None, listener: Callable[[ModuleType], None] | None) -> None:
        super().__init__(name, path)
        self._code = code
        self._listener = listener

    def get_code(self, fullname: str) -> CodeType | None:
        code, self._code = self._code, None
        return code or super().get_code(fullname)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener(module)


_shared = SharedCode()


def build(folders: Mapping[str, str]) -> Table:
    """Return a table, in an interpreter in which nothing of an app was loaded yet."""
    import threading  # noqa: F401 # the app's, before ours: both take the thread that is first to import them for the main one

    sys.meta_path.insert(0, _shared)
    return Table(folders)


def _snapshot(module: ModuleType, changed: Mapping[str, Any] | None = None) -> ModuleType:
    copy = ModuleType(module.__name__)
    vars(copy).update({**vars(module), **(changed or {})})
    if module.__name__ in _OWN_FUNCTIONS:
        for name, value in vars(module).items():
            if type(value) is FunctionType and value.__globals__ is vars(module):
                own = vars(copy)[name] = FunctionType(value.__code__, vars(copy), name, value.__defaults__, value.__closure__)
                own.__kwdefaults__ = value.__kwdefaults__
    return copy


def _on_demand(name: str) -> ModuleType:
    module = ModuleType(name)
    vars(module)["__getattr__"] = lambda attribute: getattr(importlib.import_module(name), attribute)
    vars(module).update(dict.fromkeys(_OF_WORKERS.get(name, ())))
    if name == "ssl":
        vars(module)["SSLError"] = _SSLError
    elif name == "inspect":
        vars(module)["Parameter"] = _Parameter
    elif name == "html":
        vars(module)["escape"] = _escape  # the rest is a table of 2,231 names
    return module


def _no_colours() -> ModuleType:
    """Return what `traceback` imports from 3.13 on. With `dataclasses`, `inspect` and all that it was a quarter of all imports."""
    module, plain = ModuleType("_colorize"), _NoColour()
    vars(module).update(can_colorize=lambda *, file=None: False, get_theme=lambda **options: plain, ANSIColors=plain)
    return module


class _NoColour(str):
    """A theme without colours, and each colour in it: "" in a line."""

    __slots__ = ()

    def __getattr__(self, name: str) -> _NoColour:
        return self


class _Parameter:
    """What `gunicorn.util` compares kinds of parameters with, which are numbers."""

    POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD = 0, 1


class _OfSSL(type):
    """Takes an exception for one of `ssl` without importing that, which takes 0.8 MiB: before the app has, there is none."""

    def __instancecheck__(
        cls, error: object, modules: Any = sys.modules, vars: Any = vars, isinstance: Any = isinstance, type: Any = type
    ) -> bool:
        # By what is bound here: an app may change `sys` and `builtins`.
        module = modules.get("_ssl")
        found = vars(module).get("SSLError") if module is not None else None
        return found is not None and isinstance(found, type) and isinstance(error, found)


class _SSLError(Exception, metaclass=_OfSSL):
    """What gunicorn's map from exceptions to answers compares with."""


def _escape(text: str) -> str:
    """Return text for HTML, as `html.escape` does."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;")):
        text = text.replace(character, entity)
    return text
