"""Boot orders as a worker would write them, and extension modules to try them with."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gunicorn.config import Config

from isowsgi import configuration
from isowsgi.configuration import App, Mount, crossing
from isowsgi.instances.bootorder import BootOrders
from isowsgi.shared.messages import BootOrder, Descriptors

WSGI = "\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"


# An extension module of the standard library that refuses an own GIL on 3.13 and later, and shares nothing where GILs are shared.
REFUSES_OWN_GIL = "_xxtestfuzz"


def order_for(folder: Path, code: str, *, warmup: str | None = None, **changes: Any) -> BootOrder:
    """Write a module and return the order for a mount with it; nothing else is on the mount's own path.

    Args:
        code: of the module; what it needs of WSGI is appended.
        changes: other values, see `with_values`.
    """
    (folder / "tried.py").write_text(textwrap.dedent(code) + WSGI)
    config = folder / "isowsgi.toml"
    config.write_text(f'[mounts]\n"/tried" = {{ app = "tried", pythonpath = ["{folder}"], threads = 2 }}\n')
    [mount] = configuration.load(config).mounts
    order = any_orders([mount]).write([mount], mount.isolation, 0, 0, 0)
    return with_member(with_values(order, **changes), warmup=warmup)


def any_order(isolation: str = "own-gil", first_row: int = 1, fds: Descriptors | None = None, **changes: Any) -> BootOrder:
    """Return the order for a mount "/a" whose app nobody loads; `changes` as of `with_values`."""
    mount = Mount(pattern="/a", prefix="/a", app=App(kind="module", target="tried", call="application"))
    order = any_orders([mount]).write([mount], isolation, 0, 1, first_row)
    return with_values(order.replace(fds=fds), **changes)


def any_orders(mounts: Sequence[Mount]) -> BootOrders:
    return BootOrders(crossing.snapshot(Config()), Config(), [], report_files=False)


def with_values(order: BootOrder, **changes: Any) -> BootOrder:
    """Return an order with other values, each in the part that has a field of that name."""
    for name, value in changes.items():
        parts = [part for part in ("host", "environment", "loading", "serving", "place") if name in getattr(order, part).fields]
        [part] = parts or [""]
        order = order.replace(**({part: getattr(order, part).replace(**{name: value})} if part else {name: value}))
    return order


def with_member(order: BootOrder, **changes: Any) -> BootOrder:
    """Return an order whose only member has other values; "target" and "call" are its app's."""
    [member] = order.members
    app = member.app.replace(**{key: changes.pop(key) for key in ("target", "call") if key in changes})
    return order.replace(members=[member.replace(**changes, app=app)])


def copy_extension(name: str, folder: Path) -> Path:
    """Copy an extension module of the standard library, which then counts as a package's."""
    dynload = next(Path(path) for path in sys.path if path.endswith("lib-dynload"))
    [source] = dynload.glob(f"{name}.*")
    return Path(shutil.copy(source, folder))
