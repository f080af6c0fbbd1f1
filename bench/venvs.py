"""The venvs that peers run from, made with tools/make_venv.py in .bench/, and what is in them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.linkage import linkage_of
from bench.peers import CHECKOUT, FRAMEWORKS, Peer

sys.path.insert(0, str(CHECKOUT / "tools"))

import make_venv
from make_venv import Failed as Failed  # it is this module's too
from make_venv import Progress, Venv

HOME = CHECKOUT / ".bench"

# Packages whose versions say what was measured.
_TOLD = {"isowsgi", "gunicorn", "werkzeug", "flask", "django", "granian", "uwsgi", "mod-wsgi"}

_VERSIONS = """
import importlib.metadata as m, json
print(json.dumps({d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions()}))
"""


def make_for(python: str, wanted: Sequence[Peer]) -> tuple[dict[str, Path], dict[str, str]]:
    """Make what is missing or out of date.

    Returns:
        The folder of each peer's venv and, for each peer that has none, why it cannot be measured.
    """
    skipped = {peer.name: reason for peer in wanted if (reason := peer.missing())}
    venvs = {}
    for peer in wanted:
        if peer.name not in skipped:
            contents = ", ".join(text for text in peer.requirements if text[0] not in "-/") or "this checkout"
            arguments = (*peer.requirements, *FRAMEWORKS)
            venvs[peer.venv] = Venv(folder=_folder(python) / peer.venv, arguments=arguments, contents=f"{contents}, Flask, Django")
    os.environ |= linkage_of(python).build_environ  # pip and its compilers inherit it
    failed: dict[str, str] = {}
    try:
        make_venv.make(python, list(venvs.values()), Progress(sys.stderr))
    except Failed:
        # One that cannot be built costs its own peers only. Those that were built are found up to date.
        for name, venv in venvs.items():
            try:
                make_venv.make(python, [venv], Progress(sys.stderr))
            except Failed as exc:
                failed[name] = reason_of(exc)
    skipped |= {peer.name: failed[peer.venv] for peer in wanted if peer.venv in failed}
    return {peer.name: venvs[peer.venv].folder for peer in wanted if peer.name not in skipped}, skipped


def reason_of(failure: Failed) -> str:
    """Return one line: of what pip and a compiler wrote, the first that speaks of an error tells most."""
    lines = [line.strip() for line in failure.output.splitlines()]
    telling = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)] or lines[-1:]
    return f"{failure}: {telling[0]}" if telling else str(failure)


def make_for_plots(python: str) -> Path:
    """Make a venv with matplotlib and return its Python; raises Failed."""
    venv = Venv(folder=_folder(python) / "plots", arguments=("matplotlib>=3.9",), contents="matplotlib")
    make_venv.make(python, [venv], Progress(sys.stderr))
    return venv.python


def versions(venv: Path) -> str:
    """Return what is in a venv as far as it is measured: "flask 3.1.3, gunicorn 27.0.1"."""
    found = json.loads(_said(venv / "bin" / "python", _VERSIONS))
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items()) if name in _TOLD)


def release(python: str) -> str:
    """Return a Python's version, "3.14.10"; raises Failed if it does not run."""
    return _said(python, "import platform; print(platform.python_version())")


def _folder(python: str) -> Path:
    return HOME / _said(python, "import sys; print('py%d.%d' % sys.version_info[:2])")


def _said(python: str | Path, code: str) -> str:
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as exc:
        raise Failed(f"expected a Python that runs, got {str(python)!r}: {exc}") from exc
