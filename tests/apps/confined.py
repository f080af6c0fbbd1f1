"""Says as JSON what confines its process, and tries to take more than it may."""

import json
import os
import resource
import tempfile

KINDS = {
    "memory": resource.RLIMIT_DATA,
    "files": resource.RLIMIT_NOFILE,
    "file_size": resource.RLIMIT_FSIZE,
    "processes": resource.RLIMIT_NPROC,
}
AT_IMPORT = os.getcwd()


def facts():
    umask = os.umask(0)
    os.umask(umask)
    return {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "cwd at import": AT_IMPORT,
        "umask": f"{umask:03o}",
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "limits": {name: resource.getrlimit(kind) for name, kind in KINDS.items()},
    }


def memory():
    hoard = []
    while True:
        hoard.append(bytearray(33 * 2**20))  # larger than what glibc keeps for later (M_MMAP_THRESHOLD, mallopt(3))


def files():
    opened = []
    while True:
        opened.append(open(os.devnull, "rb"))


def file_size():
    with tempfile.TemporaryFile() as file:
        while True:
            file.write(bytes(2**16))


BOMBS = {"/memory": memory, "/files": files, "/file_size": file_size}


def application(environ, start_response):
    told = facts()
    if environ["QUERY_STRING"] == "uncaught":
        BOMBS[environ["PATH_INFO"]]()
    elif bomb := BOMBS.get(environ["PATH_INFO"]):
        try:
            bomb()
        except (MemoryError, OSError) as exc:
            told["error"] = f"{type(exc).__name__}: {getattr(exc, 'strerror', None) or exc}"
    body = json.dumps(told).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
