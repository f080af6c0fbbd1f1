"""The WSGI app of one folder, or of one file: WhiteNoise, with a finder of its own.

WhiteNoise says what a file is (its type, for how long it may be kept) and answers. Files are found at each request, so that uploads are
served and what was deleted is not: WhiteNoise's own way to do that follows any link, and is meant for development.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any, NamedTuple
from urllib.parse import quote
from wsgiref.headers import Headers

from whitenoise import WhiteNoise

from isowsgi.files import conditions
from isowsgi.files.memory import Memory
from isowsgi.files.tree import Forbidden, IsFolder, Missing, Opened, Tree, is_served

# Names that change with what is in the file, as Django's ManifestStaticFilesStorage makes them: WhiteNoise's own test.
_IMMUTABLE = r"^.+\.[0-9a-f]{12}\..+$"

# Encodings in which a file may lie beside itself, by the end of its name.
_ENCODINGS = {"br": b".br", "zstd": b".zst", "gzip": b".gz"}

# Bytes of a body up to which it is sent with the head, in one system call: `inside.http` copies as much.
_JOIN_MAX_BYTES = 64 * 1024

# Characters of a query that need no encoding, or are one (RFC 3986 section 3.4).
_OF_QUERIES = "%/?:@!$&'()*+,;=[]-._~"

StartResponse = Callable[..., Any]


class Answer(NamedTuple):
    """What a client gets.

    Attributes:
        file: open, at the first byte that is sent; None: the body is `text`.
        source: path and facts of the file that all of the body came from; None: it is not to be remembered.
    """

    status: str
    headers: list[tuple[str, str]]
    text: bytes = b""
    file: Any = None
    source: tuple[bytes, os.stat_result] | None = None


_memory = Memory()


class Files(WhiteNoise):  # type: ignore[misc] # not annotated
    """See the module's text.

    Args:
        tree: what is served.
        index: the file of a folder; "": none.
        fallback: below the root, for what is not there; (): none.
        expires_s: for how long clients may keep what they got, in seconds; None: nothing is said.
    """

    def __init__(self, tree: Tree, index: bytes, fallback: tuple[bytes, ...], expires_s: int | None) -> None:
        super().__init__(None, max_age=expires_s, allow_all_origins=False, immutable_file_test=_IMMUTABLE)
        self._tree = tree
        self._index = index
        self._fallback = fallback

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        key = None
        if environ["REQUEST_METHOD"] == "GET" and not conditions.has_any(environ):
            key = (id(self), environ["PATH_INFO"], environ.get("HTTP_ACCEPT_ENCODING"))
            known = _memory.find(key)
            if known is not None:
                start_response("200 OK", known.headers)
                return known.body
        answer = self._answer(environ)
        start_response(answer.status, answer.headers)
        if key is not None and answer.source is not None:
            _memory.note(key, *answer.source, answer.headers, answer.text)
        if answer.file is None:
            return [answer.text]
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](answer.file)
        return wrapped

    def _answer(self, environ: dict[str, Any]) -> Answer:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _text("405 Method Not Allowed", [("Allow", "GET, HEAD")])
        path = environ["PATH_INFO"].encode("latin-1")
        if b"\0" in path:
            return _text("400 Bad Request")
        names = [name for name in path.split(b"/") if name]
        try:
            return self._found(names, path.endswith(b"/"), environ)
        except IsFolder:
            return _redirect(environ)
        except Forbidden:
            return _text("403 Forbidden")
        except Missing:
            pass
        try:
            return self._opened([*self._fallback], environ)._replace(source=None)  # a file may come in its place
        except (Missing, Forbidden, IsFolder):
            return _text("404 Not Found")

    def _found(self, names: list[bytes], is_folder: bool, environ: dict[str, Any]) -> Answer:
        if not is_served(names):
            raise Missing
        if names or is_folder:
            return self._opened([*names, self._index] if is_folder else names, environ)
        answer = self._sent(self._tree.itself(), os.path.basename(self._tree.root), {}, environ)
        return answer if answer.source is None else answer._replace(source=(self._tree.root, answer.source[1]))

    def _opened(self, names: list[bytes], environ: dict[str, Any]) -> Answer:
        """Answer with a file below the root.

        Raises:
            Missing, Forbidden, IsFolder: there is none to be served.
        """
        if not names or not names[-1]:
            raise Missing
        with self._tree.folder(names[:-1]) as folder:
            opened = self._tree.file(folder, names[-1])
            try:
                others = self._others(folder, names[-1])
            except BaseException:
                os.close(opened.fd)
                raise
        answer = self._sent(opened, names[-1], others, environ)
        if answer.source is not None:
            answer = answer._replace(source=(b"/".join((self._tree.root, *names[:-1], answer.source[0])), answer.source[1]))
        return answer

    def _others(self, folder: int, name: bytes) -> dict[str, Opened]:
        """Open a file's encoded forms that lie beside it."""
        others = {}
        for encoding, end in _ENCODINGS.items():
            try:
                others[encoding] = self._tree.file(folder, name + end)
            except (Missing, Forbidden, IsFolder):
                continue
            except BaseException:
                for each in others.values():
                    os.close(each.fd)
                raise
        return others

    def _sent(self, opened: Opened, name: bytes, others: dict[str, Opened], environ: dict[str, Any]) -> Answer:
        """Answer with a file, or with the smallest of its forms that the client takes; all descriptors but that one are closed."""
        forms = {"": opened, **others}
        try:
            accepted = conditions.accepted(environ.get("HTTP_ACCEPT_ENCODING", "")) if others else ()
            encoding = min(("", *(each for each in others if each in accepted)), key=lambda each: forms[each].facts.st_size)
            chosen = forms[encoding]
            headers = self._headers(name, chosen.facts, encoding, bool(others))
            answer = _conditional(chosen, headers, environ)
            if answer.text and answer.status == "200 OK":
                answer = answer._replace(source=(name + _ENCODINGS.get(encoding, b""), chosen.facts))
            if answer.file is not None:
                del forms[encoding]  # it is the answer's
            return answer
        finally:
            for each in forms.values():
                os.close(each.fd)

    def _headers(self, name: bytes, facts: os.stat_result, encoding: str, has_others: bool) -> Headers:
        text = name.decode("latin-1")
        headers = Headers([])
        self.add_mime_headers(headers, text, text)
        self.add_cache_headers(headers, text, text)
        headers["Last-Modified"] = formatdate(int(facts.st_mtime), usegmt=True)
        headers["ETag"] = f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
        if encoding:
            headers["Content-Encoding"] = encoding
        if has_others:
            headers["Vary"] = "Accept-Encoding"
        headers["Accept-Ranges"] = "bytes"
        return headers


