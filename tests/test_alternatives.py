"""Advice is given for what refuses, and each piece of it has a source."""

from __future__ import annotations

import pytest

from isowsgi.isolation.check.alternatives import ALTERNATIVES, Alternative, advice_for


def test_advice_is_for_the_package_of_a_module() -> None:
    assert [alternative.package for alternative in advice_for(["psycopg2._psycopg", "sqlalchemy.util._collections_cy"])] == [
        "sqlalchemy",
        "psycopg2",
    ]
    assert advice_for(["psycopg2_other._c", "unheard_of"]) == []


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=lambda alternative: alternative.package)
def test_each_has_a_source(alternative: Alternative) -> None:
    assert alternative.source.startswith("https://")
    assert alternative.package.isidentifier()
