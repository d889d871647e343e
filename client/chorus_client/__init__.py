"""Client of a Chorus deployment: asyncio and sync classes, and the `chorus` command.

Errors are `ChorusError`: `reason` (`reason_name` writes it as text), `message`, `violations`, `retry_after`.
Results are the protobuf messages of `chorus.scheduler.v1`.
"""

from chorus.scheduler.v1.scheduler_pb2 import ExplicitReuse
from chorus_rpc.errors import ChorusError, Violation, reason_name

from chorus_client.aio import AsyncChorusClient, GenerationFailed, Video
from chorus_client.cache import AsyncCacheClient
from chorus_client.plans import explicit_reuse, parse_plan
from chorus_client.spec import SpecOptions
from chorus_client.sync import ChorusClient

__all__ = [
    "AsyncCacheClient",
    "AsyncChorusClient",
    "ChorusClient",
    "ChorusError",
    "ExplicitReuse",
    "GenerationFailed",
    "SpecOptions",
    "Video",
    "Violation",
    "explicit_reuse",
    "parse_plan",
    "reason_name",
]
