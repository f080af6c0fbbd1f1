"""Which server a source belongs to, and who reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from isowsgi.importing import apache, sources, unit, uwsgi, uwsgiforms
from isowsgi.importing.account import Account, BadSource
from isowsgi.importing.draft import Draft

READERS: dict[str, Callable[[str, Account, Mapping[str, str]], Draft]] = {
    "uwsgi": uwsgi.import_from,
    "apache": apache.import_from,
    "unit": unit.import_from,
}

_APACHE = r"^\s*(<VirtualHost|WSGI\w+|LoadModule|ServerName|Listen|Include(Optional)?|<IfModule)\b"

# How many files of a folder are looked at.
_MOST_FILES = 1000


def kind_of(source: str) -> str:
    """Return "uwsgi", "apache" or "unit".

    Raises:
        BadSource: it is none of them.
    """
    if not os.path.isdir(source):
        if (kind := _kind_of_text(sources.read(source))) is not None:
            return kind
        raise BadSource(source, "expected a configuration of uWSGI, Apache or NGINX Unit; say which with --from")
    for name in sorted(os.listdir(source))[:_MOST_FILES]:
        path = os.path.join(source, name)
        if os.path.isfile(path) and (kind := _kind_of_text(sources.read(path))) is not None:
            return kind
    raise BadSource(source, "expected a folder with files of uWSGI's or Apache's, got none; to look at a folder of projects: isowsgi init")


def _kind_of_text(text: str) -> str | None:
    if uwsgiforms.looks_like_ini(text) or re.search(r"<uwsgi[\s>]", text) or re.search(r"^uwsgi:\s*$", text, re.MULTILINE):
        return "uwsgi"
    if re.search(r"^\s*(//[^\n]*\n\s*|/\*.*?\*/\s*)*\{", text, re.DOTALL):
        if re.search(r'"uwsgi"\s*:\s*\{', text):
            return "uwsgi"
        return "unit" if re.search(r'"(listeners|applications|routes)"\s*:', text) else None
    if re.search(_APACHE, text, re.MULTILINE | re.IGNORECASE):
        return "apache"
    return None
