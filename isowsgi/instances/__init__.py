"""The host's side of an instance, one module for each isolation: in a worker, and in a trial."""
