"""Print the lowest version of each dependency that pyproject.toml allows, one requirement a line: what `make test-lowest` installs."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"

# A name, its lowest version, and perhaps an upper bound: all that is used there.
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<lowest>[\w.]+)(,<[\w.]+)?")


class NoLowest(ValueError):
    """A requirement without a lower bound: nobody could say which versions were tried."""


def lowest(requirements: Iterable[str]) -> Iterator[str]:
    """Yield each requirement, pinned to its lower bound.

    Raises:
        NoLowest: one has none.
    """
    for requirement in requirements:
        found = _REQUIREMENT.fullmatch(requirement)
        if found is None:
            raise NoLowest(f"pyproject.toml: expected 'name>=version' or 'name>=version,<version', got {requirement!r}")
        yield f"{found['name']}=={found['lowest']}"


def main() -> int:
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    try:
        print("\n".join(lowest(dependencies)))
    except NoLowest as exc:
        print(f"lowest_versions: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
