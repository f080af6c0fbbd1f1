"""Fuzzing of what reads bytes of strangers: `make fuzz MINUTES=1`, or `python -m tests.fuzz --help`.

Four targets, each with its own oracle: the fast path (`plainrequest`), the peeker, the router, the control protocol. Cases are changed
copies of golden requests, or made up; from Python 3.12 on those that reach new lines of code are kept and changed further. A case that
fails is a file in `found/`, which tests/test_fuzz.py replays from then on.
"""
