"""Run the code on standard input in a new interpreter of this process: `python -m tests.in_interpreter < code`.

The code finds `environment` (isowsgi's module), `json`, `os`, `sys` and `tell(value)`. Printed is one JSON text: what was told, and the
environment of the process afterwards, as the main interpreter and as C see it.
"""

import ctypes
import faulthandler
import json
import os
import sys
import threading

from isowsgi.shared import interpreters

_PRELUDE = """
import json, os, sys
sys.path.insert(0, {root!r})
from isowsgi.inside import environment
def tell(value):
    os.write({result}, json.dumps(value).encode() + b"\\n")
"""


# Threads that the code started, asyncio's that waits for a child among them, may be on their way out yet. An interpreter with one cannot
# be destroyed; on 3.11 that ends the process.
_EPILOGUE = """
import _thread, threading, time
for thread in threading.enumerate():
    if thread is not threading.current_thread() and thread is not threading.main_thread():
        thread.join(30)
while _thread._count():
    time.sleep(0.001)
"""

# After so many seconds something hangs; the stacks say what. Less than the test that started this process waits.
_HANGS_S = 60.0


def main() -> None:
    faulthandler.dump_traceback_later(_HANGS_S, exit=True)
    reader, writer = os.pipe()
    source = _PRELUDE.format(root=os.getcwd(), result=writer) + sys.stdin.read() + _EPILOGUE
    failures = []

    def keep() -> None:
        handle = interpreters.create(interpreters.best_isolation())
        failures.append(interpreters.run(handle, source))
        interpreters.destroy(handle)

    interpreters.preload()
    keeper = threading.Thread(target=keep)
    keeper.start()
    keeper.join()
    if failures != [None]:
        sys.exit(str(*failures))
    os.close(writer)
    with open(reader) as lines:
        told = [json.loads(line) for line in lines]
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    names = ("PROCESS", "MOUNT", "APP", "VIRTUAL_ENV")
    values_in_c = {name: (getenv(name.encode()) or b"").decode() or None for name in names}
    print(json.dumps({"told": told, "python": {name: os.environ.get(name) for name in names}, "c": values_in_c}))


if __name__ == "__main__":
    main()
