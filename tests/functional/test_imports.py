"""What was imported serves the same URLs as the original: one source of each kind here, all of them by `make imports`."""

from __future__ import annotations

import pytest

from tests.conftest import WHOLE
from tests.imports import sidebyside

SHORT = {"uwsgi": ["prefix.ini"], "apache": ["two-hosts.conf"], "unit": ["prefixes.json"]}


@pytest.mark.parametrize("kind", SHORT)
def test_the_imported_file_serves_the_same_urls(kind: str) -> None:
    """By the original server itself where it is on this machine; Unit's part is as its documentation has it."""
    try:
        compared = list(sidebyside.compare(kind, [] if WHOLE and kind == "unit" else SHORT[kind]))
    except sidebyside.CannotRun as exc:
        pytest.skip(str(exc))

    assert compared
    assert [each for each in compared if each[2] is not None] == []
