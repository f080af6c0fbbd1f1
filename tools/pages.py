"""What the tools that write a page of docs/ have in common: their option, and what they do with the page."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(doc: str | None, page: Path, text: Callable[[], str], tool: str) -> int:
    """Be the whole of such a tool; return its exit code.

    Args:
        doc: what it does, for its help.
        page: the file that it writes.
        text: returns what is to stand there.
        tool: the path of its program.
    """
    parser = argparse.ArgumentParser(description=doc)
    add_option(parser)
    is_check = parser.parse_args().check
    return bring_up_to_date(page, text(), tool, is_check)


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")


def bring_up_to_date(page: Path, wanted: str, tool: str, is_check: bool) -> int:
    """Write a page, or only say whether it is stale; return the tool's exit code."""
    shown = page.relative_to(ROOT)
    if is_check:
        if page.exists() and page.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"{shown}: is stale; run: python {Path(tool).resolve().relative_to(ROOT)}", file=sys.stderr)
        return 1
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(wanted, encoding="utf-8")
    print(f"{shown}: written")
    return 0
