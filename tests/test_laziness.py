"""inside/laziness.py: the mode and the filter of lazy imports, in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isowsgi.shared import interpreters
from tests.conftest import ROOT

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


def run(code: str, *arguments: str, folder: Path) -> str:
    """Return what code prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={"PYTHONPATH": f"{ROOT}:{folder}"}, capture_output=True, text=True, check=True).stdout
