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
    parser.add_argument("--unmet", action="store_true", help="list the points that were never met")
    parser.add_argument("--log", type=Path, help="where the server's log is left")
    options = parser.parse_args()
    findings: list[Finding] = []
    tried = reached = 0
    met: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="isowsgi-faults-") as folder:
        place = Place(Path(folder))
        chosen = [point for point in place.points if options.only in point]
        try:
            for point, mode in pairs(chosen):
                try:
                    found, failed = place.try_point(point, mode)
                except AssertionError as exc:  # all of gunicorn has ended, or nothing serves any more
                    found, failed = [Finding(point, mode, str(exc)[-3000:])], 1
                    place.close()
                    place = Place(Path(tempfile.mkdtemp(dir=folder)))
                tried, reached = tried + 1, reached + bool(failed)
                met |= {point} if failed else set()
                findings += found
                for finding in found:
                    print(finding, flush=True)
        finally:
            if options.log:
                options.log.write_text(place.log())
            place.close()
    if options.unmet:
        print("never met:", *sorted(set(chosen) - met), sep="\n  ")
    print(f"{tried} faults, {reached} of them were met; {len(findings)} findings")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
