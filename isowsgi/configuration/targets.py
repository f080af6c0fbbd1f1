"""Checks of what names code: an app by gunicorn's `module:attribute` or as a script of mod_wsgi's, a module, a hook."""

from __future__ import annotations

import ast
import keyword
import os
from typing import Any

from isowsgi.configuration import tenants
from isowsgi.configuration.checks import typed
from isowsgi.configuration.faults import Fault, spelt
from isowsgi.configuration.places import path_of
from isowsgi.configuration.values import SCRIPT_SUFFIXES, App


def app(value: Any, *, folder: str) -> App:
    """Read "module", "module:name", "module:factory('x', debug=True)", "path.wsgi" or "path.wsgi:name"."""
    target, colon, call = typed(str, value).partition(":")
    if not target:
        raise Fault(f"expected an app, as in 'shop.wsgi:application' or 'shop/app.wsgi', got {spelt(value)}")
    call = _call(call, value) if colon else "application"
    # "shop.wsgi:application" is the attribute of a module, "shop.wsgi" alone a file: only a slash makes a file of the former.
    if "/" in target or (not colon and target.endswith(SCRIPT_SUFFIXES)):
        path, shown = path_of(target, folder)
        if not os.path.isfile(path) and tenants.PLACE not in target:
            module = "" if "/" in target else f"; for the module write {target + ':application'!r}"
            raise Fault(f"expected an existing script file, got {shown}{module}")
        return App(kind="script", target=path, call=call)
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in target.split(".")):
        raise Fault(f"expected a dotted module name, got {spelt(target)}; a path to a script holds a slash")
    return App(kind="module", target=target, call=call)


def module(value: Any) -> str:
    """Check the dotted name of a module."""
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in typed(str, value).split(".")):
        raise Fault(f"expected a module's name such as 'sqlalchemy.orm', got {spelt(value)}")
    return typed(str, value)


def hook(value: Any) -> str:
    """Check an import string of a function."""
    module, _, function = typed(str, value).partition(":")
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in (*module.split("."), function)):
        raise Fault(f"expected 'module:function', got {spelt(value)}")
    return typed(str, value)


def _call(call: str, app: str) -> str:
    """Check what stands after the colon as gunicorn does at run time: a name, or a call of a name with literal arguments."""
    wrong = Fault(f"expected a name or a call with literal arguments after ':', as in create_app(debug=True), got {spelt(app)}")
    try:
        expression = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise wrong from None
    if isinstance(expression, ast.Name):
        return call
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise wrong
    for argument in [*expression.args, *(word.value for word in expression.keywords)]:
        try:
            ast.literal_eval(argument)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            source = ast.get_source_segment(call, argument)
            raise Fault(f"expected literal arguments, got {source!r} in {spelt(app)}; compute it inside the factory") from None
    if any(word.arg is None for word in expression.keywords):
        raise wrong
    return call
