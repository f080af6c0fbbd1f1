"""The command `isowsgi`, called in the process of the tests: one of its own takes 0.12 s of CPU time before it does anything.

What shows that the command is one, its entry point, its signals and its terminal, is tested with a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path

import pytest

from isowsgi.cli.main import main


def call(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Call the command as a shell that stands in a folder does. One at a time: the working directory is the process'.

    Args:
        env: added to its environment.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name, value in {"PWD": str(folder), **env}.items():
            patch.setenv(name, value)
        try:
            main.main(list(arguments), prog_name="isowsgi")
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else exc.code is not None
    return subprocess.CompletedProcess(["isowsgi", *arguments], code, out.getvalue(), err.getvalue())
