"""The page on the command line says what the commands' help says."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_the_page_on_the_command_line_is_up_to_date() -> None:
    checked = subprocess.run([sys.executable, str(ROOT / "tools" / "cli_page.py"), "--check"], capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
