"""Addresses of the console."""

from __future__ import annotations

import re
from typing import Final

BASE: Final = "/console"
HOME: Final = BASE + "/"
_OWN: Final = re.compile(rf"{BASE}(/[A-Za-z0-9._~/-]*)?(\?[A-Za-z0-9._~%=&+*-]*)?")


def check_next(path: str) -> str:
    """Returns a page of the console to continue with; the first page for any other address."""
    return path if len(path) <= 2_048 and _OWN.fullmatch(path) and "//" not in path else HOME
