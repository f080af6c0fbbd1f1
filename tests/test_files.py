"""The watch over an app's files: each change is told once, and the next one too."""

import os
from pathlib import Path
from types import ModuleType

import pytest

from isowsgi.inside import files
from isowsgi.inside.files import FileWatch


def test_a_file_is_watched_on_after_its_first_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one save with a mistake nothing more was seen, so mending it changed nothing."""
    path = tmp_path / "watched.py"
    path.write_text("")
    module = ModuleType("watched")
    module.__file__ = str(path)
    monkeypatch.setitem(files._modules, "watched", module)
    watch = FileWatch({})
    assert watch.changed(0.0) is None

    for look in (2.0, 4.0):
        os.utime(path, (look, look))
        assert watch.changed(look) == str(path)
        assert watch.changed(look + 1.0) is None


def test_a_link_is_watched_on_after_it_leads_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "current"
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
    link.symlink_to(tmp_path / "1")
    watch = FileWatch({str(link): str(tmp_path / "1")})
    assert watch.changed(0.0) is None

    for look, name in ((2.0, "2"), (4.0, "3")):
        link.unlink()
        link.symlink_to(tmp_path / name)
        assert watch.changed(look) == str(link)
        assert watch.changed(look + 1.0) is None
