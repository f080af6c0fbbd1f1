"""Which of its walls an app has met, as far as errors and ends tell."""

from __future__ import annotations

import pytest

from isowsgi.worker.wallhints import may_be_memory, reached, refused

LIMITS = {"memory": 2.0**29, "files": 100.0, "file_size": 2.0**20, "processes": 64.0}
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        ("MemoryError", 'limits.memory = "512M"'),
        ("MemoryError: bad allocation", 'limits.memory = "512M"'),
        ("OSError: [Errno 24] Too many open files: '/dev/null'", "limits.files = 100"),
        ("OSError: [Errno 27] File too large", 'limits.file_size = "1M"'),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "limits.processes = 64"),
        ("RuntimeError: can't start new thread", "limits.processes = 64"),
        ("OSError: [Errno 2] No such file or directory", ""),
        ("app.MemoryErrors: 1", ""),
        ("ValueError: MemoryError", ""),
        ("", ""),
    ],
)
def test_an_error_that_a_limit_leads_to_names_it(error: str, limit: str) -> None:
    assert reached(error, LIMITS, NONE) == limit
    assert reached(error, {}, NONE) == ""


def test_in_a_control_group_a_lack_of_memory_is_another_one() -> None:
    grouped = frozenset({"memory", "processes"})

    assert reached("MemoryError", LIMITS, grouped) == ""
    assert reached("RuntimeError: can't start new thread", LIMITS, grouped) == "limits.processes = 64"
    assert may_be_memory("process was killed by SIGSEGV", LIMITS, grouped) == ""


def test_a_crash_of_c_code_may_be_a_lack_of_memory() -> None:
    assert may_be_memory("process was killed by SIGABRT while serving GET /", LIMITS, NONE) == 'limits.memory = "512M"'
    assert may_be_memory("process was killed by SIGKILL", LIMITS, NONE) == ""
    assert may_be_memory("process was killed by SIGABRT", {"files": 100.0}, NONE) == ""


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("PermissionError: [Errno 13] Permission denied: '/srv/shop/media/a'", "add it to sandbox.read, or its folder to sandbox.write"),
        ("PermissionError: [Errno 13] Permission denied", "add the port to sandbox.connect"),
        ("sqlite3.OperationalError: unable to open database file", "name the folder of the database in sandbox.write"),
        ("django.db.utils.OperationalError: attempt to write a readonly database", "name the folder"),
        ("sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) unable to open database file", "name the folder"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/srv'", ""),
    ],
)
def test_an_error_that_a_sandbox_leads_to_comes_with_what_to_add_to_it(error: str, advice: str) -> None:
    assert refused(error, True).startswith(advice)
    assert bool(refused(error, True)) == bool(advice)
    assert refused(error, False) == ""
