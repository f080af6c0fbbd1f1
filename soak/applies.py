"""`make applies`: one mount after another is added, changed, renamed and removed by `isowsgi apply`, while five others are under load.

    python -m soak.applies [--mounts 200] [--flask 10] [--workers 3] [--rounds 20] [--flat 0] [--seed N] [--out .soak]

`--flat N` does something else: it changes one and the same mount N times, and judges whether what the server uses stays the same.

Exit codes: 0 if no request was lost and nothing changed that was not named; 1 if not; 2 if it could not be run; 130 if interrupted.

Times are of calm changes only, in which other programs used less than a fifth of a core, and rounds are repeated until there are enough, up
to twice as many. They are judged where asked for by `--judge-times`; if less than half of what was wanted was calm, that is a fault then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from isowsgi.shared import interpreters
from soak import verdict
from soak.farm import Applied, Farm, busy_s, differences
from soak.load import Load
from soak.logwatch import LogWatch
from soak.site import ROOT, Failed

# Mounts under load.
_ASKED_FLASK, _ASKED_SMALL = 2, 3

# How long neighbours are watched in peace, before each change.
_QUIET_S = 1.0

# What the figures are held against: neighbours' p99 beside the quiet one, seconds from the command to served, and growth of anything
# after the first hundred changes (of a shorter run: after its first third).
MOST_P99_FACTOR, MOST_SERVED_S, MOST_GROWTH = 1.5, 2.0, 0.05
_SETTLED_AFTER = 100

# Cores that other programs may use during a change that counts as calm; as in bench/.
CALM_CORES = 0.2

# How many more rounds there may be than are wanted.
_MOST_ROUNDS_FACTOR = 2

# A median of so many samples at each end: one worker may have a thread or a connection more at a moment.
_SAMPLES = 3


class Watched:
    """A farm under a light load, and what its clients had to say."""

    def __init__(self, farm: Farm, seed: int) -> None:
        small = [pattern for pattern in farm.mounts if pattern.startswith("/small/")][:_ASKED_SMALL]
        flask = [pattern for pattern in farm.mounts if pattern.startswith("/flask/")][:_ASKED_FLASK]
        self.asked = [*small, *flask]
        self.events: list[dict[str, Any]] = []
        self.end: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._load = Load(farm.port, seed, self._take, self.asked)

    @property
    def pid(self) -> int:
        return self._load.pid

    def begin_phase(self, name: str) -> None:
        self._load.begin_phase(name)

    def rename_phase(self, old: str, new: str) -> None:
        self._load.rename_phase(old, new)

    def stop(self) -> list[str]:
        """End the load; return what its clients have to complain of."""
        faults = [] if self._load.stop() and self.end else ["the clients did not all get to the end of their requests"]
        with self._lock:
            for event in self.events:
                if event["event"] == "mistake":
                    faults.append(f"a client broke: {event['traceback']}")
                elif verdict.explain(event, []) == verdict.UNEXPLAINED:
                    faults.append(f"lost: {event}")
        return faults

    def kill(self) -> None:
        self._load.kill()

    def counts(self) -> dict[str, int]:
        sums: Counter[str] = Counter()
        for name, count in self.end.get("counts", {}).items():
            sums[name.rpartition(": ")[2]] += count
        return dict(sums)

    def _take(self, event: dict[str, Any]) -> None:
        with self._lock:
            if event["event"] == "end":
                self.end = event
            elif event["event"] != "counts":
                self.events.append(event)


class Rounds:
    """Changes of all sorts, each judged by what it did to the others.

    Attributes:
        took: seconds from the command to served, by change; of calm ones.
        noisy: how many were not calm.
        compared: how often a mount that was not named was compared with what it had been.
    """

    def __init__(self, farm: Farm, watched: Watched, quiet_s: float) -> None:
        self.faults: list[str] = []
        self.took: defaultdict[str, list[float]] = defaultdict(list)
        self.noisy: Counter[str] = Counter()
        self.compared = 0
        self._farm = farm
        self._watched = watched
        self._quiet_s = quiet_s
        small = [pattern for pattern in farm.mounts if pattern.startswith("/small/")]
        flask = [pattern for pattern in farm.mounts if pattern.startswith("/flask/")]
        self._changing, self._renamed = flask[-1], small[-1]
        self._workers = {worker.pid for worker in farm.workers()}

    def run(self, rounds: int) -> None:
        before = self._farm.identities()
        if self._quiet_s:
            is_quiet = self._farm.settle(self._watched.pid)
            _say("the farm is quiet" if is_quiet else "the farm is not quiet after some minutes; it is measured as it is")
        for number in range(1, rounds * _MOST_ROUNDS_FACTOR + 1):
            self._round(number)
            if number >= rounds and all(len(took) >= rounds for took in self.took.values()):
                break
        after = self._farm.identities()
        for key, identity in before.items():
            if key[1] in self._farm.mounts and key[1] not in (self._changing, self._renamed) and after[key] != identity:
                self.faults.append(f"{key[1]} of worker {key[0]} has another interpreter: {identity} became {after[key]}")

    def _round(self, number: int) -> None:
        farm = self._farm
        farm.put("/added", "flask_site")
        self._change("add", number, new=["/added"])
        farm.put(self._changing, "flask_site", KEY=number)
        self._change("change env", number, new=[self._changing])
        old, self._renamed = self._renamed, f"/renamed/{number}"
        del farm.mounts[old]
        farm.put(self._renamed, "plain")
        self._change("rename", number, new=[self._renamed], gone=[old])
        del farm.mounts["/added"]
        self._change("remove", number, gone=["/added"])

    def _change(self, what: str, number: int, *, new: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
        farm, watched = self._farm, self._watched
        before = farm.come_to_rest()
        began, others_s = time.monotonic(), self._others_s()
        watched.begin_phase(f"quiet {what} {number}")
        time.sleep(self._quiet_s)
        farm.write()
        watched.begin_phase(f"{what} {number}")
        applied = farm.apply()
        watched.begin_phase("")
        is_calm = self._others_s() - others_s < CALM_CORES * (time.monotonic() - began)
        if is_calm or not self._quiet_s:
            self.took[what].append(applied.took_s)
            watched.rename_phase(f"quiet {what} {number}", "quiet")
            watched.rename_phase(f"{what} {number}", what)
        else:
            self.took[what] += []
            self.noisy[what] += 1
        after = farm.status()
        self.faults += self._wrong(what, applied)
        self.faults += differences(before, after, [*new, *gone], watched.asked)
        self.compared += sum(pattern not in (*new, *gone) for _, pattern in before)
        served = {pattern for _, pattern in after}
        self.faults += [f"{what}: {pattern} is not served" for pattern in new if pattern not in served]
        self.faults += [f"{what}: {pattern} is served" for pattern in gone if pattern in served]

    def _others_s(self) -> float:
        return busy_s() - self._farm.used_s(self._watched.pid)

    def _wrong(self, what: str, applied: Applied) -> list[str]:
        count = self._farm.count_of_workers
        found = [] if {worker.pid for worker in self._farm.workers()} == self._workers else [f"{what}: there are other workers"]
        if applied.code or f"applied in {count} of {count} workers" not in applied.output:
            found.append(f"{what}: exit code {applied.code}: {applied.output}")
        return found


class Same:
    """One mount is changed over and over."""

    def __init__(self, farm: Farm, watched: Watched) -> None:
        self.faults: list[str] = []
        self.took: list[float] = []
        self.samples: list[tuple[int, dict[str, float]]] = []
        self._farm = farm
        self._watched = watched

    def run(self, times: int) -> None:
        farm = self._farm
        pattern = list(farm.mounts)[-1]
        self._sample(0)
        for number in range(1, times + 1):
            farm.put(pattern, "plain", KEY=number)
            farm.write()
            applied = farm.apply()
            self.took.append(applied.took_s)
            if applied.code:
                self.faults.append(f"apply {number}: exit code {applied.code}: {applied.output}")
            if number % max(times // 40, 1) == 0:
                self._sample(number)
                _say(f"{number} of {times}: {self.samples[-1][1]}")
        self.faults += grown(self.samples)

    def _sample(self, number: int) -> None:
        self._farm.come_to_rest()
        self.samples.append((number, self._farm.sizes()))


def grown(samples: Sequence[tuple[int, dict[str, float]]]) -> list[str]:
    """Return what is larger at the end than once it had settled, by more than it may."""
    first, last = settled(samples)
    return [f"{name}: {first[name]:g} became {last[name]:g}" for name in first if last[name] > first[name] * (1 + MOST_GROWTH)]


def settled(samples: Sequence[tuple[int, dict[str, float]]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the sizes after the first hundred changes, or the first third, and at the end."""
    times = samples[-1][0]
    late = [sizes for number, sizes in samples if number >= min(_SETTLED_AFTER, times // 3)]
    ends = late[:_SAMPLES], late[-_SAMPLES:]
    first, last = ({name: statistics.median(sizes[name] for sizes in end) for name in late[0]} for end in ends)
    return first, last


# The command.


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="applies", description="Change one mount after another by `isowsgi apply` under load.")
    parser.add_argument("--mounts", type=int, default=200, help="in all, without those that are added")
    parser.add_argument("--flask", type=int, default=10, help="how many of them are Flask's")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="of an addition, a change, a new name and a removal")
    parser.add_argument("--flat", type=int, default=0, metavar="N", help="change one and the same mount N times instead")
    parser.add_argument("--quiet", type=float, default=_QUIET_S, metavar="S", help="seconds of peace before each change")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of what is random about the clients")
    parser.add_argument("--out", type=Path, default=ROOT / ".soak", help="folder for applies.json")
    parser.add_argument("--judge-times", action="store_true", help="count times that are too long as faults")
    options = parser.parse_args(arguments)
    if options.mounts - options.flask < _ASKED_SMALL + 1 or options.flask < _ASKED_FLASK + 1:
        parser.error(f"expected at least {_ASKED_SMALL + 1} small mounts and {_ASKED_FLASK + 1} of Flask's")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        found = measure(options)
    except KeyboardInterrupt:
        print("applies: interrupted; all its processes are ended", file=sys.stderr)
        return 130
    except Failed as exc:
        print(f"applies: {exc}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "applies.json").write_text(json.dumps(found, indent=1) + "\n")
    print(page(found))
    return 1 if found["faults"] else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _farm(options: argparse.Namespace) -> Iterator[tuple[Farm, Watched]]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="isowsgi-applies-", ignore_cleanup_errors=True))
        small = options.mounts - options.flask
        farm = stack.enter_context(Farm(Path(folder), small=small, flask=options.flask, workers=options.workers))
        watched = Watched(farm, options.seed)
        stack.callback(watched.kill)
        yield farm, watched


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Do it and return all that is known of it; the key `faults` has a line for each thing that must not be."""
    began = time.monotonic()
    with _farm(options) as (farm, watched):
        _say(f"{len(farm.mounts)} mounts in {options.workers} workers serve after {time.monotonic() - began:.1f} s; seed {options.seed}")
        log = LogWatch(farm.log)
        log.read()
        log.noticed.clear()
        found: dict[str, Any] = {
            "python": interpreters.version_text(),
            "cores": os.cpu_count(),
            "options": {name: getattr(options, name) for name in ("mounts", "flask", "workers", "rounds", "flat", "seed")},
        }
        work: Rounds | Same
        if options.flat:
            work = Same(farm, watched)
            work.run(options.flat)
            first, last = settled(work.samples)
            found |= {"samples": work.samples, "settled": first, "end": last, "took_s": {"change env": work.took}}
        else:
            work = Rounds(farm, watched, options.quiet)
            work.run(options.rounds)
            found |= {"took_s": dict(work.took), "noisy": dict(work.noisy), "compared": work.compared}
        faults = [*watched.stop(), *work.faults]
        log.read()
        faults += [f"log: {line}" for line in log.unexpected([], keeps_memory=interpreters.keeps_memory(interpreters.OWN_GIL))]
        found |= {"requests": watched.counts(), "phases": watched.end.get("phases", {}), "load average": os.getloadavg()}
    found["faults"] = faults + (_too_slow(found) if options.judge_times else [])
    return found


def _too_slow(found: dict[str, Any]) -> list[str]:
    phases, took_s, wanted = found["phases"], found["took_s"], found["options"]["rounds"]
    if "noisy" in found and (few := [what for what, took in took_s.items() if len(took) * 2 < wanted]):
        return [f"times cannot be judged: other programs used the machine in most changes ({', '.join(few)}); run it again when it is calm"]
    slow = [
        f"{what}: neighbours' p99 was {phases[what]['p99_ms']} ms, {factor:.1f} times the quiet one of {phases['quiet']['p99_ms']}"
        for what in took_s
        if (factor := _factor(found, what)) is not None and factor > MOST_P99_FACTOR
    ]
    return slow + [
        f"{what}: took {max(took):.2f} s at most, {statistics.median(took):.2f} in the median"
        for what, took in took_s.items()
        if statistics.median(took) > MOST_SERVED_S
    ]


def _factor(found: dict[str, Any], what: str) -> float | None:
    """Return how many times the quiet p99 the neighbours' was during a change; None if that was not measured."""
    phase, quiet = found["phases"].get(what), found["phases"].get("quiet")
    return phase["p99_ms"] / quiet["p99_ms"] if phase and quiet and quiet["p99_ms"] else None


