"""What a mount's policy can speak of: words, and the calls that each is about. Values only, no I/O.

Calls whose effects reach further than the interpreter that makes them, as far as apps and libraries make them. Most raise an audit event
(PEP 578) on every release from 3.11 on; the others can be seen only by putting something in the place of the function.
"""

from __future__ import annotations

VALUES = ("allow", "warn", "deny")

# By the audit event that a call raises.
EVENTS = {
    "os.chdir": "chdir",  # of os.fchdir too
    "resource.setrlimit": "setrlimit",
    "resource.prlimit": "setrlimit",
    "os.kill": "kill",
    "os.killpg": "kill",
    "signal.pthread_kill": "kill",
    "os.fork": "fork",
    "os.forkpty": "fork",
    "os.exec": "exec",
    "subprocess.Popen": "subprocess",
    "os.posix_spawn": "subprocess",
    "os.system": "subprocess",
    "ctypes.dlopen": "ctypes",
    "ctypes.dlsym": "ctypes",
    "ctypes.dlsym/handle": "ctypes",
    "ctypes.call_function": "ctypes",
    "ctypes.cdata": "ctypes",
    "ctypes.string_at": "ctypes",
    "ctypes.wstring_at": "ctypes",
    "ctypes.PyObj_FromPtr": "ctypes",
    "socket.bind": "bind",
    "syslog.openlog": "syslog",
    "syslog.closelog": "syslog",
    "syslog.setlogmask": "syslog",
}

# By the function, for calls that raise none.
FUNCTIONS = {
    "os.chroot": "chdir",
    "os.umask": "umask",
    "locale.setlocale": "setlocale",
    "locale.textdomain": "setlocale",
    "locale.bindtextdomain": "setlocale",
    "locale.bind_textdomain_codeset": "setlocale",
    "time.tzset": "tzset",
    "os.nice": "nice",
    "os.setpriority": "nice",
    "os.sched_setaffinity": "nice",
    "os.sched_setparam": "nice",
    "os.sched_setscheduler": "nice",
    "os.setuid": "ids",
    "os.setgid": "ids",
    "os.seteuid": "ids",
    "os.setegid": "ids",
    "os.setreuid": "ids",
    "os.setregid": "ids",
    "os.setresuid": "ids",
    "os.setresgid": "ids",
    "os.setgroups": "ids",
    "os.initgroups": "ids",
    "os.setsid": "ids",
    "os.setpgid": "ids",
    "os.setpgrp": "ids",
    "signal.raise_signal": "kill",
    "os._exit": "exit",
    "os.abort": "exit",
    "_posixsubprocess.fork_exec": "subprocess",  # what multiprocessing calls
    "sys.setswitchinterval": "setswitchinterval",
}

WORDS = (
    "chdir", "umask", "setlocale", "tzset", "nice", "setrlimit", "ids", "kill", "exit", "fork", "exec", "subprocess", "ctypes", "bind",
    "syslog", "setswitchinterval",
)  # fmt: skip
