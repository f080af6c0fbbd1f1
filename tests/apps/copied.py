"""An app whose processes may be copies of one that has loaded it; says what each has of its own and what of that one."""

import gc
import json
import logging
import os
import random
import signal
import socket
import ssl
import threading
import uuid

LOADED_BY = os.getpid()
IMPORTED_IN = threading.current_thread().name
COUNTER = []
logging.basicConfig(level=logging.INFO)
logging.info("loaded with PLACE=%s, umask %03o", os.environ.get("PLACE"), os.umask(0o027))
PAIR = socket.socketpair() if "PAIR" in os.environ else None
if "THREAD" in os.environ:
    threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
forks = []


def post_fork(info):
    COUNTER.append(info["forked"])
    forks.append(threading.current_thread().name)
    print("post_fork", sorted(info.items()))
    if os.path.exists(os.environ.get("FAIL", "")):
        raise RuntimeError("as it was told")


def create(name="app"):
    made_by = os.getpid()

    def application(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/crash":
            signal.raise_signal(signal.SIGSEGV)
        logging.info("asked for %s", path)
        start_response("200 OK", [("Content-Type", "application/json")])
        facts = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "loaded_by": LOADED_BY,
            "made_by": made_by,
            "post_fork": COUNTER,
            "forks": forks,
            "generation": environ["isowsgi.generation"],
            "collects": gc.isenabled(),
            "threads": sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith("isowsgi")),
            "secrets": [random.random(), ssl.RAND_bytes(8).hex(), str(uuid.uuid4())],
            "place": os.environ.get("PLACE"),
            "tmp": os.environ.get("TMPDIR"),
            "limits": open("/proc/self/limits").read() if "LIMITED" in os.environ else "",
        }
        return [json.dumps(facts).encode()]

    return application
