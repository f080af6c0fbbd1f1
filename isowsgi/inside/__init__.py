"""What runs in an app's interpreter: boot, environment, serving.

Imports the standard library, gunicorn's parser and logger, and isowsgi's two shared modules, nothing else: each mount pays for each
import, and what an app's venv holds must not matter here.
"""
