"""gunicorn's settings for deploy/systemd and deploy/nginx; install as /etc/isowsgi/gunicorn.conf.py.

What isowsgi makes of each of gunicorn's settings: docs/reference/gunicorn-settings.md.
"""

worker_class = "isowsgi.Worker"

# Which apps there are. This form also works with --check-config, which the systemd unit runs before each start and reload.
wsgi_app = 'isowsgi:config("/etc/isowsgi/isowsgi.toml")'

# For a start without systemd: a socket inherited from isowsgi.socket is used instead of this one.
bind = "unix:/run/isowsgi.sock"

# Each worker holds every mount, so memory is workers times mounts. On CPython 3.13.16, 3.14.1 or later the mounts run in parallel in
# one worker. A second worker is for one mount that needs more than one core, or for a spare: a crash ends all mounts of a worker.
workers = 1

# Threads of each mount that does not set its own in isowsgi.toml.
threads = 4

# Open connections of a worker, over all mounts. nginx needs one for each request at a time, and keeps some idle ones.
worker_connections = 1000

# Seconds that an idle connection stays open. Longer than nginx keeps one (60 s): whoever closes first must be nginx, or it may send a
# request into a connection that was just closed; and it repeats a GET then, but answers a POST with 502.
keepalive = 75

# Seconds that requests have to finish when the worker is stopped or replaced. Shorter than TimeoutStopSec in the systemd unit.
graceful_timeout = 30

# The worker's heartbeat is a file that it touches every second; on a disk that stalls it would seem dead.
worker_tmp_dir = "/dev/shm"

# gunicorn's control socket knows workers and not mounts, and the hardened unit has no place for it.
control_socket_disable = True

# The error log, which also has what the apps print, goes to the journal: journalctl -u isowsgi
errorlog = "-"
loglevel = "info"

# One file for all mounts, reopened on USR1 (deploy/logrotate). The client's address is in X-Forwarded-For: over a Unix socket the
# connection itself has none, and %(h)s is empty. At the end, the mount and which load of its app it was.
accesslog = "/var/log/isowsgi/access.log"
access_log_format = '%({x-forwarded-for}i)s %(t)s "%(r)s" %(s)s %(B)s %(M)sms "%(a)s" %({isowsgi.mount}e)s #%({isowsgi.generation}e)s'
