"""What would give an app a better isolation: other packages, or other wheels of the same. A small table, tried, dated and with sources."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

TRIED = "November 2026"  # with the newest releases then, on CPython 3.14


class Alternative(NamedTuple):
    package: str  # the top-level module whose extension modules refuse
    advice: str  # what helps
    source: str


_PURE_WHEEL = (
    "its py3-none-any wheel of the same version loads with an own GIL: "
    "pip download --no-deps --only-binary :all: --platform any {name}, then pip install --no-deps --force-reinstall the file"
)
_PYO3 = "https://github.com/PyO3/pyo3/issues/3451"

ALTERNATIVES = (
    Alternative("sqlalchemy", _PURE_WHEEL.format(name="SQLAlchemy"), "https://docs.sqlalchemy.org/en/21/intro.html#installation"),
    Alternative("charset_normalizer", _PURE_WHEEL.format(name="charset-normalizer"), "https://github.com/jawah/charset_normalizer"),
    Alternative(
        "psycopg2",
        "psycopg 3, without its binary and c extras, loads with an own GIL",
        "https://www.psycopg.org/psycopg3/docs/basic/from_pg2.html",
    ),
    Alternative("MySQLdb", "PyMySQL is pure Python and loads with an own GIL", "https://pymysql.readthedocs.io/en/latest/"),
    Alternative("ujson", "the standard library's json loads with an own GIL", "https://docs.python.org/3/library/json.html"),
    Alternative("orjson", "the standard library's json loads with an own GIL", "https://docs.python.org/3/library/json.html"),
    Alternative("zstandard", "from Python 3.14 on compression.zstd does the same", "https://docs.python.org/3/library/compression.zstd.html"),
    Alternative("numpy", "no alternative known; its modules declare that they serve one interpreter only", "https://github.com/numpy/numpy/issues/24755"),
    Alternative("cryptography", "no alternative known until PyO3 supports subinterpreters", _PYO3),
    Alternative("pydantic_core", "no alternative known until PyO3 supports subinterpreters", _PYO3),
    Alternative("bcrypt", "hashlib.scrypt of the standard library, for new hashes", "https://docs.python.org/3/library/hashlib.html#hashlib.scrypt"),
    Alternative("rpds", "no alternative known until PyO3 supports subinterpreters", _PYO3),  # jsonschema needs it
)  # fmt: skip


def advice_for(modules: Iterable[str]) -> list[Alternative]:
    """Return what would help an app with these extension modules, which refuse an interpreter.

    Args:
        modules: their full names.
    """
    packages = {name.partition(".")[0] for name in modules}
    return [alternative for alternative in ALTERNATIVES if alternative.package in packages]
