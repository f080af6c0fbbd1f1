"""Where the command begins: it gives way to the apps that are served before it imports anything large."""

from __future__ import annotations

from isowsgi.shared import slices


def main() -> None:
    """Be the command `isowsgi`."""
    if not slices.is_filtered():
        slices.lengthen()
    from isowsgi.cli.main import main as command  # late: click, rich and attrs are most of what a command does

    command(prog_name="isowsgi")
