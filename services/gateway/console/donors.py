"""The generation of a donor."""

from __future__ import annotations

from chorus_client import AsyncChorusClient, Generation
from chorus_rpc import errors
from chorus_rpc.errors import ChorusError


async def find_donor(client: AsyncChorusClient, generation_id: str) -> Generation | None:
    """Returns the generation of a donor; None if it is unknown, or was deleted."""
    if not generation_id:
        return None
    try:
        return await client.handle(generation_id).status()
    except ChorusError as error:
        if error.reason in (errors.NOT_FOUND, errors.INVALID_FIELD):
            return None
        raise
