"""The worker's end of the control socket: the server, and what each command does."""
