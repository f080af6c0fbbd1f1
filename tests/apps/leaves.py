"""Leaves something behind for the end of its interpreter; LEAVES in the mount's environment says what."""

import asyncio
import atexit
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hello import application as application

kept = []


def spin():
    while True:
        pass


def nap():
    while True:
        time.sleep(0.1)


def leave(what):
    if what == "sleeping daemon":
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    elif what == "busy daemon":
        threading.Thread(target=spin, daemon=True).start()
    elif what == "napping daemon":
        threading.Thread(target=nap, daemon=True).start()
    elif what == "helpers":
        from multiprocessing import forkserver, resource_tracker

        forkserver.ensure_running()
        resource_tracker.ensure_running()
    elif what == "thread":
        threading.Thread(target=time.sleep, args=(3600,)).start()
    elif what == "pool":
        kept.append(ThreadPoolExecutor(4))
        kept[0].submit(print, "from the pool").result()
    elif what == "loop":
        kept.append(asyncio.new_event_loop())
        kept[0].run_until_complete(asyncio.sleep(0))
    elif what == "database":
        kept.append(sqlite3.connect(":memory:"))
        kept.append(kept[0].execute("select 1 union select 2"))
        kept[1].fetchone()
    atexit.register(lambda: print("exit function of", what, "in", os.getpid()))


leave(os.environ["LEAVES"])
