"""Connection to one peer service: channel, tenant, health, and the time limit of each call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc.aio
from chorus_rpc import errors
from chorus_rpc.channels import calling, open_channel
from chorus_rpc.errors import ChorusError
from chorus_rpc.tenancy import tenant_metadata

from services.runtime.resources import Resources
from services.scheduler.jobs.deadline import Deadline
from services.scheduler.peers.health import PeerHealth
from services.scheduler.settings import SchedulerSettings


class PeerConnection:
    """Connection to a peer, used by the typed clients of this package.

    Args:
        name: short name of the peer, as error messages use it.
        tenant: tenant of the calls that are made for no job.
        key: key that the peer expects of this service; empty if it expects none.
    """

    def __init__(
        self, name: str, channel: grpc.aio.Channel, tenant: str, health: PeerHealth, key: str = ""
    ) -> None:
        self.name = name
        self.channel = channel
        self.health = health
        self._tenant = tenant
        self._key = key

    def metadata(self, tenant: str = "") -> tuple[tuple[str, str], ...]:
        """Returns the metadata of a call on behalf of a tenant; empty: for no job."""
        return tenant_metadata(tenant or self._tenant, self._key)

    @contextmanager
    def limit(
        self, deadline: Deadline | None, max_seconds: float = math.inf, setting: str = ""
    ) -> Iterator[float]:
        """Yields the timeout of one call, in seconds, and maps the errors of that call.

        Args:
            deadline: deadline of the job for which the call is made, if it is for one.

        Raises DEADLINE_EXCEEDED when the job's deadline passes before the answer, DEPENDENCY_UNAVAILABLE when
        the peer needs longer than `max_seconds` or its own limit on the call, and the peer's own ChorusError
        otherwise, TIME_LIMIT_EXCEEDED for its own limit on a call without `max_seconds`. A peer that needs
        longer is unavailable to every later call, until it answers a probe.

        Args:
            setting: environment variable that sets `max_seconds`.
        """
        left = math.inf if deadline is None else deadline.seconds_left()
        try:
            with calling(self.name):
                yield min(left, max_seconds)
        except ChorusError as error:
            if error.reason == errors.TIME_LIMIT_EXCEEDED and max_seconds < math.inf:
                raise errors.unavailable(self.name, error.message) from error
            if error.reason != errors.DEADLINE_EXCEEDED:
                raise
            if deadline is not None and left <= max_seconds:
                raise deadline.exceeded() from error
            cause = f"no answer in {max_seconds:g} s"
            self.health.report_silence(f"{cause} ({setting})")
            raise errors.unavailable(self.name, cause, setting=setting) from error


def open_connection(
    name: str,
    service: str,
    target: str,
    settings: SchedulerSettings,
    resources: Resources,
    on_change: Callable[[PeerHealth], None],
    key: str = "",
) -> PeerConnection:
    """Opens a channel and starts its health watch; returns at once, whether or not the peer is reachable.

    Args:
        service: full protobuf name of the peer's service.
        resources: closes the channel and ends the watch.
        on_change: callback after each change of the peer's health.
        key: key that the peer expects of this service; empty if it expects none.
    """
    channel = open_channel(target, settings.max_message_bytes)
    resources.push_async_callback(channel.close)
    health = PeerHealth(name, service, channel, on_change, settings.retry_seconds, target)
    resources.push_async_callback(health.close)
    resources.start_task(health.watch(), f"watch {name}")
    return PeerConnection(name, channel, settings.tenant, health, key)
