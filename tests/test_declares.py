"""What an extension module declares is read from its file, and none that crashes takes the others' answers with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from isowsgi.isolation.check.declares import declared_by
from tests.orders import copy_extension


def declared(name: str, folder: Path) -> str:
    path = str(copy_extension(name, folder))
    return declared_by([path])[path]["interpreters"]


@pytest.mark.parametrize(
    ("name", "since", "word"),
    [
        ("_uuid", (3, 13), "own GIL"),
        ("xxlimited_35", (3, 11), "shared GIL"),
        ("_testsinglephase", (3, 13), "single-phase"),
        ("xxlimited", (3, 11), "shared GIL" if sys.version_info < (3, 12) else "own GIL"),
    ],
)
def test_what_it_says_of_interpreters(name: str, since: tuple[int, int], word: str, tmp_path: Path) -> None:
    if sys.version_info < since:
        pytest.skip(f"as it is since {since}")
    dynload = next(Path(path) for path in sys.path if path.endswith("lib-dynload"))
    if not list(dynload.glob(f"{name}.*")):
        pytest.skip("not in this build")

    assert declared(name, tmp_path) == word


def test_a_file_that_cannot_be_opened_is_unknown_and_the_others_are_not(tmp_path: Path) -> None:
    good = str(copy_extension("xxlimited", tmp_path))
    (tmp_path / "bad.so").write_text("no library")

    answers = declared_by([str(tmp_path / "bad.so"), good, str(tmp_path / "none.so")])

    assert [answers[path]["interpreters"] == "unknown" for path in answers] == [True, False, True]


def test_a_python_that_does_not_start_knows_nothing() -> None:
    assert declared_by(["/a.so", "/b.so"], "/none/such/python") == {
        "/a.so": {"interpreters": "unknown", "gil": "needed"},
        "/b.so": {"interpreters": "unknown", "gil": "needed"},
    }
