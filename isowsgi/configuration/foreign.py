"""What other servers call their settings, and what that is here: for those who write the word they know."""

from __future__ import annotations

# By the key of a mount as it is written, in lower case and with "_" for "-".
_KEYS = {
    # gunicorn
    "timeout": "'request_timeout' (seconds without progress); gunicorn's `timeout` is the worker's",
    "graceful_timeout": "it is gunicorn's and the same for all mounts: set `graceful_timeout` in its conf file",
    "keepalive": "it is gunicorn's and the same for all mounts: set `keepalive` in its conf file",
    "workers": "'instances' (copies of the app in each worker); the number of workers is gunicorn's `workers`",
    "bind": "gunicorn's `bind` says where it listens; a mount's host is in its pattern, as in \"shop.example.com/\"",
    "chdir": "'working_directory', for a process of its own; others have gunicorn's `chdir`. For imports use 'pythonpath'",
    "reload": "'watch = true'",
    "errorlog": "'log'",
    "raw_env": "'env', a table: env = { NAME = \"value\" }",
    "wsgi_app": "'app'",
    "uid": '\'user\', as in user = "shop" or "shop:www-data", for a process of its own',
    "gid": "'user', as in user = \"shop:www-data\", for a process of its own",
    # uWSGI
    "processes": "'instances' (copies of the app in each worker); the number of workers is gunicorn's `workers`",
    "module": "'app', as in app = \"shop.wsgi:application\"",
    "callable": "'app', as in app = \"shop.wsgi:application\": the callable stands after the colon",
    "wsgi_file": "'app', as in app = \"shop/app.wsgi\"",
    "file": "'app', as in app = \"shop/app.wsgi\"",
    "wsgi": "'app', as in app = \"shop.wsgi:application\"",
    "home": "'venv'",
    "virtualenv": "'venv'",
    "pyhome": "'venv'",
    "harakiri": "'request_timeout' (seconds without progress)",
    "socket": "gunicorn's `bind` says where it listens",
    "http": "gunicorn's `bind` says where it listens",
    "http_socket": "gunicorn's `bind` says where it listens",
    "listen": "gunicorn's `backlog`",
    "logto": "'log'",
    "touch_reload": "'touch'",
    "py_autoreload": "'watch = true'",
    "cheap": "'lazy = true' with 'idle_timeout'",
    "idle": "'idle_timeout'",
    "buffer_size": "gunicorn's `limit_request_line` and `limit_request_field_size`",
    "max_worker_lifetime": "'max_age'",
    "reload_on_rss": "'max_rss' in [worker], for the whole worker",
    "limit_as": "'limits', as in limits = { memory = \"512M\" }, for a process of its own",
    "cpu_priority": "'nice', for a process of its own",
    "memory_limit": "'limits', as in limits = { memory = \"512M\" }, for a process of its own",
    "memory_max": "'limits', as in limits = { memory = \"512M\" }, for a process of its own",
    "limit_nofile": "'limits', as in limits = { files = 1024 }, for a process of its own",
    "limit_fsize": "'limits', as in limits = { file_size = \"1G\" }, for a process of its own",
    # mod_wsgi
    "python_home": "'venv'",
    "home_directory": "'working_directory', for a process of its own; others have gunicorn's `chdir`. For imports use 'pythonpath'",
    "display_name": "the mount's pattern names it in the log",
    "request_time": "'request_timeout' (seconds without progress)",
    "inactivity_timeout": "'idle_timeout'",
    "maximum_requests": "'max_requests'",
    "startup_timeout": "'boot_timeout'",
    "queue_size": "'queue'",
    "wsgiscriptalias": 'the key of a mount is its URL: "/blog" = "blog.wsgi"',
    # Unit
    "path": "'pythonpath'",
    "environment": "'env'",
    "prefix": 'the key of a mount is its URL: "/blog" = { ... }',
    "url": 'the key of a mount is its URL: "/blog" = { ... }',
    # What a proxy does.
    "static_map": '\'static\', a table: static = { "/static" = "folder" }',
    "share": "'static', in place of an app",
    "document_root": "'static', in place of an app",
    "root": "'static' for files; where an app's code lies is 'pythonpath'",
    "ssl": "TLS is for all mounts: gunicorn's `certfile` and `keyfile`",
    "certfile": "TLS is for all mounts: gunicorn's `certfile` and `keyfile`",
    "host": "the key of a mount is its host and path: \"shop.example.com/\" = { ... }; more hosts are 'hosts'",
    "server_name": "the key of a mount is its host and path: \"shop.example.com/\" = { ... }; more hosts are 'hosts'",
    "alias": "'hosts'",
    "aliases": "'hosts'",
    "server_alias": "'hosts'",
    "redirect": "a mount has either 'app' or 'redirect'",
    "target": "'app', or 'redirect' in its place",
}


def meaning(key: str) -> str | None:
    """Return what an unknown key of a mount is called here, or where else it is set."""
    return _KEYS.get(key.lower().replace("-", "_").replace(" ", "_"))
