"""Lazy imports (PEP 810, Python 3.15): what an app imports is loaded when it is used first.

The mode and the filter belong to the interpreter. They are set when all that serves has been loaded, and before anything of the app is.
There is one filter: that of `bootstrap`, by which modules of our own stay as they are, is part of it. On older releases nothing happens;
the log says so when gunicorn starts.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any


def install(mode: str | None, eager: Collection[str]) -> None:
    """Set the mode of this interpreter, and which imports are not put off.

    Args:
        mode: "all" or "normal", as `sys.set_lazy_imports` takes it; None: it stays as it is.
        eager: modules and packages whose imports, also of what is below them, are carried out where they stand.
    """
    own_sys: Any = sys
    if not hasattr(own_sys, "set_lazy_imports"):
        return
    if eager:
        inner = own_sys.get_lazy_imports_filter()
        names = tuple(eager)

        def may_wait(importer: str, name: str, members: Any = None) -> bool:
            if inner is not None and not inner(importer, name, members):
                return False
            # `from shop import signals`, and `from . import signals` in it, name the package; the module is a member.
            return not any(_is_below(each, names) for each in (name, *(f"{name}.{member}" for member in members or ())))

        own_sys.set_lazy_imports_filter(may_wait)
    if mode is not None:
        own_sys.set_lazy_imports(mode)


def _is_below(name: str, tops: tuple[str, ...]) -> bool:
    return name.startswith(tops) and any(name == top or name.startswith(top + ".") for top in tops)
