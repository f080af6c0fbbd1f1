"""Write the table of differences in docs/reference/http.md from tests/requests/differences.toml; with --check, only tell if it is stale."""

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "http.md"
DATA = ROOT / "tests" / "requests" / "differences.toml"

# The table stands between these two lines of the page.
BEGIN = "<!-- Written by tools/http_page.py from tests/requests/differences.toml; do not edit up to the next comment. -->\n"
END = "<!-- End of what is written. -->\n"


def table(data: dict[str, Any]) -> str:
    rows = [f"| {row['what']} | {row['isowsgi']} | {row['gunicorn']} | {row['why']} |\n" for row in data["difference"]]
    return "".join(["\n| request | isowsgi | gunicorn | why |\n|---|---|---|---|\n", *rows, "\n"])


def page(old: str, data: dict[str, Any]) -> str:
    """Return the page with a fresh table in the old one's place."""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.name}: expected a table between two comments: {BEGIN.strip()} and {END.strip()}")
    return before + begin + table(data) + end + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    old = PAGE.read_text(encoding="utf-8")
    wanted = page(old, tomllib.loads(DATA.read_text(encoding="utf-8")))
    shown = PAGE.relative_to(ROOT)
    if parser.parse_args().check:
        if old == wanted:
            return 0
        print(f"{shown}: is stale; run: python tools/http_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    print(f"{shown}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
