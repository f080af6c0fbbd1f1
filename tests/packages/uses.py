"""Code that uses packages, not only imports them, from uses.txt."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Use(NamedTuple):
    """One app.

    Attributes:
        requirements: what has to be installed.
        setup: what runs at import.
        work: what runs in each request.
    """

    requirements: list[str]
    setup: str
    work: str


def _read(section: str) -> tuple[str, Use]:
    title, _, code = section.partition("\n")
    name, _, requirements = title.partition(": ")
    setup, _, work = code.partition("\n---\n")
    return name, Use(requirements.split(), setup, work.strip())


USES = dict(map(_read, Path(__file__).with_name("uses.txt").read_text(encoding="utf-8").split("\n## ")[1:]))
