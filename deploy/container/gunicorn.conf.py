"""gunicorn's settings in a container; the same in deploy/container and in deploy/kubernetes."""

worker_class = "isowsgi.Worker"
wsgi_app = 'isowsgi:config("/etc/isowsgi/isowsgi.toml")'
bind = "0.0.0.0:8000"

# There are more containers, or pods, where more is needed. A second worker would hold every app once more.
workers = 1
threads = 4

# Idle connections of the proxy stay open longer here than there: whoever closes first must be the proxy.
keepalive = 75

# lame_duck of isowsgi.toml, and what requests may take after that. Shorter than the container has to stop:
# `--stop-timeout`, or terminationGracePeriodSeconds of the Deployment.
graceful_timeout = 40

worker_tmp_dir = "/dev/shm"
control_socket_disable = True
errorlog = "-"
accesslog = "-"
