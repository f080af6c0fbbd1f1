"""Measure isowsgi beside other servers, and write the page in docs/ from what was measured.

Without a command: run, report, and count instructions and system calls. A run of everything is reported to docs/explanation, any other to
.bench/report.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from bench import report, venvs
from bench.peers import CHECKOUT, PEERS, THREADS
from bench.results import CALM_CORES, Result, verdicts
from bench.rounds import Rounds, Settings
from bench.scenarios import TITLES
from bench.venvs import HOME

DOCS = CHECKOUT / "docs" / "explanation"

FULL = Settings(scenarios=tuple(TITLES), rounds=3, seconds=3, threads=THREADS, apps=20, mounts=1000)

# A smoke test of the rig; its figures mean nothing.
QUICK = Settings(scenarios=tuple(TITLES), rounds=1, seconds=1, threads=THREADS, apps=4, mounts=20)

# Descriptors of an interpreter and its connections, with room to spare; a thousand of them pass the usual limit of 1,024 by far.
_FILES_PER_MOUNT = 20


def main(arguments: Sequence[str]) -> int:
    options = options_of(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # they end a run as Ctrl-C does: the servers are stopped
    try:
        if options.command == "list":
            _list(options)
        if options.command in {None, "run"}:
            _run(options)
        if options.command in {None, "report"}:
            _report(options)
        if options.command in {None, "counts"} and "isowsgi" in options.peers:
            return _count(options)
    except venvs.Failed as exc:
        _fail(str(exc))
    except KeyboardInterrupt:
        say("\nbench: stopped")
        return 128 + signal.SIGINT
    return 0


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "command",
        nargs="?",
        choices=["run", "report", "counts", "list"],
        help="only measure, only report, only count, or list what there is",
    )
    parser.add_argument("--peers", type=_names(PEERS), default=tuple(PEERS), metavar="A,B", help="measure these only")
    parser.add_argument("--scenarios", type=_names(TITLES), metavar="A,B", help="measure in these only")
    parser.add_argument("--rounds", type=_positive, help=f"default {FULL.rounds}")
    parser.add_argument("--seconds", type=_positive, help=f"of each load; default {FULL.seconds}")
    parser.add_argument("--mounts", type=_positive, help=f"how many are many; default {FULL.mounts}")
    parser.add_argument("--quick", action="store_true", help="one round of one second and few apps, to see that all works")
    parser.add_argument("--python", default=sys.executable, help="what the venvs are made from; default the newest found")
    parser.add_argument("--json", type=Path, default=HOME / "result.json", metavar="FILE", help="result file; default .bench/result.json")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the report goes")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else FULL
    given = {name: value for name in ("scenarios", "rounds", "seconds", "mounts") if (value := getattr(options, name)) is not None}
    options.settings = Settings(**(asdict(settings) | given))
    is_everything = options.settings == FULL and options.peers == tuple(PEERS)
    options.out = options.out or (DOCS if options.command == "report" or is_everything else HOME / "report")
    return options


def _names(there_are: Mapping[str, object]) -> Any:
    def names(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(","))
        for name in found:
            if name not in there_are:
                raise argparse.ArgumentTypeError(f"expected some of {', '.join(there_are)}, got {name!r}")
        return tuple(name for name in there_are if name in found)

    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text!r}")
    return int(text)


# The commands


def _list(options: argparse.Namespace) -> None:
    print("peers\n")
    for peer in PEERS.values():
        print(f"  {peer.name:<18} {peer.title} ({peer.missing() or peer.apart})")
    print("\nscenarios\n")
    for name, title in TITLES.items():
        print(f"  {name:<18} {title}")


def _run(options: argparse.Namespace) -> None:
    for program, package in (("wrk", "wrk"), ("taskset", "util-linux")):
        if shutil.which(program) is None:
            _fail(f"expected {program} on PATH (Debian: {package})")
    settings: Settings = options.settings
    folders, skipped = venvs.make_for(options.python, [PEERS[name] for name in options.peers])
    _allow_files(settings.mounts * _FILES_PER_MOUNT)
    result: Result = {
        "when": datetime.date.today().isoformat(),
        "settings": asdict(settings),
        "machine": _machine(options.python),
        "peers": {name: venvs.versions(folder) for name, folder in folders.items()},
        "skipped": {},
        "notes": [],
        "measurements": [],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def record(measurement: dict[str, Any]) -> None:
        result["measurements"].append(measurement)
        options.json.write_text(json.dumps(result, indent=1) + "\n")  # at once, so that a run that is stopped has what it measured
        say(f"{time.monotonic() - began:4.0f} s  {_line(measurement)}")

    def skip(name: str, reason: str) -> None:
        result["peers"].pop(name, None)
        result["skipped"][name] = reason
        say(f"bench: {name} is left out: {reason}")

    def note(text: str) -> None:
        result["notes"].append(text)
        say(f"bench: {text}")

    for name, reason in skipped.items():
        skip(name, reason)
    Rounds(settings=settings, venvs=folders, record=record, skip=skip, note=note).run()
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    say(f"bench: measured in {time.monotonic() - began:.0f} s; the result is in {_shown(options.json)}")


def _machine(python: str) -> dict[str, Any]:
    wrk = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False)  # it says its version and ends with 1
    version = re.search(r"wrk (?:debian/)?([\d.]+\d)", wrk.stdout + wrk.stderr)
    kernel = re.match(r"[\d.]*\d", platform.release())
    return {
        "python": venvs.release(python),
        "kernel": kernel[0] if kernel else platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "wrk": version[1] if version else "of an unknown version",
    }


def _line(measurement: Mapping[str, Any]) -> str:
    if "rps" in measurement:
        figures = f"{measurement['rps']:9,.0f} requests/s, p99 {measurement['p99_ms'] or float('nan'):7.2f} ms"
    else:
        figures = f"{measurement['start_s']:9.2f} s to start, {measurement['mib_per_app']:5.1f} MiB an app"
    others = f"others {measurement['others_cores']:.2f} cores" + ("" if measurement["others_cores"] < CALM_CORES else ", not calm")
    errors = "".join(f", {count} {kind}" for kind, count in measurement.get("errors", {}).items())
    return f"round {measurement['round']}  {measurement['scenario']:<11} {measurement['peer']:<17} {figures}, {others}{errors}"


def _allow_files(count: int) -> None:
    """Raise the limit of open files, which servers inherit; a hard limit below is met when a server fails to start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _count(options: argparse.Namespace) -> int:
    """Print what a request takes that does not depend on how busy the machine is."""
    folders, skipped = venvs.make_for(options.python, [PEERS["isowsgi"]])
    if skipped:
        _fail(skipped["isowsgi"])
    command = [str(folders["isowsgi"] / "bin" / "python"), "-m", "bench.counts"]
    return subprocess.run(command, cwd=CHECKOUT, check=False).returncode


