"""Boot orders as a worker would write them, and extension modules to try them with."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from gunicorn.config import Config

from isowsgi import configuration
from isowsgi.configuration import gunicorn_settings
from isowsgi.instances.bootorder import Orders
from isowsgi.shared.routing import Route, Router

WSGI = "\ndef application(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"


# An extension module of the standard library that refuses an own GIL on 3.13 and later, and shares nothing where GILs are shared.
REFUSES_OWN_GIL = "_xxtestfuzz"


def order_for(folder: Path, code: str, **mount: Any) -> dict[str, Any]:
    """Write a module and return the order for a mount with it; nothing else is on the mount's own path.

    Args:
        code: of the module; what it needs of WSGI is appended.
        mount: more of the order; "warmup" is its only member's.
    """
    (folder / "tried.py").write_text(textwrap.dedent(code) + WSGI)
    config = folder / "isowsgi.toml"
    config.write_text(f'[mounts]\n"/tried" = {{ app = "tried", pythonpath = ["{folder}"], threads = 2 }}\n')
    mounts = configuration.load(config).mounts
    router = Router(Route(number, each.host, each.prefix) for number, each in enumerate(mounts))
    orders = Orders(router, gunicorn_settings.snapshot(Config()), Config(), [], report_files=False)
    order = {**orders.write([(0, mounts[0])], mounts[0].isolation, 0, 0, 0), **mount}
    return with_member(order, warmup=order.pop("warmup", None))


def with_member(order: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return an order whose only member has other values; "target" and "call" are its app's."""
    [member] = order["members"]
    app = {**member["app"], **{key: changes.pop(key) for key in ("target", "call") if key in changes}}
    return {**order, "members": [{**member, **changes, "app": app}]}


def copy_extension(name: str, folder: Path) -> Path:
    """Copy an extension module of the standard library, which then counts as a package's."""
    dynload = next(Path(path) for path in sys.path if path.endswith("lib-dynload"))
    [source] = dynload.glob(f"{name}.*")
    return Path(shutil.copy(source, folder))
