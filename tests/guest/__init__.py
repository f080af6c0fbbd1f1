"""Tests on a machine of its own, with systemd and control groups: `python -m tests.guest`, see `__main__`."""
