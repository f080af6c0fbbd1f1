"""inside/laziness.py: the mode and the filter of lazy imports, in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isowsgi.isolation import trial
from isowsgi.isolation.check import lazily
from isowsgi.isolation.trial import Outcome
from isowsgi.shared import interpreters
from isowsgi.shared.messages import BootOrder
from tests.conftest import DEADLINE_S, ROOT
from tests.orders import order_for, with_member

pytestmark = pytest.mark.skipif(interpreters.VERSION < (3, 15), reason="imports are lazy from Python 3.15 on")

FILES = {
    "shop/__init__.py": "from . import signals, views",
    "shop/signals.py": "",
    "shop/views.py": "from shop.forms.orders import Order",
    "shop/forms/__init__.py": "",
    "shop/forms/orders.py": "class Order: pass",
}

CODE = """
import json, sys
from isowsgi.inside import laziness
laziness.install(sys.argv[1] or None, sys.argv[2].split())
import colorsys, shop
shop.views
print(json.dumps([name for name in sorted(sys.modules) if name.startswith(("shop", "colorsys"))]))
"""


@pytest.mark.parametrize(
    ("mode", "eager", "loaded"),
    [
        ("all", "", ["shop", "shop.views"]),
        ("all", "shop.signals", ["shop", "shop.signals", "shop.views"]),
        ("all", "shop.sign colorsy", ["shop", "shop.views"]),
        ("all", "shop.forms colorsys", ["colorsys", "shop", "shop.forms", "shop.forms.orders", "shop.views"]),
        ("normal", "", ["colorsys", "shop", "shop.forms", "shop.forms.orders", "shop.signals", "shop.views"]),
        (None, "shop", ["colorsys", "shop", "shop.forms", "shop.forms.orders", "shop.signals", "shop.views"]),
    ],
)
def test_only_what_is_used_or_eager_is_loaded(mode: str | None, eager: str, loaded: list[str], tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert json.loads(run(CODE, mode or "", eager, folder=tmp_path)) == loaded


def test_the_filter_that_was_there_is_asked_first(tmp_path: Path) -> None:
    """It keeps our own modules as they are: there is one filter for an interpreter."""
    (tmp_path / "first.py").write_text("import colorsys, wave")
    (tmp_path / "second.py").write_text("import colorsys, wave")
    code = """
import sys
sys.set_lazy_imports_filter(lambda importer, *_: importer != "first")
from isowsgi.inside import laziness
laziness.install("all", ["wave"])
for name in ("second", "first"):
    __import__(name)
    print(sorted({"colorsys", "wave"} & {*sys.modules}))
"""

    assert run(code, folder=tmp_path).splitlines() == ["['wave']", "['colorsys', 'wave']"]


REGISTERED = """
import registry, plugin
def app(environ, start_response):
    if environ["PATH_INFO"] == "/raise":
        raise LookupError("as it was told")
    start_response("200 OK" if registry.NAMES else "500 Nothing is registered", [])
    return []
"""


@pytest.mark.parametrize(
    ("eager", "problem"),
    [(["plugin"], ""), ([], "'/x' of /tried is answered '500 Nothing is registered' with them, and '200 OK' without")],
)
def test_an_app_that_is_compared_is_asked_for_paths_both_ways(eager: list[str], problem: str, tmp_path: Path) -> None:
    """It registers something by an import, and works if that is said."""
    (tmp_path / "registry.py").write_text("NAMES = []")
    (tmp_path / "plugin.py").write_text("import registry\nregistry.NAMES.append('plugin')")
    order = with_member(order_for(tmp_path, REGISTERED, eager=eager), call="app")

    def load(order: BootOrder, what: str) -> Outcome:
        return trial.run(order, interpreters.best_isolation(), timeout_s=DEADLINE_S)

    found = lazily.compare(order, ["/x", "/raise"], load)

    assert (found.problem, found.eager) == (problem, tuple(eager))
    assert found.normal.answers == (("/tried", "/x", "200 OK"), ("/tried", "/raise", "LookupError: as it was told"))
    assert all(0 < side.load_s < DEADLINE_S and side.memory_mib > 1 for side in (found.normal, found.lazy))
    assert lazily.as_json(found)["all"]["answers"][1] == {"pattern": "/tried", "path": "/raise", "status": "LookupError: as it was told"}


def run(code: str, *arguments: str, folder: Path) -> str:
    """Return what code prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={"PYTHONPATH": f"{ROOT}:{folder}"}, capture_output=True, text=True, check=True).stdout
