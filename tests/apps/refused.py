"""Fails as a package does whose extension module refuses this interpreter: with an error of its own around the refusal in $REFUSAL."""

import os

try:
    raise ImportError(os.environ["REFUSAL"])
except ImportError as exc:
    raise ImportError("cannot import a required dependency") from exc
