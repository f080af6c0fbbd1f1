"""`make soak`: one gunicorn under mixed load while its apps are reloaded, its workers replaced and its processes killed.

site.py      the gunicorn with its eight mounts, and its processes
apps/        what is served; content.py says what every app answers
wire.py      one connection of a client, and all that can go wrong on it
clients.py   the load: clients of all sorts, each of which checks what it gets
load.py      the process that they live in, as seen from outside and from inside
trouble.py   reloads, restarts and kills, and an account of them
mischief.py  has the hostile apps beside the good mounts play their tricks
samples.py   descriptors, threads and memory of each process, once in a while
logwatch.py  lines of gunicorn's log that should not be there
verdict.py   which failures a kill explains, and whether memory is flat (pure)
report.py    the report (pure); plot.py draws its plot, with matplotlib from a venv of its own
__main__.py  the command line

farm.py      another gunicorn, with as many mounts as wanted, whose table changes while it serves
applies.py   `make applies`: changes it by `isowsgi apply`, and judges what that does to the others
"""
