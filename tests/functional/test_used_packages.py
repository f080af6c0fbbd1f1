"""What packages hand out and what apps register with them stays each app's own. `make packages` tries many more, with reloads under way."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import whole_only
from tests.packages.run import use


@pytest.mark.slow
@whole_only("takes 10 s a package")
@pytest.mark.parametrize("name", ["flask", "psycopg2", "pillow", "psutil"])
def test_two_mounts_use_a_package_side_by_side(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec({"pillow": "PIL"}.get(name, name)) is None:
        pytest.skip(f"{name} is not installed")

    _, answered = use(name, None, tmp_path)

    assert answered
