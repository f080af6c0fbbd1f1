"""The command line of `make soak`.

    python -m soak [--minutes 30] [--hup 60] [--out .soak] [--seed N] [--no-hostile] [--no-plot]

Exit codes: 0 if every request that was lost is explained by a kill and the server is as large at the end as at the beginning; 1 if not;
2 if it could not be run; 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from isowsgi.cli import client
from isowsgi.shared import controlmessages, interpreters
from isowsgi.shared.controlmessages import Error
from soak import report
from soak.load import Load
from soak.logwatch import LogWatch
from soak.mischief import Mischief
from soak.samples import Sample, Sampler
from soak.site import LAZY, MOUNTS, ROOT, WORKERS, Failed, Site
from soak.trouble import Plan, Trouble

sys.path.insert(0, str(ROOT / "tools"))

import make_venv
from make_venv import Progress, Venv

FRAMEWORKS = {"flask": ("flask>=3.1,<4",), "django": ("django>=5.2,<7",), "plot": ("matplotlib>=3.9",)}

# Failures, and connections that were closed, that are kept; a good run has some hundred in an hour.
_MOST_EVENTS = 20_000

# Disk that a run may need: its log at most, and what it writes at the end.
_NEEDED_BYTES = 256 * 1024 * 1024

# How long the server may take to come to rest: what drains at most, and the time after which a connection counts as idle.
_REST_S = 120.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="soak", description="Soak a gunicorn with all isolations under load, reloads and kills.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--hup", type=float, metavar="S", help="seconds between two HUPs: 60, or a third of a short run")
    parser.add_argument("--out", type=Path, default=ROOT / ".soak", help="folder for the report, the plot and the venvs")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="of what is random about clients, kills and hostile apps"
    )
    parser.add_argument("--no-hostile", action="store_true", help="do without the hostile apps beside the good ones")
    parser.add_argument("--no-plot", action="store_true", help="do without matplotlib")
    options = parser.parse_args(arguments)
    if not options.minutes >= 1:
        parser.error(f"--minutes: expected 1 or more, got {options.minutes:g}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _main(options)
    except KeyboardInterrupt:
        print("\nsoak: interrupted; all its processes are ended", file=sys.stderr)
        return 130
    except (Failed, make_venv.Failed) as exc:
        print(f"soak: {exc}", file=sys.stderr)
        return 2


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _main(options: argparse.Namespace) -> int:
    print(f"soak: seed {options.seed}", file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    venvs = _make_venvs(options.out, with_plot=not options.no_plot)
    if shutil.disk_usage(tempfile.gettempdir()).free < _NEEDED_BYTES:
        raise Failed(f"{tempfile.gettempdir()}: expected {_NEEDED_BYTES >> 20} MiB of free disk")
    found = Soak(options, venvs).run()
    (options.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    plot = "" if "plot" not in venvs else _draw(venvs["plot"], options.out)
    (options.out / "report.md").write_text(report.page(found, plot))
    print(report.page(found, plot))
    print(f"in full: {os.path.relpath(options.out / 'report.json')}", file=sys.stderr)
    return 1 if found["faults"] else 0


class Soak:
    """One run, from the start of gunicorn to its end."""

    def __init__(self, options: argparse.Namespace, venvs: dict[str, Venv]) -> None:
        self._options = options
        self._venvs = venvs
        self._lock = threading.Lock()
        self._events: list[dict[str, Any]] = []
        self._mistakes: list[str] = []
        self._counts: list[tuple[float, dict[str, int]]] = []
        self._end: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        """Do it and return all that is known of it."""
        options, plan = self._options, Plan.of(self._options.minutes, self._options.hup)
        began = time.time()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isowsgi-soak-", ignore_cleanup_errors=True)))
            seed = None if options.no_hostile else options.seed
            site = stack.enter_context(Site(folder, self._venvs["flask"].folder, self._venvs["django"].folder, seed))
            stack.callback(self._save_log, site)
            log, sampler = LogWatch(site.log, bool(site.hostile)), Sampler(site, min(5.0, plan.run_s / 100), self._mistake)
            before = self._rest(site, sampler)
            load = Load(site.port, options.seed, self._take_event)
            stack.callback(load.kill)
            trouble = Trouble(site, plan, options.seed, load.tell_arrival, self._mistake)
            mischief = Mischief(site, options.seed, trouble.journal.scarce, self._mistake)
            stack.callback(sampler.stop)
            stack.callback(trouble.stop)
            stack.callback(mischief.stop)
            start = time.monotonic()
            sampler.start()
            trouble.start()
            if site.hostile:
                mischief.start()
            is_quiet = not site.hostile
            for left_s in self._seconds(plan.run_s):
                log.read()
                if not is_quiet and left_s < plan.quiet_s:
                    is_quiet = True
                    mischief.stop()
                    trouble.hup()  # what the hostile apps left behind goes with its workers: the rest is compared with the beginning
                self._show(start, plan, trouble, sampler)
                if not site.is_running() or not load.is_running():
                    self._mistake("gunicorn ended" if load.is_running() else "the load ended")
                    break
            trouble.stop()
            if not load.stop() or self._end is None:
                self._mistake("the clients did not all get to the end of their requests")
            sampler.stop()
            after = self._rest(site, sampler)
            stopped = site.stop()
            log.read()
            if stopped:
                self._mistake(stopped)
            return report.facts(
                machine={"python": interpreters.version_text(), "kernel": platform.release(), "cores": os.cpu_count() or 0},
                run={"minutes": options.minutes, "seed": options.seed, "began": began, "start": start, "load_average": os.getloadavg()},
                plan=plan,
                journal=trouble.journal,
                counts=self._counts,
                end=self._end or {"counts": self._counts[-1][1] if self._counts else {}, "small": {}, "stall_s": 0.0},
                events=self._events,
                samples=sampler.samples,
                rest=(before, after),
                log=log,
                mistakes=self._mistakes,
                hostile={"mounts": site.hostile, "plays": dict(mischief.plays), "outcomes": dict(mischief.outcomes)},
                keeps_memory=interpreters.keeps_memory(interpreters.OWN_GIL),
            )

    def _rest(self, site: Site, sampler: Sampler) -> Sample:
        """Wait until nothing is on its way any more and every mount is up in every worker, and take a sample."""
        deadline = time.monotonic() + _REST_S
        while time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                places = client.find(str(site.config), None)
            except client.NobodyServes:
                continue
            client.ask(places, controlmessages.Start(mount=LAZY[0]), 30.0)
            answers = [told.answer for told in client.ask(places, controlmessages.Status(), 10.0)]
            mounts = [mount for answer in answers if not isinstance(answer, Error) for mount in answer.mounts]
            states = [[instance.state for instance in mount.instances] for mount in mounts if mount.mount in MOUNTS]
            is_up = len(states) == WORKERS * len(MOUNTS) and all(state == ["serving"] for state in states)
            if is_up and len(site.workers()) == WORKERS and (sample := sampler.take()) is not None:
                return sample
        raise Failed(f"the server did not come to rest within {_REST_S:g} s")

    def _seconds(self, run_s: float) -> Iterator[float]:
        """Yield once a second how many are left."""
        end = time.monotonic() + run_s
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            yield end - time.monotonic()

    def _take_event(self, event: dict[str, Any]) -> None:
        with self._lock:
            if event["event"] == "counts":
                self._counts.append((event["at"], event["counts"]))
            elif event["event"] == "end":
                self._end = event
            elif event["event"] == "mistake":
                self._mistakes.append(f"a client of kind {event['kind']} broke:\n{event['traceback']}")
            elif len(self._events) < _MOST_EVENTS:
                self._events.append(event)
            elif (text := "too much went wrong to keep all of it") not in self._mistakes:
                self._mistakes.append(text)

    def _mistake(self, text: str) -> None:
        with self._lock:
            self._mistakes.append(text)

    def _show(self, start: float, plan: Plan, trouble: Trouble, sampler: Sampler) -> None:
        passed = time.monotonic() - start
        is_live = sys.stderr.isatty()
        if not is_live and int(passed) % 30:
            return
        sums: Counter[str] = Counter()
        for name, count in (self._counts[-1][1] if self._counts else {}).items():
            sums[name.rpartition(": ")[2]] += count
        journal, sample = trouble.journal, sampler.samples[-1] if sampler.samples else None
        sizes = "" if sample is None else f", workers {' '.join(f'{worker.rss_mib:.0f}' for worker in sample.workers)} MiB"
        line = (
            f"{passed / 60:5.1f} of {plan.run_s / 60:g} min: {sums['answered']} answered, {sums['failed']} failed, "
            f"{sums['retried']} sent again; {len(journal.reloads)} reloads, {len(journal.hups)} HUPs, {len(journal.kills)} kills{sizes}"
        )
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]}\x1b[K" if is_live else line, end="" if is_live else "\n", file=sys.stderr, flush=True)

    def _save_log(self, site: Site) -> None:
        """Keep the end of the log, for whoever has to find out what was wrong."""
        with open(site.log, "rb") as log:
            log.seek(max(os.path.getsize(site.log) - 4 * 1024 * 1024, 0))
            (self._options.out / "error.log").write_bytes(log.read() + site.text().encode()[-100_000:])


def _make_venvs(out: Path, with_plot: bool) -> dict[str, Venv]:
    """Make the venvs of the two frameworks, and one to draw with, which can be done without."""
    folder = out / "py{}.{}".format(*sys.version_info[:2])
    venvs = {name: Venv(folder=folder / name, arguments=packages, contents=", ".join(packages)) for name, packages in FRAMEWORKS.items()}
    progress = Progress(sys.stderr)
    make_venv.make(sys.executable, [venvs["flask"], venvs["django"]], progress)
    plot = venvs.pop("plot")
    if with_plot:
        try:
            make_venv.make(sys.executable, [plot], progress)
            venvs["plot"] = plot
        except make_venv.Failed as exc:
            print(f"soak: the report is without a plot: {exc}", file=sys.stderr)
    return venvs


def _draw(venv: Venv, out: Path) -> str:
    command: list[str | Path] = [venv.python, "-m", "soak.plot", (out / "report.json").absolute(), (out / "soak.svg").absolute()]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(f"soak: the report is without a plot: {done.stdout[-2000:]}", file=sys.stderr)
        return ""
    return "soak.svg"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
