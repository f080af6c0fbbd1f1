"""`python -m tests.faults`: make each point fail once and always, and say what the neighbour lost."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.harness import Finding, Place, pairs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="points whose names have this in them")
    parser.add_argument("--log", type=Path, help="where the server's log is left")
    options = parser.parse_args()
    findings: list[Finding] = []
    tried = reached = 0
    with tempfile.TemporaryDirectory(prefix="isowsgi-faults-") as folder:
        place = Place(Path(folder))
        try:
            for point, mode in pairs([point for point in place.points if options.only in point]):
                found, failed = place.try_point(point, mode)
                tried, reached = tried + 1, reached + bool(failed)
                findings += found
                for finding in found:
                    print(finding, flush=True)
        finally:
            if options.log:
                options.log.write_text(place.log())
            place.close()
    print(f"{tried} faults, {reached} of them were met; {len(findings)} findings")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
