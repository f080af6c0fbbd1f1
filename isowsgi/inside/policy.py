"""A mount's policy: what its app does to the whole process is logged with its stack, or refused.

Imported only where a mount has one, for the hook is called for each audit event of the interpreter, every import and open among them.
Hooks belong to the interpreter that added them (`sys.addaudithook`): this one hears of no neighbour's calls, and nothing takes it out
again. Functions that raise no event are replaced in their modules before the app's code runs; whoever has a way around its module
(ctypes, an extension module) has one around that.

What is judged is all that is done in the interpreter but for a few calls of isowsgi's own, each in a function that is named here. A frame
of isowsgi's says nothing otherwise: it calls `close`, exit functions and finalizers, which may be functions in C that the app has left
there, without a frame of their own. What a forked child does is not judged: it is another process.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import CodeType, FrameType, ModuleType
from typing import Any

from isowsgi.inside import boot, ending, environment, leftovers
from isowsgi.inside.private import share, theirs
from isowsgi.inside.stacks import stack_from_app
from isowsgi.shared import cfunctions, policies, pymalloc, slices

# Lines of code that are remembered as logged, for each instance; calls from more are refused or allowed without a word.
MAX_PLACES = 100

# Longest argument that is shown.
_MAX_SHOWN_CHARS = 100

_LIBRARY = os.path.dirname(os.__file__) + os.sep
_SITE = os.path.join(_LIBRARY, "site-packages") + os.sep

# Functions of this folder stand in for the library's.
_STAND_INS = (environment.__file__, __file__)

# Which of isowsgi's functions do what a policy is about.
_OWN_CALLS: dict[CodeType, str] = {
    cfunctions.load_ctypes.__code__: "ctypes",
    cfunctions.make_memory_functions.__code__: "ctypes",
    cfunctions.make_system_call.__code__: "ctypes",
    pymalloc.bytes_in_use.__code__: "ctypes",
    ending.set_async_exception.__code__: "ctypes",
    slices.change.__code__: "ctypes",
    boot.end_process.__code__: "exit",
    leftovers._end_helper.__code__: "kill",
}

# And a module, all of which looks into C variables by ctypes, in trials only; not imported here, for most instances never do.
_SURVEY = os.path.join(os.path.dirname(__file__), "survey.py")

# Modules that have a function, where that is not only the one that it is named after.
_MODULES = {"os": ("posix", "os"), "signal": ("_signal", "signal"), "locale": ("_locale", "locale")}

# Which arguments are shown, if not the first alone: not commands and environments, in which there may be passwords.
_SHOWN = {
    "os.kill": slice(2),
    "os.killpg": slice(2),
    "resource.setrlimit": slice(2),
    "resource.prlimit": slice(3),
    "signal.pthread_kill": slice(2),
    "socket.bind": slice(1, 2),
    "ctypes.dlsym": slice(1, 2),
    "ctypes.dlsym/handle": slice(1, 2),
    "locale.setlocale": slice(2),
    "os.system": slice(0),
    "_posixsubprocess.fork_exec": slice(0),
}


class PolicyError(PermissionError):
    """A call that the policy of the app's mount denies."""


def _is_for_worker(pid: int, number: int = 1) -> bool:
    """Whether a signal, or a limit, is for more than a process that the app started: subprocess sends signals to those."""
    return number != 0 and (pid <= 0 or pid in (os.getpid(), os.getppid()))


def _is_set(*args: object) -> bool:
    """Whether a function that asks without a second argument was given one."""
    return len(args) > 1 and args[1] is not None


# Calls that do something to the process only with some arguments.
_IS_MEANT: dict[str, Callable[..., bool]] = {
    "os.kill": _is_for_worker,
    "os.killpg": lambda group, number: number != 0,
    "resource.prlimit": lambda pid, resource, limits: limits is not None and _is_for_worker(pid),
    "locale.setlocale": _is_set,
    "locale.textdomain": lambda *args: args != (None,),
    "locale.bindtextdomain": _is_set,
    "locale.bind_textdomain_codeset": _is_set,
    "ctypes.dlopen": lambda name: name is not None,  # `import ctypes` opens the process itself
}


