"""Write docs/reference/gunicorn-settings.md from `gunicorn_settings` and gunicorn's own list; with --check, only tell if it is stale."""

import sys

import pages
from gunicorn.config import KNOWN_SETTINGS

PAGE = pages.ROOT / "docs" / "reference" / "gunicorn-settings.md"

# Run from a checkout, the page is drawn from that checkout, whichever isowsgi is installed.
sys.path.insert(0, str(pages.ROOT))

from isowsgi.configuration.gunicorn_settings import SETTINGS, Handling  # noqa: E402 -- see the line above

HEAD = """\
<!-- Written by tools/settings_page.py from isowsgi/configuration/gunicorn_settings.py; do not edit here. -->

# gunicorn's settings

Settings stay where gunicorn wants them: the command line, its conf file, `GUNICORN_CMD_ARGS`. What isowsgi does with each:

- **honoured**: works as gunicorn documents it; the note says what is particular with many apps in one worker.
- **refused**: the server does not start when it is set, and says which setting it was. What was asked for matters and would not happen.
- **ignored**: a warning at start names it, and the server starts. It would change nothing here.

A setting left at gunicorn's default is never refused or warned about. One that this isowsgi does not know, from a newer gunicorn, is a
warning when it is set.
"""


def page() -> str:
    """Return the page: a table for each of gunicorn's sections, in gunicorn's order."""
    sections: dict[str, list[str]] = {}
    for setting in KNOWN_SETTINGS:
        sections.setdefault(setting.section, []).append(_row(setting.name, setting.cli))
    parts = [HEAD]
    for section, rows in sections.items():
        parts.append(f"\n## {section}\n\n| setting | flag | isowsgi | note |\n|---|---|---|---|\n" + "".join(rows))
    return "".join(parts)


def _row(name: str, flags: list[str] | None) -> str:
    verdict = SETTINGS[name]
    handling = verdict.handling.value if verdict.handling is Handling.HONOURED else f"**{verdict.handling.value}**"
    flag = ", ".join(f"`{flag}`" for flag in flags or ())
    return f"| `{name}` | {flag} | {handling} | {_sentence(verdict.note)} |\n"


def _sentence(note: str) -> str:
    return note[0].upper() + note[1:] + "."


if __name__ == "__main__":
    sys.exit(pages.run(__doc__, PAGE, page, __file__))
