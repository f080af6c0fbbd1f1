"""What one Flask app costs, and of what: `python -m bench.footprint`. Needs Flask beside isowsgi, as the venv of `make bench` has.

Each figure is of a process of its own, and the least of some: memory that it alone has (Private_Dirty), and CPU time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from bench.peers import CHECKOUT, MODULES

_ROUNDS = 5

# What runs before the figure, and what the figure is of.
STEPS = {
    "a bare interpreter with its own GIL": ("import _interpreters", "_interpreters.create('isolated')"),
    "Flask, in a process": ("pass", "import flask_app; flask_app.create('app')"),
    "isowsgi and its parts of gunicorn, after Flask": ("import flask_app; flask_app.create('app')", "import isowsgi.inside.boot"),
    "a process with gunicorn and Flask": (
        "pass",
        "import gunicorn.app.wsgiapp, gunicorn.workers.gthread, flask_app; flask_app.create('app')",
    ),
}

_CHILD = """
import sys, time
sys.path[:0] = {paths!r}
def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_Dirty")) / 1024
{before}
memory, used = private(), time.process_time()
{what}
print(private() - memory, (time.process_time() - used) * 1000)
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    print("| what | MiB | CPU time, ms |\n|---|---:|---:|")
    for name, (before, what) in STEPS.items():
        code = _CHILD.format(paths=[str(CHECKOUT), str(MODULES)], before=before, what=what)
        rounds = []
        for _ in range(_ROUNDS):
            output = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
            rounds.append([float(figure) for figure in output.split()])
        memory, milliseconds = (min(figures) for figures in zip(*rounds, strict=True))
        print(f"| {name} | {memory:.1f} | {milliseconds:.0f} |")


if __name__ == "__main__":
    main()
