"""Verifies the sessions of the console: who can read them, and which forms are theirs."""

from __future__ import annotations

import pytest

from services.gateway.console.paths import HOME, check_next
from services.gateway.console.sessions import Sessions


def test_session_returns_from_its_cookie_which_hides_the_key() -> None:
    sessions = Sessions("a secret of sixteen characters")
    session = sessions.create("chorus_key")
    cookie = sessions.write(session)
    assert "chorus_key" not in cookie
    assert "chorus_key" not in repr(session)
    assert sessions.read(cookie) == session
    assert Sessions("a secret of sixteen characters").read(cookie) == session


@pytest.mark.parametrize("cookie", ["", "x", "gAAAAA", "é", "a" * 5000])
def test_cookie_of_another_is_no_session(cookie: str) -> None:
    assert Sessions("").read(cookie) is None


def test_each_start_without_a_secret_has_sessions_of_its_own() -> None:
    sessions = Sessions("")
    cookie = sessions.write(sessions.create("key"))
    assert sessions.read(cookie) is not None
    assert Sessions("").read(cookie) is None
    # Not its last character, of which some bits count for nothing.
    altered = cookie[:20] + ("A" if cookie[20] != "A" else "B") + cookie[21:]
    assert sessions.read(altered) is None


def test_form_token_is_that_of_one_session() -> None:
    sessions = Sessions("")
    one, other = sessions.create(), sessions.create()
    assert sessions.accepts(one, sessions.make_form_token(one))
    assert not sessions.accepts(one, sessions.make_form_token(other))
    assert not sessions.accepts(one, "")
    assert not sessions.accepts(one, "é")


@pytest.mark.parametrize("path", ["/console/gallery?text=red", "/console/videos/video_gen-1", "/console"])
def test_login_continues_with_a_page_of_the_console(path: str) -> None:
    assert check_next(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "https://example.org",
        "//example.org",
        "/console//example.org",
        "/consolex",
        "/v1/videos",
        "/console/\\x",
    ],
)
def test_login_continues_nowhere_else(path: str) -> None:
    assert check_next(path) == HOME
