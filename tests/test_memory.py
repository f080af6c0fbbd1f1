"""The worker's own memory, as it reads it."""

from __future__ import annotations

import os
import resource

import pytest

from isowsgi.worker.processmemory import _statm, rss_bytes


def test_memory_can_be_read_without_a_free_descriptor() -> None:
    """While an app had them all, the worker could write no report: "internal error"."""
    rss_bytes()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert rss_bytes() > 2**20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("other", [None, "/dev/null", "/etc/passwd"])
def test_memory_can_be_read_after_an_app_has_closed_the_descriptor(other: str | None) -> None:
    """One app that closed a number twice, and the status page stood still for as long as the worker lived."""
    rss_bytes()
    number = _statm(os.getpid())
    os.close(number)
    if other is not None:
        file = os.open(other, os.O_RDONLY)
        os.dup2(file, number)
        if file != number:
            os.close(file)

    assert rss_bytes() > 2**20
    assert rss_bytes() > 2**20
    if other is not None:
        os.close(number)
