"""Answers with all that a process finds around it at its start, as JSON; for comparing processes that were started in different ways."""

import _signal
import atexit
import ctypes
import gc
import json
import os
import random
import resource
import ssl
import sys
import threading
import time
import warnings

PR_GET_PDEATHSIG, PR_GET_NAME, PR_GET_NO_NEW_PRIVS, PR_GET_TIMERSLACK = 2, 16, 39, 30


def of_proc(name):
    with open(f"/proc/self/{name}", "rb") as file:
        return file.read().decode("utf-8", "replace")


def status(*names):
    lines = dict(line.split(":", 1) for line in of_proc("status").splitlines() if ":" in line)
    return {name: lines[name].strip() for name in names}


def descriptors():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append([os.readlink(f"/proc/self/fd/{name}").split(":")[0], os.get_inheritable(int(name))])
        except OSError:  # that of the folder itself
            continue
    return sorted(found)


def control(option):
    value = ctypes.c_int()
    if option == PR_GET_PDEATHSIG:
        ctypes.CDLL(None).prctl(option, ctypes.byref(value), 0, 0, 0)
        return value.value
    return ctypes.CDLL(None).prctl(option, 0, 0, 0, 0)


AT_IMPORT = {
    "environ": dict(os.environ),
    "first environ": of_proc("environ").split("\0"),
    "arguments": of_proc("cmdline").rstrip("\0").split("\0"),
    "comm": of_proc("comm"),
    "sys": {name: getattr(sys, name) for name in ("path", "prefix", "exec_prefix", "base_prefix", "executable", "argv", "orig_argv")},
    "flags": str(sys.flags),
    "xoptions": sorted(sys._xoptions),
    "finders": [str(getattr(finder, "__name__", type(finder).__name__)) for finder in sys.meta_path],
    "hooks": len(sys.path_hooks),
    "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits()],
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
    "handlers": [str(_signal.getsignal(number)).split(" at ")[0] for number in sorted(_signal.valid_signals())],
    "signals": status("SigBlk", "SigIgn", "SigCgt", "ShdPnd"),
    "credentials": status("Uid", "Gid", "Groups", "NoNewPrivs", "CapEff", "Seccomp"),
    "cgroup": of_proc("cgroup"),
    "oom": of_proc("oom_score_adj"),
    "rlimits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "affinity": sorted(os.sched_getaffinity(0)),
    "policy": os.sched_getscheduler(0),
    "pdeathsig": control(PR_GET_PDEATHSIG),
    "slack": control(PR_GET_TIMERSLACK),
    "cwd": os.getcwd(),
    "umask": [os.umask(0o22), os.umask(0o22)][0],
    "zone": list(time.tzname),
    "locale": __import__("locale").setlocale(__import__("locale").LC_ALL),
    "stdin": sys.stdin.read(),
    "streams": [str(each).split(" at ")[0] for each in (sys.__stdout__, sys.__stderr__, sys.__stdin__)],
    "descriptors": descriptors(),
    "threads": sorted(thread.name for thread in threading.enumerate()),
    "tasks": len(os.listdir("/proc/self/task")),
    "main thread": threading.main_thread().native_id == os.getpid(),
    "number in libc": ~(time.pthread_getcpuclockid(threading.main_thread().ident) >> 3) == os.getpid(),
    "filters": [str(each) for each in warnings.filters],
    "logging": [str(__import__("logging").getLogger().handlers), sorted(__import__("logging").root.manager.loggerDict)],
    "exit functions": atexit._ncallbacks(),
}
MODULES = sorted(name for name, module in sys.modules.items() if module is not None)
SECRETS = {"random": random.random(), "ssl": ssl.RAND_bytes(8).hex(), "urandom": os.urandom(8).hex()}
IDS = {"pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "session": os.getsid(0)}


def application(environ, start_response):
    text = json.dumps({"found": AT_IMPORT, "modules": MODULES, "secrets": SECRETS, "ids": IDS}).encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]
