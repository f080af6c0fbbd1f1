"""What runs in a worker's main interpreter: gunicorn's contract, the acceptor, the supervisor and its deployments."""
