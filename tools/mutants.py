"""Mutation testing of the modules that decide: change one thing in a module's source, and see whether its tests notice.

    mutants.py                    list the modules, with their tests
    mutants.py routing peek       try every mutant of these

A mutant that survives is a line that no test holds: its change is shown. Some are equivalent, so a person judges them. Works on a copy in
.mutants, one mutant after the other; a module takes minutes, for each mutant runs the module's own tests.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".mutants"

# Module -> its file, and the tests that must notice. Values and rules only: a mutant of a loop or a lock would hang until its time is up.
MODULES = {
    "routing": ("isowsgi/shared/routing.py", "tests/test_routing.py"),
    "peek": ("isowsgi/shared/peek.py", "tests/test_peek.py"),
    "plain": ("isowsgi/inside/plainrequest.py", "tests/test_plain.py"),
    "handover": ("isowsgi/shared/handover.py", "tests/test_handover.py"),
    "decision": ("isowsgi/isolation/decision.py", "tests/test_decision.py"),
    "lifecycle": ("isowsgi/instances/lifecycle.py", "tests/test_lifecycle.py"),
    "deployment": ("isowsgi/worker/deployment.py", "tests/test_deployment.py"),
    "messages": ("isowsgi/shared/messages.py", "tests/test_messages.py"),
    "wire": ("isowsgi/shared/wire.py", "tests/test_messages.py"),
    "applied": ("isowsgi/shared/applied.py", "tests/test_applied.py"),
    "differences": ("isowsgi/configuration/differences.py", "tests/test_differences.py"),
    "change": ("isowsgi/worker/change.py", "tests/test_livetable.py"),
    "controlmessages": ("isowsgi/shared/controlmessages.py", "tests/test_controlmessages.py"),
}

# Seconds for the tests of one mutant; one that makes a loop endless is noticed by that.
TIMEOUT_S = 60


def cosmic_ray(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("cosmic-ray")), *arguments]
    return subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True).stdout


def places_of_annotations(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield where annotations begin and end, as line and column: they are never run, so a mutant of one is none."""
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            found = getattr(node, field, None)
            if found is not None:
                yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def survivors(session: str, source: str) -> tuple[int, list[str]]:
    """Return how many mutants there were, and the changes that no test noticed."""
    count, alive = 0, []
    spans = list(places_of_annotations(source))
    for line in cosmic_ray("dump", session).splitlines():
        item, result = json.loads(line)
        place = tuple(item["mutations"][0]["start_pos"])
        if result is None or any(begin <= place < end for begin, end in spans):
            continue
        count += 1
        if result["test_outcome"] == "survived":
            alive.append(result["diff"])
    return count, alive


def try_out(name: str) -> Iterator[str]:
    """Yield lines for people: what became of a module's mutants."""
    file, tests = MODULES[name]
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -p no:randomly {tests}"
    config = f'[cosmic-ray]\nmodule-path = "{file}"\ntimeout = {TIMEOUT_S:.1f}\nexcluded-modules = []\ntest-command = "{command}"\n'
    (FOLDER / f"{name}.toml").write_text(config + '[cosmic-ray.distributor]\nname = "local"\n')
    cosmic_ray("init", "--force", f"{name}.toml", f"{name}.sqlite")
    cosmic_ray("baseline", f"{name}.toml")
    cosmic_ray("exec", f"{name}.toml", f"{name}.sqlite")
    count, alive = survivors(f"{name}.sqlite", (ROOT / file).read_text())
    yield from alive
    yield f"{name}: {count - len(alive)} of {count} mutants noticed"


def main(arguments: Sequence[str]) -> int:
    unknown = [name for name in arguments if name not in MODULES]
    if unknown or not arguments:
        for name, (file, tests) in MODULES.items():
            print(f"{name:<12} {file:<34} {tests}")
        return 2 if unknown else 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for path in listed:
        if (ROOT / path).is_file():
            (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, FOLDER / path)
    for name in arguments:
        if not (FOLDER / MODULES[name][0]).exists():
            print(f"mutants: {name}: expected the file {MODULES[name][0]}", file=sys.stderr)
            return 2
        for line in try_out(name):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
