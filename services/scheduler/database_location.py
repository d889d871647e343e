"""Location of the job database, as its setting states it: a file of SQLite, or a PostgreSQL server."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

SETTING: Final = "CHORUS_SCHEDULER_DATABASE"
PASSWORD_SETTING: Final = "CHORUS_SCHEDULER_DATABASE_PASSWORD"
_POSTGRESQL: Final = "postgresql"
_EXAMPLE: Final = "postgresql://chorus@db.example.com:5432/chorus?sslmode=verify-full"


def check_location(location: str) -> str:
    """Returns a location that `parse_location` accepts. Raises ValueError with what to write instead."""
    parse_location(location, "")
    return location


def parse_location(location: str, password: str) -> Path | URL:
    """Returns the path of an SQLite file, or the URL of a PostgreSQL database with the password.

    Raises ValueError for a URL of another kind, without a database, or with a password inside, which logs and
    errors would show.
    """
    if "://" not in location:
        return Path(location)
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):
        raise ValueError(f"must be a path, or a URL such as {_EXAMPLE}") from None
    if url.get_backend_name() not in (_POSTGRESQL, "postgres") or "+" in url.drivername:
        raise ValueError(
            f"must be the path of an SQLite file, or a URL such as {_EXAMPLE}, not one of {url.drivername}"
        )
    if url.password is not None:
        raise ValueError(f"must contain no password: set {PASSWORD_SETTING} instead")
    if not url.database:
        raise ValueError(f"must name a database, such as {_EXAMPLE}")
    return url.set(drivername=f"{_POSTGRESQL}+psycopg", password=password or None)
