"""Where the command begins: it gives way to the apps that are served before it imports anything large."""

from __future__ import annotations

import gc

from isowsgi.shared import slices

# New objects until the garbage collector looks at them: more than a command makes while it is imported, and what is imported stays.
_GARBAGE_OBJECTS = 100_000


def main() -> None:
    """Be the command `isowsgi`."""
    if not slices.is_filtered():
        slices.lengthen()
    gc.set_threshold(_GARBAGE_OBJECTS)
    from isowsgi.cli.main import main as command  # late: click, rich and attrs are most of what a command does

    command(prog_name="isowsgi")
