"""What `preload = "auto"` takes from what processes say: what two have told of and a venv really has, and nothing else."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from isowsgi.instances.preloads import Preloads
from isowsgi.shared.messages import BootOrder
from tests.orders import any_order

PACKAGES = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A venv with two packages, one of which has a command, and with a link that leads out of it."""
    packages = tmp_path / "venv" / PACKAGES
    for name in ("heavy/__init__", "heavy/part", "heavy/__main__", "light", "gunicorn/__init__"):
        file = packages / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (packages / "plain").mkdir()
    (packages / "plain/inner.py").touch()
    (packages / "quick.cpython-314-x86_64-linux-gnu.so").touch()
    (tmp_path / "app").mkdir()
    (tmp_path / "app/evil.py").touch()
    (packages / "evil.py").symlink_to(tmp_path / "app/evil.py")
    return tmp_path / "venv"


@pytest.fixture
def preloads(tmp_path: Path) -> Preloads:
    return Preloads(str(tmp_path / "cache"))


def of_mount(venv: Path, name: str = "/a", slot: int = 0) -> BootOrder:
    order = any_order()
    return order.replace(name=name, slot=slot, environment=order.environment.replace(venv=str(venv), learns=True))


def learn(preloads: Preloads, venv: Path, *modules: str) -> None:
    for name in ("/a", "/b"):
        preloads.learn(sys.executable, of_mount(venv, name), modules)


def known(preloads: Preloads, venv: Path) -> list[str]:
    return list(preloads.of(sys.executable, of_mount(venv)))


def test_a_module_counts_once_two_mounts_or_two_copies_have_told_of_it(preloads: Preloads, venv: Path) -> None:
    for _ in range(2):  # its generations are not two
        assert not preloads.learn(sys.executable, of_mount(venv), ["heavy", "light"])
    assert known(preloads, venv) == []

    assert preloads.learn(sys.executable, of_mount(venv, slot=1), ["heavy"])
    assert known(preloads, venv) == ["heavy"]

    assert preloads.learn(sys.executable, of_mount(venv, name="/b"), ["light"])
    assert known(preloads, venv) == ["heavy", "light"]


def test_gunicorns_own_packages_are_learnt_though_not_each_folder_of_theirs_is_there(preloads: Preloads, venv: Path) -> None:
    """As on Debian, whose Python names three that a venv does not have: nothing was learnt."""
    order = of_mount(venv)
    host = order.host.replace(site=[str(venv / PACKAGES), str(venv / "local/dist-packages")])
    order = order.replace(host=host, environment=order.environment.replace(venv=None))
    for name in ("/a", "/b"):
        preloads.learn(sys.executable, order.replace(name=name), ["heavy"])

    assert preloads.of(sys.executable, order) == ("heavy",)
    assert preloads.of("/another/python", order) == ()  # its packages are elsewhere


def test_modules_are_imported_in_the_order_in_which_the_first_app_did(preloads: Preloads, venv: Path) -> None:
    preloads.learn(sys.executable, of_mount(venv, "/a"), ["quick", "heavy.part", "heavy", "light"])
    preloads.learn(sys.executable, of_mount(venv, "/b"), ["light", "heavy", "heavy.part", "quick"])

    assert known(preloads, venv) == ["quick", "heavy.part", "heavy", "light"]


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "heavy.missing",
        "light.part",  # no package
        "evil",  # a link out of the venv
        "plain.inner",  # an app's folder may have another part of a namespace
        "heavy.__main__",  # would run a command
        "gunicorn",
        "isowsgi.toml",
        "tried",  # the mounts' own
        "os",
        "..heavy",
        "heavy/part",
        "../app/evil",
        "",
        "h\u00e9avy",
        "x" * 200,
    ],
)
def test_what_the_venv_does_not_have_is_not_imported_whoever_tells_of_it(preloads: Preloads, venv: Path, name: str) -> None:
    """Neighbours would run code of the app's that has named it."""
    (venv / PACKAGES / "tried.py").touch()

    learn(preloads, venv, name, "heavy")

    assert known(preloads, venv) == ["heavy"]


def test_what_is_told_of_is_bounded(preloads: Preloads, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isowsgi.instances.preloads.MOST_MODULES", 100)

    learn(preloads, venv, *(f"made_up_{number}" for number in range(200)))

    assert [len(each.told) for each in preloads._venvs.values()] == [100]


def test_a_few_modules_more_are_not_worth_another_server(preloads: Preloads, venv: Path) -> None:
    modules = [f"m{number}" for number in range(20)]
    for name in modules:
        (venv / PACKAGES / f"{name}.py").touch()
    learn(preloads, venv, *modules[:10])
    assert len(known(preloads, venv)) == 10

    learn(preloads, venv, *modules[:12])
    assert len(known(preloads, venv)) == 10

    learn(preloads, venv, *modules[:16])
    assert len(known(preloads, venv)) == 16


def test_it_is_remembered_as_long_as_the_venv_is_as_it_was(preloads: Preloads, venv: Path, tmp_path: Path) -> None:
    learn(preloads, venv, "heavy", "light", "quick")
    preloads.drop(sys.executable, str(venv), ["light"])
    assert not preloads.save(sys.executable, of_mount(venv))  # as that did already

    again = Preloads(str(tmp_path / "cache"))
    assert known(again, venv) == ["heavy", "quick"]
    learn(again, venv, "light")
    assert known(again, venv) == ["heavy", "quick"]

    os.utime(venv / PACKAGES, ns=(1, 1))
    assert known(again, venv) == ["light"]  # an upgrade may have mended it; what is on disk was the old one's
    assert known(Preloads(str(tmp_path / "cache")), venv) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"stamp": null}', '{"stamp": STAMP, "modules": 7, "dropped": []}', '{"stamp": STAMP, "modules": [7, "../evil"]}'],
)
def test_a_file_that_makes_no_sense_is_as_none(preloads: Preloads, venv: Path, tmp_path: Path, content: str) -> None:
    learn(preloads, venv, "heavy")
    assert preloads.save(sys.executable, of_mount(venv))
    [file] = (tmp_path / "cache").iterdir()
    file.write_text(content.replace("STAMP", json.dumps(json.loads(file.read_text())["stamp"])))

    assert known(Preloads(str(tmp_path / "cache")), venv) == []


def test_a_folder_that_others_may_write_to_is_not_believed(preloads: Preloads, venv: Path, tmp_path: Path) -> None:
    learn(preloads, venv, "heavy")
    assert preloads.save(sys.executable, of_mount(venv))
    (tmp_path / "cache").chmod(0o777)

    assert known(Preloads(str(tmp_path / "cache")), venv) == []
