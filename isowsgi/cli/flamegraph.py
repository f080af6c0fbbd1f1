"""A profile as one HTML file that needs nothing else: a flame graph by d3-flame-graph, whose files lie in `viewer`."""

from __future__ import annotations

import html
import importlib.resources
import json
import re
from collections.abc import Mapping
from typing import Any

_VIEWER = importlib.resources.files("isowsgi.cli").joinpath("viewer")


def page(title: str, facts: str, tree: Mapping[str, Any], table: str) -> str:
    """Return the file.

    Args:
        facts: what was profiled, and how.
        tree: see `calls.nested`.
        table: HTML of the lines that took longest.
    """
    parts = {
        "title": html.escape(title),
        "facts": html.escape(facts),
        "style": _file("d3-flamegraph.css"),
        "scripts": f"{_file('d3-selection.min.js')}\n{_file('d3-flamegraph.min.js')}",
        # Nothing in it ends the script, whatever an app calls its functions.
        "tree": json.dumps(tree, separators=(",", ":")).replace("<", "\\u003c"),
        "table": table,
    }
    return re.sub(r"@([a-z]+)@", lambda found: parts[found[1]], _file("page.html"))


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table; its last column takes what room there is."""
    cells = "".join(f"<th scope='col'>{html.escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f"<h2>{html.escape(title)}</h2><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _file(name: str) -> str:
    return _VIEWER.joinpath(name).read_text(encoding="utf-8")
