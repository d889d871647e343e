"""Python client of a Chorus deployment.

    with ChorusClient() as chorus:
        handle = chorus.submit("a large blue square moving up", seed=7)
        result = handle.result()
        result.save("out.mp4")

ChorusClient and CacheClient block, AsyncChorusClient and AsyncCacheClient are their asyncio twins. Errors are
ChorusError. Results are frozen values; their `proto` is the raw message of the contract. ExplicitReuse, the
result of `explicit_reuse`, is such a message too, for use as an option only.
"""

from chorus.scheduler.v1.scheduler_pb2 import ExplicitReuse
from chorus_rpc.errors import ChorusError, Violation, reason_name

from chorus_client.aio import AsyncChorusClient
from chorus_client.cache import AsyncCacheClient
from chorus_client.cache_results import (
    Adoption,
    CacheEntry,
    CacheMap,
    CacheStats,
    Damage,
    GrowthPoint,
    MappedEntry,
    Purged,
    Verification,
)
from chorus_client.deployment import ServerInfo, Service
from chorus_client.downloads import Thumbnail, VideoUrl
from chorus_client.events import Event, EventKind, Step
from chorus_client.handles import AsyncGenerationHandle, GenerationHandle
from chorus_client.lifetime import ClientClosed, ForkedClient
from chorus_client.offers import Model, Preview, Range
from chorus_client.plans import explicit_reuse, parse_plan
from chorus_client.problem_reports import ProblemReport
from chorus_client.results import (
    Donor,
    Generation,
    GenerationCancelled,
    GenerationError,
    GenerationFailed,
    PassedOver,
    Plan,
    Problem,
    Timings,
    Video,
    VideoInfo,
)
from chorus_client.security import Tls
from chorus_client.spec import SpecOptions
from chorus_client.states import State
from chorus_client.sync import CacheClient, ChorusClient

__all__ = [
    "Adoption",
    "AsyncCacheClient",
    "AsyncChorusClient",
    "AsyncGenerationHandle",
    "CacheClient",
    "CacheEntry",
    "CacheMap",
    "CacheStats",
    "ChorusClient",
    "ChorusError",
    "ClientClosed",
    "Damage",
    "Donor",
    "Event",
    "EventKind",
    "ExplicitReuse",
    "ForkedClient",
    "Generation",
    "GenerationCancelled",
    "GenerationError",
    "GenerationFailed",
    "GenerationHandle",
    "GrowthPoint",
    "MappedEntry",
    "Model",
    "PassedOver",
    "Plan",
    "Preview",
    "Problem",
    "ProblemReport",
    "Purged",
    "Range",
    "ServerInfo",
    "Service",
    "SpecOptions",
    "State",
    "Step",
    "Thumbnail",
    "Timings",
    "Tls",
    "Verification",
    "Video",
    "VideoInfo",
    "VideoUrl",
    "Violation",
    "explicit_reuse",
    "parse_plan",
    "reason_name",
]
