"""The sandbox of an app's process: files, TCP ports, signals and sockets that it can do without are out of its reach, by Landlock.

Put up before anything of the app is imported. It cannot be taken down, nor can what the process starts get out of it. Descriptors that are
open already stay as they are: the log files', and the socket to the worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from isowsgi.inside import pythonfolders
from isowsgi.inside.walls import CannotConfine
from isowsgi.shared import landlock, privileges
from isowsgi.shared.landlock import IOCTL_DEV, READ, READ_DIR, READ_FILE, RESOLVE_UNIX, WRITE, WRITE_FILE
from isowsgi.shared.messages import BootOrder, Sandbox

# What programs of the system and their libraries need of it: read, and executed. Nothing in there is secret.
_SYSTEM = (
    "/bin", "/lib", "/lib32", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/share",
    "/usr/local/bin", "/usr/local/lib", "/usr/local/lib64", "/usr/local/share",
)  # fmt: skip

# What they read of its settings: names, certificates, time zone. Not all of /etc: other programs' secrets may be there.
_SETTINGS = (
    "/etc/ca-certificates", "/etc/crypto-policies", "/etc/fonts", "/etc/gai.conf", "/etc/group", "/etc/host.conf", "/etc/hostname",
    "/etc/hosts", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/locale.alias", "/etc/localtime",
    "/etc/mime.types", "/etc/nsswitch.conf", "/etc/os-release", "/etc/passwd", "/etc/pki/ca-trust", "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf", "/etc/protocols", "/etc/resolv.conf", "/etc/services", "/etc/ssl/cert.pem",
    "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/timezone", "/run/systemd/resolve/resolv.conf",
    "/run/systemd/resolve/stub-resolv.conf", "/run/resolvconf/resolv.conf",
)  # fmt: skip

# What the kernel says of the machine and of this process. /proc/self is this process' alone: not that of its children, nor of any other.
_KERNEL = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/loadavg", "/proc/stat", "/proc/uptime", "/proc/version",
           "/proc/filesystems", "/proc/sys/kernel/random", "/proc/sys/net/core/somaxconn", "/sys/devices/system/cpu",
           "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage")  # fmt: skip

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def put_up(order: BootOrder, sandbox: Sandbox) -> None:
    """Confine this process; by its only thread.

    Raises:
        CannotConfine: it is not confined.
    """
    try:
        landlock.restrict(rules(order, sandbox), sandbox.connect, sandbox.listen)
        privileges.keep_capabilities(0)
    except (landlock.Unavailable, OSError) as exc:
        raise CannotConfine(f"cannot be sandboxed, so it is not loaded: {exc}") from exc


def rules(order: BootOrder, sandbox: Sandbox) -> Iterator[tuple[str, int]]:
    """Yield what is allowed: paths, some of which may not be there, and the access to all beneath each."""
    around = order.environment
    python = order.host.python
    if python is not None:
        yield from pythonfolders.of(python, sandbox.write, _own_python()).items()
    own = [*order.host.packages.values(), *order.host.site, *([around.venv] if around.venv else [])]
    for path in (*_SYSTEM, *own, *(_own_python() - {"/usr"} if python is None else ()), *sandbox.code, *sandbox.read):
        yield path, READ
    for path in (*_SETTINGS, *_KERNEL):
        yield path, READ_FILE | READ_DIR
    for path in _DEVICES:
        yield path, READ_FILE | WRITE_FILE | IOCTL_DEV
    for path in (sandbox.tmp, *sandbox.write):
        yield path, WRITE
    for path in sandbox.sockets:
        yield path, RESOLVE_UNIX


def _own_python() -> set[str]:
    """Return the folders of the Python that runs here."""
    return {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.realpath(sys.executable))}
