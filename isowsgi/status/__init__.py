"""The status page, an app like any other: `"/-/isowsgi" = "isowsgi.status:application"`.

In its own interpreter, so that it neither disturbs the apps nor brings its packages into the main interpreter. It reads the
scoreboard's memory, changes nothing, and answers for all workers, whichever of them it runs in.
"""

from isowsgi.status.app import application as application
