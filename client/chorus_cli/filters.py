"""Labels and times on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from chorus_client.spec import parse_duration
from chorus_rpc.errors import ChorusError, invalid


def parse_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Returns the labels of ["project=demo", "shot=12"]. Raises ChorusError about `label`."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise invalid("label", f"must be KEY=VALUE, such as project=demo, not {pair!r}")
        if key in labels:
            raise invalid("label", f"has the key {key!r} twice; give it once")
        labels[key] = value
    return labels


def parse_moment(text: str | None, field: str, now: datetime) -> datetime | None:
    """Returns the time of "12h" (ago), "2026-01-31" or "2026-01-31T18:00"; None for None.

    A time without a zone is in that of this machine. Raises ChorusError about `field`.
    """
    if text is None:
        return None
    try:
        return now - timedelta(seconds=parse_duration(text, field))
    except (ChorusError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid(
            field, f"must be an age such as 12h or 7d, or a time such as 2026-01-31T18:00, not {text!r}"
        ) from None
