"""The command `isowsgi`: the operator's end of the control socket, and `isowsgi check`."""
