"""`python -m isowsgi` is the command `isowsgi`."""

from isowsgi.cli import main

main(prog_name="isowsgi")
