"""Which line of a template a frame executes: for profiles, as the Python below a template is the same for all of its lines.

By what Django and Jinja keep for their own error pages: the token that a node was made of, and a table in the compiled template's module.
Read without calling anything of the app's; what does not look as expected is no template.
"""

from __future__ import annotations

import os
from typing import Any

from isowsgi.shared.places import exact

_DJANGOS = os.path.join("django", "template", "base.py")

# What stands around a token, by django.template.base.TokenType; 0 and 3 are text and comments.
_BRACKETS = {1: ("{{ ", " }}"), 2: ("{% ", " %}")}

_MOST_CHARS = 100


def is_django_node(code: Any) -> bool:
    """Whether a function renders one node of a template of Django's."""
    return exact(code.co_name) == "render_annotated" and exact(code.co_filename).endswith(_DJANGOS)


def django_line(frame: Any) -> tuple[str, str, int] | None:
    """Return what stands at the line that such a function renders, the template's file, and the line; None for text between."""
    try:
        facts = object.__getattribute__(frame.f_locals["self"], "__dict__")
        token, origin = (object.__getattribute__(facts[name], "__dict__") for name in ("token", "origin"))
        text, line, file, kind = token["contents"], token["lineno"], origin["name"], token["token_type"]
        kind = object.__getattribute__(kind, "__dict__")["_value_"]
    except (AttributeError, KeyError, TypeError):
        return None
    if type(text) is not str or type(line) is not int or type(file) is not str or type(kind) is not int or kind not in _BRACKETS:
        return None
    before, after = _BRACKETS[kind]
    return f"{before}{text[:_MOST_CHARS]}{after}", file, line


def jinja_lines(names: Any) -> list[tuple[int, int]] | None:
    """Return which line of the code begins which line of a template of Jinja's, in order; None if this is no such module.

    Args:
        names: of the module.
    """
    try:
        if type(names) is not dict:  # code that `exec` runs may have a dict of the app's own kind
            return None
        table = names.get("debug_info") if "blocks" in names and "root" in names else None
        if type(table) is not str:
            return None
        pairs = (each.split("=") for each in table.split("&") if each)
        return [(int(code_line), int(line)) for line, code_line in pairs]
    except (AttributeError, TypeError, ValueError):
        return None


def jinja_line(table: list[tuple[int, int]], code_line: int) -> int:
    """Return the template's line for one of the code, as `jinja2.Template.get_corresponding_lineno` does."""
    return next((line for start, line in reversed(table) if start <= code_line), 1)
