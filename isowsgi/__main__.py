"""`python -m isowsgi`, the command `isowsgi`."""

from isowsgi.cli.entry import main

main()
