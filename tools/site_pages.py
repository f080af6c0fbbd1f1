"""Lay the pages of the documentation out for mkdocs, which wants them in one folder: `make docs` calls it before.

    site_pages.py [FOLDER]     .site/pages, unless another is named

docs/ and the Markdown files of the checkout's top keep their places there, so the links between them stay as they are. README.md becomes
the first page. A link to any other file of the checkout (a test, a unit file) leads to the repository instead.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".site" / "pages"
FIRST = "README.md"

# [text](target), where the target is no address and no anchor of the same page. Code blocks have none that matter: see the test.
_LINK = re.compile(r"\]\((?![a-z]+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


class DeadLink(ValueError):
    """A page links to a file that the checkout does not have."""


def repository() -> str:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    return str(urls["Source"])


def sources() -> list[Path]:
    """Return all files of the site, as paths in the checkout."""
    return sorted([*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*") if path.is_file())])


def place_of(path: Path) -> Path:
    """Return where a file of the checkout lies on the site."""
    relative = path.relative_to(ROOT)
    return Path("index.md") if str(relative) == FIRST else relative


def with_links(page: Path, text: str, placed: set[Path], source: str) -> str:
    """Return a page's text with its links as the site needs them.

    Args:
        page: its path in the checkout.
        placed: files of the checkout that are on the site.
        source: the repository's address.

    Raises:
        DeadLink
    """

    def replaced(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / match["path"]))
        anchor = match["anchor"] or ""
        if not target.exists():
            raise DeadLink(f"{page.relative_to(ROOT)}: expected the path of a file, got {match['path']!r}")
        if target in placed:
            return f"]({os.path.relpath(ROOT / place_of(target), (ROOT / place_of(page)).parent)}{anchor})"
        kind = "tree" if target.is_dir() else "blob"
        return f"]({source}/{kind}/main/{target.relative_to(ROOT)}{anchor})"

    return _LINK.sub(replaced, text)


def lay_out(folder: Path) -> None:
    """Write the pages into a folder, in place of what was there.

    Raises:
        DeadLink
    """
    shutil.rmtree(folder, ignore_errors=True)
    files, source = sources(), repository()
    placed = set(files)
    for path in files:
        copy = folder / place_of(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            copy.write_text(with_links(path, path.read_text(), placed, source))
        else:
            shutil.copyfile(path, copy)


def main(arguments: Sequence[str]) -> int:
    try:
        lay_out(Path(arguments[0]).absolute() if arguments else FOLDER)
    except DeadLink as exc:
        print(f"site_pages: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
