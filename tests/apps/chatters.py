"""Eight threads of a request say 150 lines each, by print, to sys.stderr and by logging, all at the same time."""

import logging
import sys
import threading

THREADS, LINES = 8, 150
SAY = (print, lambda line: sys.stderr.write(line + "\n"), logging.warning)


def application(environ, start_response):
    barrier = threading.Barrier(THREADS)

    def chatter(number):
        barrier.wait()
        for line in range(LINES):
            SAY[line % 3](f"line {number}.{line} " + str(number) * 300)

    threads = [threading.Thread(target=chatter, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