def folder(path: str, index: str = "index.html", fallback: str = "", follow_symlinks: bool = False, expires: int | None = None) -> Files:
    """Return the app of a folder or a file; the arguments are literals, as a factory's in a config file."""
    names = tuple(os.fsencode(name) for name in fallback.split("/") if name)
    return Files(Tree(path, follow_symlinks), os.fsencode(index), names, expires)


# Fields of a 304: RFC 9110 section 15.4.5, and Last-Modified as nginx sends it.
_OF_NOT_MODIFIED = frozenset(("cache-control", "etag", "last-modified", "vary"))


def _conditional(opened: Opened, headers: Headers, environ: dict[str, Any]) -> Answer:
    """Answer with a file as far as the request's conditions let it; the answer has the file's descriptor, or none."""
    etag, modified, size = headers["ETag"] or "", int(opened.facts.st_mtime), opened.facts.st_size
    status = conditions.failed(environ, etag, modified)
    if status is not None:
        if status.startswith("412"):
            return _text(status)
        return Answer(status, [pair for pair in headers.items() if pair[0].lower() in _OF_NOT_MODIFIED])
    status, start, end = "200 OK", 0, size
    wanted = environ.get("HTTP_RANGE")
    if wanted is not None and conditions.is_range_meant(environ, etag, modified):
        try:
            found = conditions.ranged(wanted, size)
        except conditions.Unsatisfiable:
            return _text("416 Range Not Satisfiable", [("Content-Range", f"bytes */{size}")])
        if found is not None:
            status, (start, end) = "206 Partial Content", found
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if environ["REQUEST_METHOD"] == "HEAD":
        return Answer(status, headers.items())
    if end - start <= _JOIN_MAX_BYTES:
        return Answer(status, headers.items(), os.pread(opened.fd, end - start, start))
    file = os.fdopen(opened.fd, "rb", buffering=0)
    file.seek(start)
    return Answer(status, headers.items(), file=file)


def _redirect(environ: dict[str, Any]) -> Answer:
    """Send a client to the same address with a slash at its end."""
    # Two slashes at the start would be another host's address.
    path = "/" + (environ["SCRIPT_NAME"] + environ["PATH_INFO"]).lstrip("/") + "/"
    query = environ.get("QUERY_STRING", "")
    return _text(
        "301 Moved Permanently", [("Location", quote(path.encode("latin-1")) + (f"?{quote(query, _OF_QUERIES)}" if query else ""))]
    )


def _text(status: str, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    body = f"{status}\n".encode()
    return Answer(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *headers], body)
