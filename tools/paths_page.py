"""Write docs/reference/paths.md from tests/paths.toml; with --check, only tell whether it is stale."""

import sys
import tomllib
from typing import Any

import pages

PAGE = pages.ROOT / "docs" / "reference" / "paths.md"
DATA = pages.ROOT / "tests" / "paths.toml"

HEAD = """\
<!-- Written by tools/paths_page.py from tests/paths.toml; do not edit here. -->

# Paths: which mount a request belongs to, and what its app sees

One rule: the mount is chosen by the path that its app will see as `SCRIPT_NAME` + `PATH_INFO`, so that no way of writing a path reaches
one mount and looks like another's to the app. That path is percent-decoded once and not normalised in any other way.

Every row below is a test: these bytes, sent to a real server with the mounts {mounts}.
`SCRIPT_NAME` is the mount's prefix each time. The Host field is `{host}` where nothing else is said. Bytes that are not printable
ASCII are written as `\\xc3`; a status alone means that no app was called.
"""

GTHREAD = """
## Compared with gunicorn's gthread worker

The same bytes go to gunicorn's own worker with the same app at the root, and to isowsgi with one mount, `/`. Status, `SCRIPT_NAME` and
`PATH_INFO` are the same, but for these requests:

| request | Host | isowsgi | gunicorn | why |
|---|---|---|---|---|
"""

# Of a row that does not say.
DEFAULTS = {"method": "GET", "host": "example.com", "version": "1.1", "note": ""}


def page(data: dict[str, Any]) -> str:
    """Return the page: a table for each section, then the rows where gunicorn's worker differs."""
    mounts = ", ".join(f"`{mount}`" for mount in data["mounts"])
    parts = [HEAD.format(mounts=mounts, host=DEFAULTS["host"])]
    differing = []
    for section in data["section"]:
        parts.append(f"\n## {section['title']}\n\n{section['text']}\n\n| request | Host | mount | `PATH_INFO` | |\n|---|---|---|---|---|\n")
        for row in section["row"]:
            row = {**DEFAULTS, **row}
            outcome = f"`{row['mount']}` | {_code(row['path_info'])}" if "mount" in row else f"| {row['status']}"
            parts.append(f"| {_request(row)} | {_host(row)} | {outcome} | {row['note']} |\n")
            if "gthread" in row:
                status, path_info = row["gthread"]
                gunicorn = f"{status}, `PATH_INFO` {_code(path_info)}"
                differing.append(f"| {_request(row)} | {_host(row)} | {row['status']} | {gunicorn} | {row['note']} |\n")
    return "".join([*parts, GTHREAD, *differing])


def _request(row: dict[str, str]) -> str:
    version = "" if row["version"] == DEFAULTS["version"] else f" HTTP/{row['version']}"
    return _code(f"{row['method']} {row['target']}{version}")


def _host(row: dict[str, str]) -> str:
    if row["host"] == DEFAULTS["host"]:
        return ""
    return "none" if row["host"] == "-" else _code(row["host"])


def _code(text: str) -> str:
    """Return a text as Markdown's code, with bytes that one cannot read escaped; an empty one as it is written in Python."""
    shown = text.encode("unicode_escape").decode().replace("\\\\", "\\").replace("|", "\\|")
    return f"`{shown or chr(34) * 2}`" if shown == shown.strip() else f"`{shown!r}`"


if __name__ == "__main__":
    sys.exit(pages.run(__doc__, PAGE, lambda: page(tomllib.loads(DATA.read_text(encoding="utf-8"))), __file__))
