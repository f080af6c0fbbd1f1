"""What each configuration file becomes, as text: `python -m tests.imports.expected` writes it anew beside the files, for review."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from isowsgi.importing import account, making
from tests.imports import tree

KINDS = ("uwsgi", "apache", "unit")

# What counts as the environment: nothing of the machine's.
ENVIRON: dict[str, str] = {}


def sources(kind: str) -> list[str]:
    """Return the files of a kind that are imported by themselves, folders included."""
    return list(dict.fromkeys(name.partition("/")[0] for name, *_ in tree.rows(kind)))


def made(kind: str, source: str, folder: Path) -> making.Made:
    return making.make(str(folder / source), str(folder.parent / "isowsgi.toml"), None, ENVIRON)


def text_of(kind: str, source: str, folder: Path, srv: Path) -> str:
    """Return files and report of one source, with the paths as the source has them."""
    result = made(kind, source, folder)
    parts = [f"########## {source}"]
    parts += [f"##### {Path(name).name}\n{text}" for name, text in result.files.items()]
    for line in account.as_json(result.entries):
        place = f"{Path(line['file']).name}:{','.join(map(str, line['lines']))}"
        parts.append(f"{line['outcome']}: {place}: {line['text']}\n    " + "\n    ".join(line["notes"]))
    parts += [f"nginx: {line}" for line in result.proxy]
    return "\n".join(parts).replace(str(srv), "/srv") + "\n\n"


def everything(kind: str, root: Path) -> str:
    srv = tree.make(root)
    folder = tree.copied(kind, srv)
    return "".join(text_of(kind, source, folder, srv) for source in sources(kind))


if __name__ == "__main__":
    for each in sys.argv[1:] or KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            (tree.HERE / each / "expected.txt").write_text(everything(each, Path(scratch)))
