"""Write the table of differences in docs/reference/http.md from tests/requests/differences.toml; with --check, only tell if it is stale."""

import sys
import tomllib
from typing import Any

import pages

PAGE = pages.ROOT / "docs" / "reference" / "http.md"
DATA = pages.ROOT / "tests" / "requests" / "differences.toml"

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


def fresh() -> str:
    return page(PAGE.read_text(encoding="utf-8"), tomllib.loads(DATA.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(pages.run(__doc__, PAGE, fresh, __file__))
