"""Static files, an app like any other: what `static` in a config file becomes.

In an interpreter that all static files of a worker share, so that they cost the apps no thread and are served while an app loads or is
stuck, and the main interpreter imports nothing for them.
"""

from isowsgi.files.app import folder as folder
