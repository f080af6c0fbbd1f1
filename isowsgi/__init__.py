"""isowsgi: many WSGI apps in one gunicorn worker, each in an interpreter of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from isowsgi.worker.gunicorn import Worker as Worker
    from isowsgi.worker.gunicorn import config as config

__all__ = ["Worker", "__version__", "config"]


def __getattr__(name: str) -> Any:
    # Late, since every interpreter imports this package, and an app's must not pay for the worker's imports (nor find attrs there).
    if name in ("Worker", "config"):
        from isowsgi.shared import gunicorn_parts

        gunicorn_parts.require()  # before the worker's own imports, which would fail with a traceback
        from isowsgi.worker import gunicorn as worker

        return getattr(worker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
