"""Sessions of the console: cookies that only a gateway with the same secret can read or write.

A session holds the API key of its user, encrypted and signed; the gateway stores nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography.fernet import Fernet, InvalidToken

COOKIE: Final = "chorus_console"
SESSION_SECONDS: Final = 43_200
# A longer key would exceed the 4,096 bytes that a browser keeps of a cookie.
MAX_KEY_CHARACTERS: Final = 1_024


@dataclass(frozen=True)
class Session:
    """Session of one browser.

    Attributes:
        nonce: random text, from which the token of its forms follows.
        key: API key of the user; None before the login, and without keys.
    """

    nonce: str
    key: str | None = field(default=None, repr=False)


class Sessions:
    """Reads and writes sessions.

    Args:
        secret: secret of every gateway behind one address; empty for a new one.
    """

    def __init__(self, secret: str) -> None:
        chosen = secret.encode() or secrets.token_bytes(32)
        self._fernet = Fernet(base64.urlsafe_b64encode(_derive(chosen, b"cookie")))
        self._form_key = _derive(chosen, b"form")

    def create(self, key: str | None = None) -> Session:
        return Session(secrets.token_urlsafe(16), key)

    def write(self, session: Session) -> str:
        """Returns the cookie of a session."""
        content = {"nonce": session.nonce, "key": session.key}
        return self._fernet.encrypt(json.dumps(content).encode()).decode()

    def read(self, cookie: str) -> Session | None:
        """Returns the session of a cookie; None if it is not ours, or is older than SESSION_SECONDS."""
        try:
            content = json.loads(self._fernet.decrypt(cookie.encode(), ttl=SESSION_SECONDS))
        except (InvalidToken, UnicodeError):
            return None
        return Session(content["nonce"], content["key"])

    def make_form_token(self, session: Session) -> str:
        """Returns the token that every form of the session carries."""
        return hmac.new(self._form_key, session.nonce.encode(), hashlib.sha256).hexdigest()

    def accepts(self, session: Session, form_token: str) -> bool:
        """Returns whether a form is one of the session."""
        return hmac.compare_digest(self.make_form_token(session).encode(), form_token.encode())


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return hmac.new(secret, b"chorus console " + purpose, hashlib.sha256).digest()