def install(rules: Mapping[str, str], name: str, log: Any) -> None:
    """Judge what is done in this interpreter from now on; call it once, before any code of the app's.

    Args:
        rules: "warn" or "deny" by word, see `policies`; words that are not there are allowed.
        name: of the mount, or of its group.
        log: the instance's.
    """
    share(PolicyError)
    judge = _Judge(rules, name, log)
    judged = {event: word for event, word in policies.EVENTS.items() if word in rules}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in judged:
            judge(event, judged[event], args, sys._getframe(1))

    if judged:
        sys.addaudithook(hook)
    if "deny" in rules.values():
        _refuse_interpreters(name)
    for function, word in policies.FUNCTIONS.items():
        if word in rules:
            _replace(function, word, judge)


def _refuse_interpreters(name: str) -> None:
    """Keep the app from making interpreters: in one of them, `InterpreterPoolExecutor`'s among them, nothing would be judged."""
    try:
        module = theirs("_interpreters")
    except ImportError:  # before 3.13 there is no way to them but a private one
        return

    def create(*args: object, **options: object) -> object:
        raise PolicyError(errno.EPERM, f"{name}: an interpreter of the app's own is refused, for no policy would hold in it")

    module.create = create


def _replace(function: str, word: str, judge: _Judge) -> None:
    """Put something that asks first in the place of a function, wherever modules of the standard library have it."""
    home, _, attribute = function.partition(".")
    names = _MODULES.get(home, (home,))
    # Not those that are not imported yet: they will take what they find in the first one.
    present = theirs("sys").modules
    modules: list[ModuleType] = [theirs(names[0]), *(present[name] for name in names[1:] if name in present)]
    original = getattr(modules[0], attribute, None)
    if original is None:
        return

    @functools.wraps(original)
    def ask_first(*args: Any, **options: Any) -> Any:
        judge(function, word, args, sys._getframe(1))
        return original(*args, **options)

    for module in modules:
        for name, value in list(vars(module).items()):
            if value is original:
                setattr(module, name, ask_first)


class _Judge:
    """Called with what the app is about to do, in the thread that does it; any thread may."""

    def __init__(self, rules: Mapping[str, str], name: str, log: Any) -> None:
        self._rules = rules
        self._name = name
        self._log = log
        self._pid = os.getpid()
        self._places: dict[tuple[str, str, int] | None, object] = {}
        self._busy = threading.local()

    def __call__(self, call: str, word: str, args: tuple[Any, ...], frame: FrameType) -> None:
        is_meant = _IS_MEANT.get(call)
        if is_meant is not None and not is_meant(*args):
            return
        culprit = _culprit(frame)
        if os.getpid() != self._pid or _is_own(culprit.f_code, word):
            return
        rule, text = self._rules[word], _text(call, args)
        is_logging = getattr(self._busy, "logging", False)
        if not is_logging and self._is_news((word, culprit.f_code.co_filename, culprit.f_lineno)):
            self._busy.logging = True  # a handler of the log may do what the policy is about
            try:
                told = '%s is called: policy %s = "warn"\n%s' if rule == "warn" else '%s is refused: policy %s = "deny"\n%s'
                self._log.warning(told, text, word, stack_from_app(frame))
            finally:
                self._busy.logging = False
        if rule == "deny":
            way_out = f'set it to "warn" or "allow" in the config file if {self._name} must do this'
            raise PolicyError(errno.EPERM, f'{self._name}: {text} is refused by policy {word} = "deny"; {way_out}')

    def _is_news(self, place: tuple[str, str, int]) -> bool:
        """Whether a place in the code must be logged now; True once for each."""
        mine = object()
        if len(self._places) < MAX_PLACES:
            return self._places.setdefault(place, mine) is mine  # atomic, so one of several threads has it
        if self._places.setdefault(None, mine) is mine:
            self._log.warning("its policy applied at %d places in the code; further places are not logged", MAX_PLACES)
        return False


def _culprit(frame: FrameType) -> FrameType:
    """Return the innermost frame outside the standard library; the innermost of all if there is none."""
    found: FrameType | None = frame
    while found is not None and _is_librarys(found.f_code.co_filename):
        found = found.f_back
    return found or frame


def _is_own(code: CodeType, word: str) -> bool:
    return _OWN_CALLS.get(code) == word or (word == "ctypes" and code.co_filename == _SURVEY)


def _is_librarys(file: str) -> bool:
    return (file.startswith(_LIBRARY) and not file.startswith(_SITE)) or file.startswith("<frozen ") or file in _STAND_INS


def _text(call: str, args: tuple[Any, ...]) -> str:
    part = _SHOWN.get(call, slice(1))
    texts = [text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..." for text in map(repr, args[part])]
    if part.stop < len(args):
        texts.append("...")
    return f"{call}({', '.join(texts)})"
