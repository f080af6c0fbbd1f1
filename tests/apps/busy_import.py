"""Computes while it is imported, for as many seconds as BUSY_S in its environment says."""

import os

from cpu import spin
from hello import application  # noqa: F401 # the app

spin(float(os.environ["BUSY_S"]))
