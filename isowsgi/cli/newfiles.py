"""Writes new files, all or none, and none over another unless that was asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping


class AlreadyThere(Exception):
    """A file would have been overwritten, or cannot be written; nothing was."""


def write(
    files: Mapping[str, str], force: bool, like: Iterable[str] = (), advice: str = "--force overwrites it, --output names another"
) -> None:
    """Write files.

    Args:
        force: overwrite what is there.
        like: files whose readers may read the new ones, and nobody else: their secrets are in them.
        advice: what to do about a file that is there already.

    Raises:
        AlreadyThere: with what to do.
    """
    there = [path for path in files if os.path.lexists(path)]
    if there and not force:
        raise AlreadyThere(f"{there[0]}: expected no such file; {advice}")
    mode = 0o666
    for path in like:
        mode &= stat.S_IMODE(os.stat(path).st_mode) | 0o600
    for path, text in files.items():
        # Beside the file and renamed: a reader sees the old or the new one, and a link is replaced and not followed.
        scratch = f"{path}.{os.getpid()}.new"
        try:
            with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(scratch, path)
        except OSError as exc:
            raise AlreadyThere(f"{path}: cannot write it: {(exc.strerror or str(exc)).lower()}") from exc
