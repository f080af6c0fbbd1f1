"""`make bench`: isowsgi beside other ways to serve several WSGI apps, on one machine, in one interleaved run.

peers.py      how each server is configured
server.py     one that runs: its processes, what they use, and their end
measure.py    load on it for some seconds, and the figures
scenarios.py  what is measured: loads, starts and memory (data)
rounds.py     the whole measurement, interleaved
results.py    medians, ratios and targets (pure)
report.py     the page in docs/ (pure); plots.py draws its plots, with matplotlib from a venv of its own
venvs.py      the venvs of all these; linkage.py helps to build servers that have Python inside
__main__.py   the command line and the result file
counts.py     instructions and system calls of a request, which do not depend on how busy the machine is
apps/         what is served
"""
