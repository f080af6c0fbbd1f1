"""docs/howto/migrate.md: each configuration on the page becomes what the page says, by the importer itself."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from isowsgi.importing import making
from tests.conftest import ROOT
from tests.test_docs import Block, blocks_of, in_folder, make_what_is_named

BLOCKS = list(blocks_of(ROOT / "docs/howto/migrate.md"))
SOURCES = [(block, after) for block, after in pairwise(BLOCKS) if block.mark.startswith("import ")]


@pytest.mark.parametrize(("source", "shown"), SOURCES, ids=lambda block: str(block))
def test_what_is_imported_is_what_the_page_shows(source: Block, shown: Block, tmp_path: Path) -> None:
    make_what_is_named(tmp_path, tomllib.loads(in_folder(shown.text, tmp_path)))
    path = tmp_path / source.mark.removeprefix("import ")
    path.write_text(re.sub(r"/srv\b", f"{tmp_path}/srv", source.text))
    made = making.make(str(path), str(tmp_path / "isowsgi.toml"), None, {})
    title, text = made.files[str(tmp_path / "isowsgi.toml")].split("\n", 1)

    assert title.startswith("# Made by isowsgi import from ")
    assert text.strip() == in_folder(shown.text, tmp_path).strip()


def test_the_page_shows_each_kind() -> None:
    assert [block.language for block, _ in SOURCES] == ["ini", "apache", "json"]
