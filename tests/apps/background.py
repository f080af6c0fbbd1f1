"""Starts a daemon thread when it is loaded, as error reporters and schedulers do; says what the thread has done."""

import queue
import threading

asked, answered = queue.Queue(), queue.Queue()


def work():
    while True:
        answered.put(f"{threading.current_thread().name}: {asked.get()}")


threading.Thread(target=work, name="background", daemon=True).start()


def application(environ, start_response):
    asked.put(environ["QUERY_STRING"])
    body = answered.get(timeout=30).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
