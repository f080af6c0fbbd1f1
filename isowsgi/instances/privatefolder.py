"""A folder for temporary files that is one process' alone: made before its start, and removed with all in it after its end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from isowsgi.shared.messages import BootOrder


@contextlib.contextmanager
def with_folder(order: BootOrder, remove: Callable[[str], object] = shutil.rmtree) -> Iterator[BootOrder]:
    """Yield the order with the folder in it, where it has a sandbox, and TMPDIR set to it unless the mount sets that itself.

    Args:
        remove: called with its path in the end.

    Raises:
        OSError: it cannot be made.
    """
    if order.walls is None or order.walls.sandbox is None or order.walls.user:  # the process of another user makes its own
        yield order
        return
    folder = tempfile.mkdtemp(prefix="isowsgi-")
    try:
        walls = order.walls.replace(sandbox=order.walls.sandbox.replace(tmp=folder))
        around = order.environment.replace(env={"TMPDIR": folder, **order.environment.env})
        yield order.replace(walls=walls, environment=around)
    finally:
        with contextlib.suppress(OSError, RecursionError):  # what an app has put there may be deep; RecursionError: up to 3.12
            remove(folder)
