"""uWSGI's options that need no code: what becomes of each, and what to do about those that are not taken."""

from __future__ import annotations

import re

from isowsgi.importing.account import Outcome

_T, _C, _L = Outcome.TAKEN, Outcome.CHANGED, Outcome.LEFT

_PROXY = "the proxy's: "
_SYSTEMD = "systemd's: "

_NAMED: tuple[tuple[Outcome, str, str], ...] = (
    (
        _T,
        "gunicorn always has that, or needs none",
        "master M no-orphans auto-procname enable-threads thunder-lock abstract-socket",
    ),
    (
        _T,
        "nothing to load: gunicorn and isowsgi are Python",
        "plugin plugins need-plugin need-plugins plugin-dir plugins-dir autoload",
    ),
    (
        _T,
        "isowsgi refuses unknown keys always",
        "strict",
    ),
    (
        _T,
        "gunicorn removes its sockets and its pid file when it ends",
        "vacuum",
    ),
    (
        _T,
        "SIGTERM always stops gunicorn, after the requests in flight",
        "die-on-term",
    ),
    (
        _T,
        "reloads never end a gunicorn",
        "exit-on-reload",
    ),
    (
        _T,
        "isowsgi always sets SCRIPT_NAME to a mount's path",
        "manage-script-name",
    ),
    (
        _T,
        "one group for all mounts, where there are several",
        "single-interpreter",
    ),
    (
        _T,
        "apps are always loaded in the worker",
        "lazy lazy-apps",
    ),
    (
        _C,
        "gunicorn stops only if no app at all can be loaded at the first start; one that cannot is answered 503 and retried",
        "need-app",
    ),
    (
        _T,
        "a path that no mount takes is answered 404",
        "no-default-app",
    ),
    (
        _C,
        "wsgi.file_wrapper is there, and sends with sendfile",
        "wsgi-disable-file-wrapper",
    ),
    (
        _T,
        "Python's descriptors are closed on exec",
        "close-on-exec close-on-exec2",
    ),
    (
        _C,
        "bodies are read by the app as they come; a proxy in front of it can buffer them (proxy_request_buffering)",
        "post-buffering post-buffering-bufsize body-read-warning",
    ),
    (
        _C,
        "a request's head may have 64 KiB; larger ones are answered 431",
        "buffer-size",
    ),
    (
        _C,
        "gunicorn's limit_request_fields (100) bounds the header fields",
        "max-vars",
    ),
    (
        _L,
        _PROXY + "client_max_body_size",
        "limit-post",
    ),
    (
        _T,
        "connections are kept open: gunicorn's keepalive",
        "http-keepalive",
    ),
    (
        _T,
        "responses without a length are chunked for HTTP/1.1 clients",
        "http-auto-chunked",
    ),
    (
        _T,
        "interpreters are never forked",
        "py-call-osafterfork py-call-uwsgi-fork-hooks",
    ),
    (
        _T,
        "a client that is gone is no error",
        "ignore-sigpipe ignore-write-errors write-errors-tolerance",
    ),
    (
        _C,
        "an app whose client is gone gets an exception where it writes",
        "disable-write-exception",
    ),
    (
        _L,
        "a traceback is in the log, and never in the response; isowsgi errors shows it",
        "catch-exceptions",
    ),
    (
        _C,
        "isowsgi status shows memory",
        "memory-report",
    ),
    (
        _L,
        _SYSTEMD + "SocketMode=, SocketUser= and SocketGroup= in isowsgi.socket (docs: Deploy with systemd and nginx)",
        "chmod-socket chmod chown-socket",
    ),
    (
        _L,
        _SYSTEMD + "a service runs in the foreground, and its output is in the journal",
        "daemonize2",
    ),
    (
        _L,
        "use gunicorn's pidfile",
        "pidfile2 safe-pidfile safe-pidfile2",
    ),
    (
        _L,
        _SYSTEMD + "see systemd.exec(5): RootDirectory=, Limit...=, Nice= and their like",
        "chroot pivot-root cap unshare cgroup namespace ns jail add-gid no-initgroups limit-nproc nproc prio "
        "cpu-affinity never-swap ksm binsh master-as-root drop-after-init drop-after-apps setns jailed",
    ),
    (
        _L,
        "isowsgi serves with threads: set the mount's threads to as many requests as may wait at a time",
        "async ugreen asyncio gevent gevent-monkey-patch gevent-early-monkey-patch greenlet loop coroae",
    ),
    (
        _T,
        "files go out with sendfile, and a slow client holds a thread of its mount only",
        "offload-threads offload-thread",
    ),
    (
        _L,
        _SYSTEMD + "LimitSTACK= in the service",
        "thread-stacksize threads-stacksize thread-stack-size threads-stack-size",
    ),
    (
        _C,
        "see lazy and idle_timeout of a mount: an app that nobody asks for takes no memory",
        "die-on-idle",
    ),
    (
        _L,
        "import the module in the app's own module, or name a function of it in the mount's on_boot",
        "import pyimport py-import python-import shared-import shared-pyimport early-pyimport",
    ),
    (
        _L,
        "sys.argv of an app has one entry",
        "pyargv",
    ),
    (
        _L,
        "set PYTHONOPTIMIZE in gunicorn's environment, for all apps",
        "optimize",
    ),
    (
        _L,
        "site always runs in an app's interpreter",
        "no-site",
    ),
    (
        _L,
        "an inside matter of uWSGI's; nothing to do",
        "reload-os-env wsgi-env-behaviour wsgi-env-behavior honour-stdin skip-atexit force-cwd locks wsgi-accept-buffer "
        "wsgi-accept-buffers start_response-nodelay wsgi-strict procname-master max-apps python-version "
        "py-master-check-signals no-threads-wait weight no-server print iprint show-config lock-engine skip-zero max-fd "
        "reaper",
    ),
    (
        _L,
        "write a file such as app.wsgi that makes `application`, and mount it",
        "paste ini-paste ini-paste-logged pecan web3 pump wsgi-lite eval test worker-exec python-raw paste-logger paste-name",
    ),
    (
        _L,
        'write a mount for each host: "example.com/" = ...',
        "vhost vhost-host dynamic-apps check-mountpoint",
    ),
    (
        _T,
        "logging never waits in a request's way",
        "threaded-logger",
    ),
    (
        _L,
        "use a mount's max_age",
        "max-worker-lifetime-delta min-worker-lifetime",
    ),
    (
        _L,
        "set it in the service's environment",
        "ienv",
    ),
    (
        _L,
        "take it out of the service's environment (UnsetEnvironment=)",
        "unenv",
    ),
    (
        _L,
        "use a mount's env_file",
        "envdir early-envdir",
    ),
    (
        _C,
        "SCRIPT_NAME is the mount's path",
        "ignore-script-name",
    ),
    (
        _L,
        "use gunicorn's reuse_port",
        "reuse-port",
    ),
    (
        _L,
        "not there",
        "tcp-fast-open",
    ),
    (
        _L,
        _SYSTEMD + "FreeBind= in isowsgi.socket",
        "freebind",
    ),
    (
        _L,
        "use gunicorn's proxy_protocol",
        "enable-proxy-protocol",
    ),
    (
        _L,
        "use gunicorn's chdir",
        "chdir2",
    ),
    (
        _T,
        "for uWSGI's own files",
        "blacklist whitelist",
    ),
    (
        _L,
        "use gunicorn's umask, for all apps",
        "umask",
    ),
    (
        _C,
        "always HTTP",
        "protocol socket-protocol",
    ),
    (
        _L,
        "each user needs a gunicorn of its own",
        "emperor-tyrant",
    ),
    (
        _L,
        _PROXY + "return 301 https://$host$request_uri;",
        "http-to-https redirect-to-https",
    ),
    (
        _L,
        _PROXY + "a location block",
        "route-uri",
    ),
)

