"""`python -m tests.faults`: make each point fail once and always, and say what the neighbour lost."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tests.faults.harness import Finding, Place, pairs, room_of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="points whose names have this in them")
    parser.add_argument("--minutes", type=float, default=math.inf, help="a sample of all rooms, as much as fits into that; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of that sample")
    parser.add_argument("--unmet", action="store_true", help="list the points that were never met")
    parser.add_argument("--log", type=Path, help="where the server's log is left")
    options = parser.parse_args()
    findings: list[Finding] = []
    tried: Counter[str] = Counter()  # faults, by the rooms of their points
    reached: Counter[str] = Counter()
    met: set[str] = set()
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="isowsgi-faults-") as folder:
        place = Place(Path(folder))
        chosen = [point for point in place.points if options.only in point]
        try:
            for point, mode in pairs(chosen, options.seed, None if end == math.inf else 2 * len(chosen)):
                if time.monotonic() > end:
                    break
                try:
                    found, failed = place.try_point(point, mode)
                except AssertionError as exc:  # all of gunicorn has ended, or nothing serves any more
                    found, failed = [Finding(point, mode, str(exc)[-3000:])], 1
                    place.close()
                    place = Place(Path(tempfile.mkdtemp(dir=folder)))
                tried[room_of(point)] += 1
                reached[room_of(point)] += bool(failed)
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
    _show(tried, reached, Counter(room_of(finding.point) for finding in findings))
    print(f"{tried.total()} of {2 * len(chosen)} faults, {reached.total()} of them were met; {len(findings)} findings")
    return int(bool(findings))


def _show(tried: Counter[str], reached: Counter[str], findings: Counter[str]) -> None:
    table = Table("room", *("faults", "met", "findings"), box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for room in sorted(tried):
        table.add_row(room, str(tried[room]), str(reached[room]), str(findings[room]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
