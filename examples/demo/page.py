"""The page that every app of the demo answers with: what it runs on, read from inside its own interpreter.

Standard library only, for each app imports it in an interpreter of its own, beside whatever versions its venv holds.
"""

from __future__ import annotations

import os
import sys
import threading
from html import escape
from importlib import import_module
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# One module under two names. It is CPython's own and private, but the public one (3.14) says no more about this.
_interpreters = import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")

# Where each app of the demo is mounted, for the links at the foot of a page.
LINKS = ("/", "/flask-old/", "/flask-new/", "/django-old/", "/django-new/", "/-/isowsgi/")

NO_WORKER = "none, this is not isowsgi"  # the apps run under any WSGI server

HTML = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name</title>
<style>
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1b1f24; --dim: #626b76; --line: #e3e6ea;
  --mark: hsl($hue 65% 31%) }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1216; --card: #181c22; --text: #e8ebef; --dim: #96a0ac; --line: #2a3038; --mark: hsl($hue 75% 68%) }
}
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem;
  background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif }
main { width: min(100%, 38rem); background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--mark);
  border-radius: 10px; padding: 1.75rem 2rem; box-shadow: 0 1px 3px rgb(0 0 0 / .08) }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2 }
h1 + p { margin: .35rem 0 1.25rem; color: var(--mark); font-weight: 600 }
table { width: 100%; border-collapse: collapse }
th, td { padding: .45rem 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top }
th { width: 9rem; padding-right: 1rem; font-weight: 400; color: var(--dim) }
td { font-family: ui-monospace, monospace; font-size: .9rem; line-height: 1.65; overflow-wrap: anywhere }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin-top: 1.25rem; font-size: .925rem }
a { padding: .25rem .75rem; border: 1px solid var(--line); border-radius: 99px; color: inherit; text-decoration: none }
a:hover, a:focus-visible { border-color: var(--mark); color: var(--mark) }
a[aria-current] { border-color: var(--mark); background: var(--mark); color: var(--card) }
</style>
</head>
<body>
<main>
<h1>$name</h1>
<p>$versions</p>
<table>
$rows
</table>
<nav aria-label="Apps of this server">$links</nav>
</main>
</body>
</html>
""")


def facts(environ: Mapping[str, Any]) -> dict[str, str]:
    """Return what there is to say about the interpreter and the thread that answer a request, by label."""
    return {
        "Python": sys.version.split()[0],
        "interpreter": str(_interpreter_id()),
        "GIL": str(environ.get("isowsgi.isolation", NO_WORKER)),
        "mount": str(environ.get("isowsgi.mount", NO_WORKER)),
        "generation": str(environ.get("isowsgi.generation", NO_WORKER)),
        "process": str(os.getpid()),
        "thread": threading.current_thread().name,
        "sys.prefix": f".../{Path(sys.prefix).name}",
        "modules loaded": str(len(sys.modules)),
    }


def _interpreter_id() -> int:
    current: Any = _interpreters.get_current()
    # 3.13 and later answer (id, whence); before, an InterpreterID.
    return int(current[0] if isinstance(current, tuple) else current)


def render(environ: Mapping[str, Any], versions: Mapping[str, str]) -> tuple[str, str]:
    """Return a page and its content type: HTML where the client says that it takes it, else plain text (curl does not say).

    Args:
        environ: the request's WSGI environ.
        versions: of what the app is made of, by name: {"Flask": "3.1.3"}.
    """
    # Each mount's `env` in the config file sets APP_NAME; os.environ is private to the interpreter, so the neighbours do not see it.
    name = os.environ.get("APP_NAME", "demo")
    made_of = ", ".join(f"{what} {version}" for what, version in versions.items())
    if "text/html" not in environ.get("HTTP_ACCEPT", ""):
        lines = [f"{name}: {made_of}", ""]
        lines += [f"  {label:<15} {value}" for label, value in facts(environ).items()]
        return "text/plain; charset=utf-8", "\n".join(lines) + "\n"

    path = f"{environ.get('SCRIPT_NAME', '')}/"
    text = HTML.substitute(
        name=escape(name),
        versions=escape(made_of),
        # A colour of its own for each app, spread evenly over the colour wheel.
        hue=(215 + 360 // len(LINKS) * LINKS.index(path) if path in LINKS else 215) % 360,
        rows="\n".join(f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>' for label, value in facts(environ).items()),
        links="".join(
            f'<a href="{link}"{" aria-current=page" if link == path else ""}>{link.strip("/") or "hello.wsgi"}</a>' for link in LINKS
        ),
    )
    return "text/html; charset=utf-8", text