def page(found: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    options, requests = found["options"], found["requests"]
    lines = [
        f"# {options['mounts']} mounts in {options['workers']} workers, CPython {found['python']}, {found['cores']} cores",
        "",
        "**Good.**" if not found["faults"] else f"**Not good:** {len(found['faults'])} faults",
        *[f"- {fault.strip()[:1000]}" for fault in found["faults"][:20]],
        "",
        f"{requests.get('sent', 0)} requests sent, {requests.get('answered', 0)} answered, {requests.get('failed', 0)} failed, "
        f"{requests.get('retried', 0)} sent again on another connection. Load average {found['load average'][0]:.1f}.",
    ]
    if "compared" in found:
        noisy = ", ".join(f"{count} of {what!r}" for what, count in found["noisy"].items()) or "none"
        lines += [
            "",
            f"Interpreter, generation and counters of mounts that were not named were compared {found['compared']} times. "
            f"Changes left out below, as other programs used more than {CALM_CORES:g} of a core: {noisy}.",
        ]
    lines += [
        "",
        "| change | times | from the command to served in all: median, longest | neighbours' p50 and p99 meanwhile | times quiet p99 |",
        "|---|---:|---:|---:|---:|",
    ]
    for what in ("quiet", *found["took_s"]):
        took, factor = found["took_s"].get(what), _factor(found, what)
        times = f"{len(took)} | {statistics.median(took):.2f} s, {max(took):.2f} s" if took else "| "
        lines.append(f"| {what} | {times} | {_milliseconds(found['phases'].get(what))} | {f'{factor:.2f}' if factor else ''} |")
    if "end" in found:
        lines += ["", "| | once settled | at the end |", "|---|---:|---:|"]
        lines += [f"| {name} | {found['settled'][name]:g} | {found['end'][name]:g} |" for name in found["end"]]
    return "\n".join(lines)


def _milliseconds(phase: dict[str, float] | None) -> str:
    return f"{phase['p50_ms']} ms, {phase['p99_ms']} ms (of {phase['count']})" if phase else ""


def _say(text: str) -> None:
    print(f"applies: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