# By what a name begins with; the first that fits counts.
_FAMILIES: tuple[tuple[Outcome, str, str], ...] = (
    (
        _L,
        "the mount's watch looks at all files that its modules came from",
        r"(py-|python-)?(auto-?reload|py-auto-?reload).*ignore",
    ),
    (
        _L,
        _PROXY + "let it serve files; see the location lines below",
        r"static|check-static|fileserve|file-serve|mime|honour-range",
    ),
    (
        _L,
        _PROXY + "rewrite what this says as location, rewrite or return",
        r"(final-|error-|response-)?route",
    ),
    (
        _L,
        _PROXY + "add_header and its like",
        r"add-header|rem-header|del-header|collect-header|pull-header|response-header",
    ),
    (
        _L,
        _PROXY + "error_page",
        r"error-page",
    ),
    (
        _L,
        _PROXY + "TLS; or gunicorn's certfile and keyfile",
        r"https|ssl|sni|spdy|tls",
    ),
    (
        _L,
        _PROXY + "or request_timeout, body_timeout of a mount, and head_timeout in [acceptor]",
        r"http-(timeout|connect-timeout|headers-timeout)",
    ),
    (
        _L,
        _PROXY + "uWSGI's own router is not needed",
        r"http|fastrouter|rawrouter|sslrouter|forkptyrouter",
    ),
    (
        _L,
        "not there: isowsgi speaks HTTP",
        r"fastcgi|scgi|puwsgi|suwsgi|zerg|udp|raw|shared-socket|undeferred|map-socket|master-fifo|notify-socket",
    ),
    (
        _C,
        "see gunicorn's accesslog, access_log_format, errorlog and loglevel",
        r"log|req-log|worker-log|log-|disable-logging|not-log|touch-log",
    ),
    (
        _L,
        "cron's, or a systemd timer that runs a management command",
        r"unique-cron|cron|legion-cron|timer|signal|rbtimer",
    ),
    (
        _L,
        _SYSTEMD + "a service of its own, such as Celery, RQ or a management command that runs for ever",
        r"mule|farm|spooler|sharedarea|queue|rpc|lock",
    ),
    (
        _L,
        _SYSTEMD + "a service of its own; uWSGI started it beside the app",
        r"attach-|smart-attach|legion|daemons-",
    ),
    (
        _L,
        "use Redis, memcached or the framework's cache: there is no module uwsgi",
        r"cache|add-cache|load-file-in-cache|check-cache",
    ),
    (
        _C,
        "the number of workers is fixed: gunicorn's workers; an instance serves with threads",
        r"cheaper",
    ),
    (
        _C,
        "include in the config file, with [control] watch = true, is the Emperor's part",
        r"emperor|vassal|imperial|heartbeat|zeus|early-emperor",
    ),
    (
        _L,
        _PROXY + "isowsgi routes by host itself; nothing subscribes",
        r"subscri|unsubscri|start-unsub|st$|multicast",
    ),
    (
        _L,
        "isowsgi status, its status page, and its Prometheus metrics",
        r"stats|metric|enable-metrics|carbon|snmp|memory|alarm|segfault|backlog|lq|listen-queue",
    ),
    (
        _L,
        _SYSTEMD + "ExecStartPre=, ExecStartPost=; or on_boot and on_drain of a mount",
        r"(hook|exec|call|mount|umount|wait-for)-.*|wait-|after-request",
    ),
    (
        _L,
        "use a mount's touch or watch, or isowsgi reload",
        r"touch-|fs-|propagate-touch",
    ),
    (
        _C,
        "see docs/reference/environment.md: websockets; each holds a thread of its mount",
        r"websocket",
    ),
    (
        _C,
        "see max_rss in [worker]: one limit for all apps of a worker",
        r"reload-on|evil-reload|brutal-reload|mem-collector|limit-as",
    ),
    (
        _C,
        "see gunicorn's graceful_timeout",
        r"reload-mercy|worker-reload-mercy|mule-reload",
    ),
    (
        _C,
        "see request_timeout and slow_request of a mount",
        r"harakiri",
    ),
    (
        _C,
        "see send_timeout and body_timeout of a mount",
        r"socket-|so-|tcp-|http11",
    ),
    (
        _L,
        "not Python: it needs a server of its own",
        r"ruby|rack|php|perl|psgi|lua|jvm|mono|cgi|go-|v8",
    ),
    (
        _L,
        "not there in isowsgi",
        r"py|spooler-",
    ),
)

_BY_NAME = {name: (outcome, note) for outcome, note, names in _NAMED for name in names.split()}


def verdict(name: str) -> tuple[Outcome, str] | None:
    """Return what becomes of an option that needs no code, or None if it is none of uWSGI's that we know."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    for outcome, note, pattern in _FAMILIES:
        if re.match(pattern, name):
            return outcome, note
    return None
