"""A small Django project, mounted twice with two Djangos: the venv of the mount decides which one it imports."""
