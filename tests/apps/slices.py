"""Tells how long the slices of its threads are: when it was loaded, of a thread that it started then, and of the one that serves."""

import ctypes
import json
import os
import struct
import threading

# The system call sched_getattr by machine.
NUMBER = {"x86_64": 315, "aarch64": 275, "riscv64": 275}.get(os.uname().machine, -1)


def slice_ns() -> int:
    """Return how long the slices of the calling thread are; 0 where the kernel does not say."""
    buffer = ctypes.create_string_buffer(48)
    if ctypes.CDLL(None).syscall(ctypes.c_long(NUMBER), 0, buffer, 48, 0):
        return 0
    found: int = struct.unpack("=IIQiIQQQ", buffer.raw)[5]
    return found


times = [slice_ns()]
thread = threading.Thread(target=lambda: times.append(slice_ns()))
thread.start()
thread.join()


def application(environ, start_response):
    body = json.dumps([*times, slice_ns()]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
