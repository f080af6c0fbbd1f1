"""Apache's directives that need no code: what becomes of each, and what to do about those that are not taken."""

from __future__ import annotations

import re

from isowsgi.importing.account import Outcome

_T, _C, _L = Outcome.TAKEN, Outcome.CHANGED, Outcome.LEFT

_PROXY = "the proxy's: "
_FILES = "of files that Apache serves itself; nothing to do here, and the proxy serves files now"

# By a regular expression for the whole name, in lower case; the first that fits counts.
_ROWS: tuple[tuple[Outcome, str, str], ...] = (
    (
        _T,
        "the Authorization field is always passed on",
        r"wsgipassauthorization",
    ),
    (
        _T,
        "printing goes to the log, and signal handlers are a logged no-op",
        r"wsgirestrict(stdout|stdin|signal)",
    ),
    (
        _T,
        "no app runs in Apache any more",
        r"wsgirestrict(embedded|process)|wsgilazyinitialization|wsgiacceptmutex|wsgisocket(prefix|rotation)",
    ),
    (
        _T,
        "responses from files go out with sendfile, and chunked requests are read",
        r"wsgienablesendfile|wsgichunkedrequest",
    ),
    (
        _T,
        "interpreters are ended when they are replaced",
        r"wsgidestroyinterpreter",
    ),
    (
        _T,
        "an own GIL where the app can have one; see isowsgi check",
        r"wsgiperinterpretergil",
    ),
    (
        _C,
        "apps are loaded when a worker starts, unless they are lazy",
        r"wsgiimportscript",
    ),
    (
        _C,
        "a HEAD request reaches the app as HEAD",
        r"wsgimapheadtoget",
    ),
    (
        _C,
        "see gunicorn's forwarded_allow_ips, and werkzeug's ProxyFix in the app",
        r"wsgitrustedprox.*",
    ),
    (
        _C,
        "see idle_timeout of a mount",
        r"wsgiignoreactivity",
    ),
    (
        _C,
        "paths are compared as they are written",
        r"wsgicasesensitivity",
    ),
    (
        _L,
        "set PYTHONOPTIMIZE, PYTHONWARNINGS, PYTHONHASHSEED or PYTHONDONTWRITEBYTECODE in the service's environment",
        r"wsgi(python|dontwrite).*",
    ),
    (
        _L,
        "the app's own framework, or auth_request in nginx",
        r"wsgi(access|auth\w+)script|wsgigroupauthoritative|wsgiuserauthoritative",
    ),
    (
        _L,
        "an inside matter of mod_wsgi's; nothing to do",
        r"wsgi(verbosedebugging|outputbuffering|(re)?loadmechanism|servermetrics|switchinterval|bufferedoutput|rotatelogs|startuptimeout)",
    ),
    (
        _L,
        _PROXY + "listen; gunicorn has an address behind it (bind, by default 127.0.0.1:8000)",
        r"listen|listenbacklog|namevirtualhost",
    ),
    (
        _T,
        "the name of a section that is told by itself",
        r"usecanonical(name|physicalport)",
    ),
    (
        _L,
        _PROXY + "its certificates and TLS settings",
        r"ssl.*|gnutls.*|mdomain.*|md\w+|protocols|http2.*|h2\w+",
    ),
    (
        _L,
        _PROXY + "rewrite or return; for whole addresses a mount with redirect",
        r"rewrite.*|redirect.*",
    ),
    (
        _L,
        _PROXY + "add_header, proxy_set_header",
        r"header|requestheader|expires.*|fileetag",
    ),
    (
        _L,
        _PROXY + "allow, deny, auth_basic or auth_request; until it is there, whoever reaches gunicorn may ask",
        r"auth.*|require.*|allow|deny|order|satisfy|basicauth.*|ldap.*|shib.*|oidc.*",
    ),
    (
        _L,
        _PROXY + "set, map or a header field that the app reads",
        r"setenvif.*|browsermatch.*|passenv|unsetenv",
    ),
    (
        _L,
        "the app's: a mount's app may be a script that wraps another one",
        r"wsgi(handler|dispatch)script",
    ),
    (
        _L,
        _PROXY + "proxy_intercept_errors",
        r"wsgierroroverride",
    ),
    (
        _L,
        _PROXY + "a location that serves files",
        r"alias.*|documentroot|directoryindex|index\w*|adddefaultcharset",
    ),
    (
        _L,
        _PROXY + "proxy_pass",
        r"proxy.*|balancer.*|remoteip.*",
    ),
    (
        _L,
        _PROXY + "gzip, client_max_body_size, error_page, and time limits",
        r"deflate.*|addoutputfilter.*|limit.*|errordocument|timeout|requestread.*|brotli.*",
    ),
    (
        _C,
        "see gunicorn's keepalive",
        r"(max)?keepalive\w*",
    ),
    (
        _C,
        "see gunicorn's errorlog, accesslog, access_log_format and loglevel",
        r"errorlog\w*|customlog|logformat|loglevel|transferlog|globallog|logio\w*",
    ),
    (
        _L,
        _FILES,
        r"options|allowoverride.*|addtype|addencoding|addlanguage|addcharset|typesconfig|"
        r"mime\w*|cache\w*|files\w*|accessfilename",
    ),
    (
        _L,
        _FILES,
        r"defaulttype|defaulticon|addicon\w*|adddescription|readmename|headername|languagepriority|"
        r"forcelanguagepriority|removehandler|removetype",
    ),
    (
        _T,
        "there is no Apache to be told that",
        r"loadmodule|loadfile|serverroot|serveradmin|serversignature|servertokens|traceenable|mutex|pidfile|"
        r"coredumpdirectory",
    ),
    (
        _T,
        "there is no Apache to be told that",
        r"hostnamelookups|defaultruntimedir|scoreboardfile|include|acceptfilter|enable(mmap|sendfile)|"
        r"contentdigest|addmodule",
    ),
    (
        _C,
        "see gunicorn's workers, and threads of a mount",
        r"(start|max|min|server|spare|threads|thread)\w*",
    ),
    (
        _L,
        "not Python: it needs a server of its own",
        r"php\w*|fcgi\w*|passenger\w*|perl\w*|suexec.*|action|script\w*|jk\w*|cgi\w*|ext\w*",
    ),
    (
        _L,
        _PROXY + "a web application firewall or a status page",
        r"sec\w*|extendedstatus|seerequesttail|modsecurity\w*|evasive\w*|dos\w*",
    ),
)


def verdict(name: str, text: str) -> tuple[Outcome, str] | None:
    """Return what becomes of a directive that needs no code, or None if it is none that we know."""
    said = " ".join(text.lower().split())
    if (name, said) in _OPEN:
        return Outcome.TAKEN, "whoever reaches gunicorn may ask; nothing to write"
    if name == "wsgipassauthorization" and said == "off":
        return Outcome.CHANGED, "the Authorization field is always passed on; let the proxy take it away if it must"
    for outcome, note, pattern in _ROWS:
        if re.fullmatch(pattern, name):
            return outcome, note
    return None


_OPEN = {("require", "all granted"), ("order", "allow,deny"), ("order", "deny,allow"), ("allow", "from all"), ("satisfy", "any")}
