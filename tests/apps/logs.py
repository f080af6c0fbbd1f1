"""Logs an exception by its own logging, and prints one; with a priority for each."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

logging.basicConfig(format="%(message)s", level=logging.INFO)


def application(environ: Any, start_response: Any) -> list[bytes]:
    try:
        raise KeyError("sku")
    except KeyError:
        logging.getLogger("shop").critical("no stock", exc_info=True)
        traceback.print_exc()
    print("to standard output")
    sys.stderr.write("to standard error\n")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
