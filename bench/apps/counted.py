"""Apps that count the bytecode instructions that serving them takes in their interpreter; CPython 3.12 and later.

`/begin` starts counting, and `/end` answers with what was counted between each two marks: an event that comes once for each request.
"""

import json
import sys
from itertools import pairwise

import flask_app
import hello

TOOL = 4  # none of the numbers that have a name (sys.monitoring)


class Counter:
    """Counts by function, in all threads of this interpreter.

    What counts is quick, for a request that takes two milliseconds is another thread's to settle: that would be counted too.

    Args:
        mark: the function that is entered once for each request.
    """

    def __init__(self, mark):
        self.mark = mark
        self.counts = {}  # by the numbers of code objects: to hash one, CPython goes through all that is in it
        self.codes = {}
        self.marks = []

    def begin(self):
        self.counts.clear()
        self.marks.clear()
        counts, codes = self.counts, self.codes

        def on_instruction(code, offset):
            key = id(code)
            try:
                counts[key] += 1
            except KeyError:
                counts[key] = 1
                codes[key] = code

        events = sys.monitoring.events
        sys.monitoring.use_tool_id(TOOL, "counts")
        sys.monitoring.register_callback(TOOL, events.INSTRUCTION, on_instruction)
        sys.monitoring.register_callback(TOOL, events.PY_START, self.on_start)
        sys.monitoring.set_events(TOOL, events.INSTRUCTION | events.PY_START)

    def on_start(self, code, offset):
        if code.co_qualname == self.mark:
            self.marks.append(self.counts.copy())

    def end(self):
        """Return, for each request, how many instructions each function took; without the thread that looks after the serving ones."""
        sys.monitoring.set_events(TOOL, 0)
        sys.monitoring.free_tool_id(TOOL)
        requests = []
        for before, after in pairwise(self.marks):
            taken = {}
            for key, total in after.items():
                code, count = self.codes[key], total - before.get(key, 0)
                if count and not code.co_filename.endswith("/inside/controlthread.py"):
                    taken[f"{code.co_filename}:{code.co_qualname}"] = count
            requests.append(taken)
        return requests


def counted(app, mark):
    counter = Counter(mark)

    def entered(environ, start_response):
        return app(environ, start_response)

    def application(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/begin":
            counter.begin()
            body = b"counting"
        elif path == "/end":
            body = json.dumps(counter.end()).encode()
        else:
            return entered(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return application


hello_application = counted(hello.application, "counted.<locals>.entered")
flask_application = counted(flask_app.application, "counted.<locals>.entered")
# In the main interpreter, where the acceptor takes a new connection for each request.
acceptor = counted(hello.application, "Acceptor._take_new")
