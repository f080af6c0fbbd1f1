"""The command: fuzz all targets, each in a process of its own."""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.fuzz import engine
from tests.fuzz.control import ControlTarget
from tests.fuzz.peeker import PeekerTarget
from tests.fuzz.plain import PlainTarget
from tests.fuzz.router import RouterTarget

TARGETS = {target.name: target for target in (PlainTarget, PeekerTarget, RouterTarget, ControlTarget)}


def fuzz(name: str, seconds: float, most: int | None, seed: int) -> int:
    """Fuzz one target here; print what came of it and return the exit code."""
    rng = random.Random(seed)
    target = TARGETS[name](rng)
    say = partial(print, f"{name}:", flush=True)
    try:
        figures = engine.run(target, rng, seconds=seconds, most=most, say=say)
        if figures.failure is None:
            say(f"{figures}; no failure")
            return 0
        case, why = figures.failure
        say(f"FAILED at input {figures.inputs:,} of seed {seed}: {case!r:.2000}\n{why}{name}: kept as {engine.save(target, case, why)}")
        return 1
    finally:
        target.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz what reads bytes of strangers. Ends with 1 at a failure."
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all of them if there is none")
    parser.add_argument("--minutes", type=float, default=1.0, help="in all")
    parser.add_argument("--inputs", type=int, help="of each target at most")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="the same one makes the same cases")
    parser.add_argument("--here", action="store_true", help="fuzz the one target in this process")
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"expected targets of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    if options.here:
        faulthandler.enable()
        return max(fuzz(name, options.minutes * 60, options.inputs, options.seed) for name in names)

    jobs = max(min(options.jobs, len(names)), 1)
    print(f"seed {options.seed}, {jobs} at a time", flush=True)

    def child(name: str) -> int:
        arguments = [name, "--here", "--seed", str(options.seed), "--minutes", str(options.minutes * jobs / len(names))]
        arguments += [] if options.inputs is None else ["--inputs", str(options.inputs)]
        status = subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments], check=False).returncode
        if status not in (0, 1):
            print(f"{name}: CRASHED with status {status}; seed {options.seed} makes it happen again", flush=True)
        return status

    with ThreadPoolExecutor(jobs) as pool:
        return int(any(list(pool.map(child, names))))


if __name__ == "__main__":
    sys.exit(main())
