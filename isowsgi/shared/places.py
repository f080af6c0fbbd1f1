"""Where in an app's own code something happened: "file:line in function"."""

from __future__ import annotations

import os
import re
from typing import Any

# Whose code is not the app's own: libraries, Python itself, and ours.
_LIBRARIES = (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep)
_STANDARD = os.path.dirname(os.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep

# A frame in a traceback or stack. Bounded, for the text may be anything: `\s` would take newlines too, and 64,000 of them take 5 s.
_FRAME = re.compile(r'^[ \t]{0,20}File "([^"\n]{1,1000})", line (\d{1,9})(?:, in (\S{1,200}))?', re.MULTILINE)


def place_of(trace: Any, packages: frozenset[str] = frozenset()) -> str:
    """Return the place of the innermost frame that is the app's own code, or else of the innermost frame; "" if there is none.

    Args:
        trace: a traceback.
        packages: top-level modules that are the app's own, wherever they are installed.
    """
    own = last = None
    while trace is not None:
        last = trace
        frame = trace.tb_frame
        if is_own(exact(frame.f_code.co_filename)) or _top_module(frame) in packages:
            own = trace
        trace = trace.tb_next
    found = own or last
    if found is None:
        return ""
    code = found.tb_frame.f_code
    return f"{exact(code.co_filename)}:{found.tb_lineno} in {exact(code.co_qualname)}"


def exact(text: str) -> str:
    """Return a name as a `str` itself: one of a class, function or file may be of a class of the app's, whose methods are its code."""
    return str.__getitem__(text, slice(None))


def place_in(text: str) -> str:
    """Return the same of a traceback or stack as text."""
    found = _FRAME.findall(text)
    if not found:
        return ""
    own = [frame for frame in found if is_own(frame[0])]
    file, line, function = (own or found)[-1]
    return f"{file}:{line} in {function}" if function else f"{file}:{line}"


def is_own(file: str) -> bool:
    """Whether a file is an app's own code: no library's, no part of Python, and not ours."""
    if file.startswith(("<", _OURS)) or any(folder in file for folder in _LIBRARIES):
        return False
    return not file.startswith(_STANDARD)


def _top_module(frame: Any) -> str:
    name = frame.f_globals.get("__name__")
    return name.partition(".")[0] if type(name) is str else ""