def _report(options: argparse.Namespace) -> None:
    try:
        result = json.loads(options.json.read_text())
    except (OSError, ValueError) as exc:
        _fail(f"--json: expected the result file of a run: {exc}")
    images = _draw(options)
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "benchmarks.md"
    page.write_text(report.page(result, images))
    for verdict in verdicts(result):
        if verdict.ratio is not None:
            outcome = "met" if verdict.is_met else "NOT met"
            print(f"{verdict.target.what}, to {verdict.target.to}: {verdict.ratio:.3g}, {verdict.target.bound}: {outcome}")
    say(f"bench: the report is in {_shown(page)}")


def _draw(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Draw the plots; returns what is to be seen and the path of each, none if there is no matplotlib for this Python."""
    try:
        python = venvs.make_for_plots(options.python)
    except venvs.Failed as exc:
        say(f"bench: the report is without plots: {exc}")
        return []
    folder = options.out / "img"
    folder.mkdir(parents=True, exist_ok=True)
    command = [python, "-m", "bench.plots", options.json.absolute(), folder.absolute()]
    said = subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.PIPE, text=True)
    return [(what, f"img/{file}") for file, what in (line.split("\t") for line in said.stdout.splitlines())]


def _fail(text: str) -> NoReturn:
    print(f"bench: {text}", file=sys.stderr)
    sys.exit(1)


def _shown(path: Path) -> str:
    return os.path.relpath(path)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
