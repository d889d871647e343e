"""Files of certificate authorities that settings name."""

from __future__ import annotations

import ssl


def check_ca_file(path: str) -> str:
    """Returns the path of a PEM file of certificates, or "". Raises ValueError if it cannot be loaded."""
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except ssl.SSLError as error:
            raise ValueError(f"must be a PEM file of certificates ({error.reason})") from None
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror or error})") from None
    return path
