"""The patterns of included files are remembered for a start at which one is no TOML; a forged memory is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isowsgi import configuration
from isowsgi.configuration import Config, remembered

MAIN = 'include = "sites.d/*.toml"\n[mounts]\n"/" = "a"\n'
SITE = '[mounts]\n"/site" = "b"\n"example.com/caf\u00e9" = "b"\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOWSGI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(folder: Path, site: str, main: str = MAIN) -> Config:
    (folder / "sites.d").mkdir(exist_ok=True)
    (folder / "isowsgi.toml").write_text(main)
    (folder / "sites.d/site.toml").write_text(site)
    return configuration.load(folder / "isowsgi.toml")


def saved(folder: Path) -> Config:
    config = read(folder, SITE)
    assert remembered.save(config.path, remembered.patterns_of(config))
    return config


def test_a_file_that_is_no_toml_has_the_mounts_that_it_had_and_their_fault(tmp_path: Path, cache: Path) -> None:
    before = saved(tmp_path)

    config = remembered.with_remembered(read(tmp_path, "[broken"))

    assert [(each.pattern, each.host, each.prefix, each.number) for each in config.mounts] == [
        (each.pattern, each.host, each.prefix, each.number) for each in before.mounts
    ]
    assert not config.mounts[0].fault
    assert all("sites.d/site.toml: end of document" in each.fault for each in config.mounts[1:])


def test_what_another_file_has_now_is_its_own(tmp_path: Path, cache: Path) -> None:
    saved(tmp_path)

    config = remembered.with_remembered(read(tmp_path, "[broken", MAIN + '"/site" = "c"\n'))

    assert [(each.pattern, bool(each.fault)) for each in config.mounts] == [("/", False), ("/site", False), ("example.com/caf\u00e9", True)]


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 7}', '{"x": [["/a"]]}', "[" * 100_000])
def test_what_is_no_memory_is_ignored(tmp_path: Path, cache: Path, content: str) -> None:
    saved(tmp_path)
    [file] = cache.glob("*.patterns")
    file.write_text(content)

    assert len(remembered.with_remembered(read(tmp_path, "[broken")).mounts) == 1


def test_a_folder_that_others_may_write_to_is_not_believed(tmp_path: Path, cache: Path) -> None:
    config = saved(tmp_path)
    os.chmod(cache, 0o777)

    assert len(remembered.with_remembered(read(tmp_path, "[broken")).mounts) == 1
    assert not remembered.save(config.path, remembered.patterns_of(config))
