"""Code that runs in a worker's spawner: the process that stays root to start the processes of mounts that have a user."""
