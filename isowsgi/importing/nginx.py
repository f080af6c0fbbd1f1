"""Lines of nginx' configuration, for what the proxy is to serve."""

from __future__ import annotations

import json


def files_at(where: str, folder: str) -> list[str]:
    """Return a location that serves a folder, or one file."""
    if where.endswith("/") or not folder.rpartition("/")[2].count("."):
        return [f"location {_quoted(where.rstrip('/') + '/')} {{ alias {_quoted(folder.rstrip('/') + '/')}; }}"]
    return [f"location = {_quoted(where)} {{ alias {_quoted(folder)}; }}"]


def _quoted(text: str) -> str:
    """Return a word of nginx': it ends at white space, braces and semicolons unless it is quoted."""
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return plain if plain and not set(plain) & set(" \t\"'{};#\\$") else json.dumps(plain, ensure_ascii=False)
