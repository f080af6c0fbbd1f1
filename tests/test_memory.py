"""The worker's own memory, as it reads it."""

from __future__ import annotations

import resource

from isowsgi.worker.memory import rss_bytes


def test_memory_can_be_read_without_a_free_descriptor() -> None:
    """While an app had them all, the worker could write no report: "internal error"."""
    rss_bytes()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert rss_bytes() > 2**20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
