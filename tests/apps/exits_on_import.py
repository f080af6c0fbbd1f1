"""Ends its process, or so it thinks, when it is loaded."""

import sys

print("printed before the end", end="")
sys.exit("no database is configured")
