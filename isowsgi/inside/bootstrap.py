"""First code in a new interpreter or child process, run as its `__main__`: pin the server's packages, then boot, or fork those that do.

An app's venv may hold another gunicorn, or none. So the two packages that serve it always come from the host's folders, and nothing
else does. What serves is loaded where the app does not reach it, see `private`. `BOOT`, the boot order as JSON, is put before this source
by the keeper.
"""

import gc
import importlib.machinery
import importlib.util
import json
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    BOOT: str


# Not later, where imports are lazy (PEP 810): a finder that imports while it is asked for what it imports has no end.
find_in = importlib.machinery.PathFinder.find_spec
if hasattr(sys, "set_lazy_imports_filter"):
    sys.set_lazy_imports_filter(lambda importer, *_: not importer.startswith("isowsgi"))


class PinnedFinder:
    """Finds the host's copy of the packages that run here, before the path is looked at."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders  # top-level package: the folder that holds it

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        folder = self._folders.get(name)
        return find_in(name, [folder]) if folder else None


def load_private(folder: str) -> types.ModuleType:
    """Return the module by its file: it is not one of those that the app finds."""
    spec = importlib.util.spec_from_file_location("isowsgi.inside.private", f"{folder}/isowsgi/inside/private.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


facts = json.loads(BOOT)  # noqa: F821 # put before this source by the keeper
del BOOT  # noqa: F821
is_fork_server = "server" in facts  # its order has nothing of an app
host = facts if is_fork_server else facts["host"]
# What is imported stays, so to look for garbage among it, 17 times until all is there, is a sixth of that time for nothing.
collects = gc.isenabled() and not is_fork_server
if collects:
    gc.disable()
for blocked in host.get("blocked_modules", ()):
    sys.modules[blocked] = None  # type: ignore[assignment] # an import of it raises ImportError
sys.meta_path.insert(0, PinnedFinder(host["packages"]))
table = load_private(host["packages"]["isowsgi"]).build(host["packages"])
load = table.load
order = load("isowsgi.inside.forkserver").run(facts) if is_fork_server else None  # it returns in each process that it forks
if pause_s := order.loading.pause_s if order else facts["loading"]["pause_s"]:
    load("isowsgi.inside.pace").slow_down(pause_s)

order = order or load("isowsgi.shared.messages").read_boot_order(facts)
instance = load("isowsgi.inside.child" if order.isolation == "process" else "isowsgi.inside.boot")
del facts, host, load
if collects:
    gc.enable()
instance.run(order)
