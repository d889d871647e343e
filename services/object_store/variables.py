"""Names of the environment variables that describe a bucket, for errors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class S3Variables:
    """Variables of one service.

    Attributes:
        prefix: beginning of most names, for instance "CHORUS_CACHE_S3".
        bucket: variable that names the bucket.
    """

    prefix: str
    bucket: str

    def name(self, field: str) -> str:
        """Returns a variable, for instance that of "endpoint"."""
        return f"{self.prefix}_{field.upper()}"
