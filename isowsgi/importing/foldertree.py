"""All that is in a folder and below it, or why that cannot be told."""

from __future__ import annotations

import os
from typing import NamedTuple

# Names that are looked through for one folder: with their directives 1.1 s of a core and 45 MiB, measured with 99,000 in 990 folders.
_MOST_NAMES = 100_000


class Tree(NamedTuple):
    """What is below a folder.

    Attributes:
        folders: relative to it; "" is the folder itself.
        files: relative to it, sorted.
        fault: why it could not be looked at, or not all of it; "" if it could.
    """

    folders: list[str]
    files: list[str]
    fault: str = ""


def look(top: str) -> Tree:
    """Return what is in a folder, links to folders included, as a server of files follows them."""
    folders, files, seen, waiting = [""], [], set[str](), [""]
    while waiting:
        folder = waiting.pop()
        here = os.path.join(top, folder)
        if (real := os.path.realpath(here)) in seen:
            continue  # a link to what is there already, such as a folder above
        seen.add(real)
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    name = os.path.join(folder, entry.name)
                    if entry.is_dir():
                        folders.append(name)
                        waiting.append(name)
                    else:
                        files.append(name)
                    if len(files) + len(folders) > _MOST_NAMES:
                        return Tree([], [], f"it has more than {_MOST_NAMES:,} files")
        except OSError as exc:
            return Tree([], [], f"{here}: {exc.strerror}")
    return Tree(folders, sorted(files))
