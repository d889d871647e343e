"""Version of the services, which are released together."""

from typing import Final

VERSION: Final = "0.1.0"
