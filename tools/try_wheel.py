"""Test a wheel as its users get it: a fresh venv with the wheel alone, and the sdist's tests beside it, without the package's source.

try_wheel.py DIST     the folder with one wheel and one sdist
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import make_venv

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".release"

# A part that needs the package's data files, its command, its entry point and real servers, and none of its source.
TESTS = ("tests/test_routing.py", "tests/test_configuration.py", "tests/functional/test_serving.py", "tests/functional/test_status.py")

# What a user does first, by the names that the wheel installs.
COMMANDS = (("isowsgi", "--version"), ("gunicorn", "-k", "isowsgi.Worker", "--check-config", "isowsgi.toml"), ("isowsgi", "check"))
CONFIG = '[mounts]\n"/" = "wsgiref.simple_server:demo_app"\n"/-/isowsgi" = "isowsgi.status:application"\n'


def only(folder: Path, pattern: str) -> Path:
    """Return the one file of a kind.

    Raises:
        make_venv.Failed
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise make_venv.Failed(f"expected one {pattern} in {folder}, got {len(found)}")
    return found[0]


def lay_out(sdist: Path) -> Path:
    """Unpack the sdist and take the package's source away, so that only the wheel's can be imported; return the folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(FOLDER, filter="data")
    tree = only(FOLDER, "isowsgi-*")
    shutil.rmtree(tree / "isowsgi")
    return tree


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: try_wheel.py DIST", file=sys.stderr)
        return 2
    try:
        wheel, sdist = only(Path(arguments[0]), "*.whl"), only(Path(arguments[0]), "*.tar.gz")
        tree = lay_out(sdist)
        requirements = (str(wheel.absolute()), "pytest>=8", "pytest-xdist", "requests", "hypothesis")
        venv = make_venv.Venv(folder=FOLDER / "venv", arguments=requirements, contents=wheel.name)
        make_venv.make(sys.executable, [venv], make_venv.Progress(sys.stdout))
    except make_venv.Failed as exc:
        make_venv.fail("try_wheel", exc)
    # As from a shell in a user's folder: nothing of the checkout can be imported.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tree / "isowsgi.toml").write_text(CONFIG)
    for command in (*COMMANDS, ("pytest", "-q", "-n", "2", "-m", "not slow and not alone", *TESTS)):
        print("$", *command, flush=True)
        status = subprocess.run([venv.folder / "bin" / command[0], *command[1:]], cwd=tree, env=environ, check=False).returncode
        if status:
            print(f"try_wheel: {command[0]} ended with status {status}; its folder is {tree}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
