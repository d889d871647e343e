"""Verifies which locations of the job database are accepted, and that no password reaches a message."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from services.scheduler.database_location import check_location, parse_location


def test_path_is_a_file_and_url_a_server() -> None:
    assert parse_location("state/jobs.db", "") == Path("state/jobs.db")
    url = parse_location("postgresql://chorus@db:6432/jobs?sslmode=require", "p@ss/word")
    assert isinstance(url, URL)
    assert (url.host, url.port, url.database, url.password) == ("db", 6432, "jobs", "p@ss/word")
    assert url.query == {"sslmode": "require"}
    assert "p@ss" not in str(url)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("mysql://db/jobs", "not one of mysql"),
        ("sqlite:///jobs.db", "must be the path of an SQLite file"),
        ("postgresql+asyncpg://db/jobs", "not one of postgresql"),
        ("postgresql://a:secret@db/jobs", "set CHORUS_SCHEDULER_DATABASE_PASSWORD instead"),
        ("postgresql://db", "must name a database"),
        ("postgresql://db:port/jobs", "must be a path, or a URL such as"),
    ],
)
def test_other_location_is_refused_with_the_remedy(location: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")) as caught:
        check_location(location)
    assert "secret" not in str(caught.value)
