"""`python -m isowsgi`, the command `isowsgi`."""

from isowsgi.cli.main import main

main(prog_name="isowsgi")
