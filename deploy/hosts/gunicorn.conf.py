"""gunicorn's settings of a host behind a balancer on another one; install as /etc/isowsgi/gunicorn.conf.py.

What isowsgi makes of each of gunicorn's settings: docs/reference/gunicorn-settings.md.
"""

worker_class = "isowsgi.Worker"
wsgi_app = 'isowsgi:config("/etc/isowsgi/isowsgi.toml")'

# The address in the balancers' network. No client may reach it: what it says of X-Forwarded-For and -Proto would be believed.
bind = "10.0.0.11:8000"

# The balancers, whose X-Forwarded-Proto says whether a client came by https.
forwarded_allow_ips = "10.0.0.2,10.0.0.3"

# With `isowsgi export haproxy --proxy-protocol`, so that REMOTE_ADDR is the client's:
# proxy_protocol = True
# proxy_allow_ips = "10.0.0.2,10.0.0.3"

workers = 1
threads = 4
worker_connections = 1000

# Seconds that an idle connection stays open: longer than the balancers keep one (60 s), so that it is they who close it. Whoever sends a
# request on a connection that the other side closes at that moment cannot know whether it was begun.
keepalive = 75

# Seconds that a stop may take: `lame_duck` in isowsgi.toml, and after it what requests need to finish. Shorter than TimeoutStopSec in the
# systemd unit.
graceful_timeout = 38

worker_tmp_dir = "/dev/shm"
control_socket_disable = True
errorlog = "-"
accesslog = "/var/log/isowsgi/access.log"
access_log_format = '%({x-forwarded-for}i)s %(t)s "%(r)s" %(s)s %(B)s %(M)sms "%(a)s" %({isowsgi.mount}e)s #%({isowsgi.generation}e)s'
