"""Files of a source, read in bounds."""

from __future__ import annotations

import os

from isowsgi.importing.account import BadSource
from isowsgi.shared import regularfiles


def read(path: str) -> str:
    """Return a file's text; bytes that are no UTF-8 are kept as escapes.

    Raises:
        BadSource: there is none that can be read.
    """
    try:
        return regularfiles.read(path, regularfiles.MAX_CONFIG_BYTES).decode("utf-8-sig", "backslashreplace")
    except FileNotFoundError:
        raise BadSource(path, "expected a file, got none") from None
    except regularfiles.NotRegular as exc:
        raise BadSource(path, f"expected a file, got {exc}") from exc
    except (OSError, ValueError) as exc:
        raise BadSource(path, f"cannot read it: {(getattr(exc, 'strerror', None) or str(exc)).lower()}") from exc


def absolute(path: str, folder: str) -> str:
    """Return a path as the source means it: from a folder, with a home's `~`, and without dots in it."""
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
