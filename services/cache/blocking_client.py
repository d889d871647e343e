"""Blocking calls of the cache to its stores, off the event loop and bounded in number and time."""

from __future__ import annotations

from chorus_rpc.errors import ChorusError

from services.cache.disk_space import disk_full, is_full
from services.runtime import blocking_client


class BlockingClient(blocking_client.BlockingClient):
    """Runs blocking calls for the cache, which names a store without space."""

    owner = "cache"

    def find_full_disk(self, error: Exception) -> ChorusError | None:
        return disk_full(self.service) if is_full(error) else None
