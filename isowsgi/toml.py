"""Makes `gunicorn --check-config isowsgi.toml` check that file.

gunicorn imports APP_MODULE for --check-config, and "isowsgi.toml" reads as this module of this package. For a file of another name or
in another folder write 'isowsgi:config("path/x.toml")'.
"""

from isowsgi import config

application = config("isowsgi.toml")
