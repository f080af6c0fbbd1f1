"""Why an app failed to load: does its interpreter not suit it, or is it broken? Values and rules, no I/O.

A *refusal* is about the isolation: the same app loads with another. A *broken* app loads nowhere, so its own traceback is all there is to
say. What is neither for certain is *unclear*, and only a trial elsewhere can settle it (see `decision`).

Packages often wrap a refusal in an error of their own ("Error importing numpy: you should not try to ..."), so the whole chain of
exceptions is looked at, not the last line. Kept small: the interpreters of apps import it.
"""

from __future__ import annotations

import re

OWN_GIL = "own-gil"  # the isolation, as in `interpreters`, which apps' interpreters do not import

# Kinds of failure. All but the last two are refusals. A crash is none of them: it has no error, and `decision` settles it elsewhere.
REFUSES_OWN_GIL = "refuses an own GIL"
ONCE = "loads once per process"
MAIN_ONLY = "loads in the main interpreter only"
NO_FORK = "forks"
NO_DAEMON = "starts daemon threads"
NO_STDLIB = "needs a part of the standard library that refuses an own GIL"
BROKEN = "broken"
UNCLEAR = "unclear"

REFUSALS = frozenset({REFUSES_OWN_GIL, ONCE, MAIN_ONLY, NO_FORK, NO_DAEMON, NO_STDLIB})

# What is said where a refusal is, in the words of those who say it. The earlier one wins where a chain of exceptions has several.
_SIGNS: tuple[tuple[str, str], ...] = (
    # CPython 3.13+ runs the init of single-phase modules in the main interpreter first, where it must not fail (gh-117953).
    (MAIN_ONLY, r"failed to import from subinterpreter due to exception"),
    # 3.13.0 passes on what the init function met there (cffi's: its own backend is missing), so `inside.extensions` adds to that.
    (MAIN_ONLY, r"its init function ran in the main interpreter"),
    (ONCE, r"cannot load module more than once per process"),  # numpy
    (ONCE, r"module \S+ can only be loaded once per process"),  # CPython's own _curses
    (ONCE, r"PyO3 modules do not yet support subinterpreters"),
    (ONCE, r"PyO3 modules compiled for CPython 3\.8 or older may only be initialized once per interpreter process"),
    (ONCE, r"Interpreter change detected"),  # Cython, mypyc
    (ONCE, r"_abc_impl is set to a wrong type"),  # PyO3's rpds: an abstract base class of another interpreter
    # The modules of the standard library that CPython 3.12 does not load with an own GIL, and what zoneinfo and Django make of it.
    (NO_STDLIB, r"module (?:_ctypes|_datetime|_decimal|_elementtree|pyexpat|_zoneinfo) does not support loading in subinterpreters"),
    (NO_STDLIB, r"module 'datetime' has no attribute 'datetime_CAPI'"),
    (REFUSES_OWN_GIL, r"module \S+ does not support loading in subinterpreters"),
    (NO_FORK, r"(?:fork|exec|preexec_fn) not supported (?:for isolated|within) subinterpreters"),
    (NO_FORK, r"an app in a subinterpreter cannot fork|exec would replace the worker"),  # inside/forks.py
    (NO_DAEMON, r"daemon threads are disabled in this interpreter"),
    (NO_DAEMON, r"thread is not supported for isolated subinterpreters"),
)  # fmt: skip

# A worker without descriptors (EMFILE, ENFILE) or threads; an interpreter cannot be made for little else, and does not say why.
_LACK = re.compile(r"\[Errno 2[34]\]|Too many open files|can't start new thread|InterpreterError: interpreter creation failed")

_REFUSED_MODULE = re.compile(r"module (\S+) does not support loading in subinterpreters")

# Exceptions that an app raises with every isolation. Not WarmUpError: the warm-up request may have met a refusal that the app turned into a
# 500. Not ImportError: a package may say so of what it could not load here.
_BROKEN_ERRORS = re.compile(
    r"(?:\w+\.)*(?:SyntaxError|IndentationError|TabError)\b"
    r"|(?:\w+\.)*ModuleNotFoundError: No module named '"  # a module hidden by us: "import of x halted; None in sys.modules"
    r"|(?:\w+\.)*AppImportError\b"  # gunicorn's: no such attribute, not callable, wrong arguments of a factory
    r"|isowsgi\.inside\.policy\.PolicyError\b"  # the mount has its policy with every isolation
)


class Failure:
    """What an error and its traceback come to.

    Attributes:
        kind: one of this module's kinds.
        module: the extension module that refused, where the error names it; else "".
        line: what was said, in one line: the refusal itself rather than what a package made of it.
    """

    __slots__ = ("kind", "line", "module")

    def __init__(self, kind: str, module: str, line: str) -> None:
        self.kind = kind
        self.module = module
        self.line = line

    @property
    def is_refusal(self) -> bool:
        return self.kind in REFUSALS


def classify(error: str, traceback: str = "") -> Failure:
    """Tell a refusal from a broken app.

    Args:
        error: one line, `Type: text`, as reported with "failed".
        traceback: the whole chain, as the traceback module writes it.
    """
    text = f"{traceback}\n{error}"
    for kind, sign in _SIGNS:
        found = re.search(f"^.*(?:{sign}).*$", text, re.MULTILINE)
        if found:
            line = found[0].strip()
            named = _REFUSED_MODULE.search(line)
            return Failure(kind, named[1] if named else "", line)
    first = next((line.strip() for line in error.splitlines() if line.strip()), "")
    return Failure(BROKEN if _BROKEN_ERRORS.match(error) else UNCLEAR, "", first)


def is_lack(text: str) -> bool:
    """Whether an app could not be loaded because its process had no descriptor or thread left just then."""
    return _LACK.search(text) is not None


def is_refusal(text: str) -> bool:
    """Whether an error's text is a refusal; for the interpreters of apps."""
    return classify(text).is_refusal


def hint(failure: str, isolation: str) -> str:
    """Return what to do about a refused extension module, to go behind the error; "" where nobody can say.

    Args:
        failure: the error with its traceback.
        isolation: where it failed.
    """
    kind = classify(failure).kind
    if kind == MAIN_ONLY:
        return '; an extension module of this app works in no subinterpreter; set isolation = "process" for this mount'
    if kind in (REFUSES_OWN_GIL, NO_STDLIB) and isolation == OWN_GIL:
        return '; set isolation = "shared-gil" for this mount'
    if kind == ONCE:
        return '; one installed copy of it serves one interpreter only: set isolation = "process" for this mount'
    return ""
